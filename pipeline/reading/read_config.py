"""The options that every job shares that reads pictures or labels."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.reading.regions import ReadOptions
from pipeline.runtime.options import FAILURES, option


@dataclass(kw_only=True)
class ReadConfig:
    """Deadlines and limits of reading one file."""

    max_pixels: int = option(100_000_000, "Files of more pixels are not decoded.", group=FAILURES, low=1)
    fetch_deadline_s: float = option(60.0, "Seconds that one attempt to fetch a file may take.", group=FAILURES, low=0)
    fetch_retry_s: float = option(60.0, "Seconds for which fetching a file is tried again.", group=FAILURES, low=0)
    decode_deadline_s: float = option(30.0, "Seconds that decoding a file may take.", group=FAILURES, low=0)

    @property
    def read_options(self) -> ReadOptions:
        return ReadOptions(self.fetch_deadline_s, self.fetch_retry_s, self.decode_deadline_s, self.max_pixels)
