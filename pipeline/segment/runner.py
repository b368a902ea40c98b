"""What a runner is: pending rows of the manifest in, whole files of an attempt out.

`ray_runner` works on Ray, `process_runner` on this machine alone; a `Segmenter` predicts in both. The driver gets one
small `WrittenFiles` per task, with the times of the blocks in it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.catalog.manifest import Manifest
from pipeline.catalog.schema import Columns
from pipeline.reading.regions import ReadOptions
from pipeline.segment.config import SegmentConfig
from pipeline.segment.predict_options import PredictOptions, read_options
from pipeline.segment.timings import without_times
from pipeline.tables.sink import Written, write_rows

_FILE_BYTES = 128 * 2**20
_FILE_WORK_S = 300.0
_RAW_BYTES = 512 * 2**20

SegmenterArguments = tuple[str, PredictOptions, ReadOptions, Columns]


@dataclass(frozen=True)
class WrittenFiles:
    """The files of one task, with the times of the blocks in them."""

    files: Written
    blocks: list[dict[str, Any]]  # `timings.TIMES`
    write_s: float
    raw_bytes: int  # of the rows in memory


def write_files(table: pa.Table, attempt_uri: str) -> WrittenFiles:
    """Put a segmenter's rows as whole files into an attempt's folder."""
    begin_s = time.monotonic()
    rows, blocks = without_times(table)
    written = write_rows(rows, attempt_uri)
    return WrittenFiles(written, blocks, time.monotonic() - begin_s, table.nbytes)


class FileSize:
    """The number of rows of a file: as asked for, or from the sizes of earlier files.

    128 MiB or five minutes of work, and no more than fit into a worker's memory as they are before compression.
    """

    def __init__(self, asked: int | None, planes: int) -> None:
        self.rows = asked or max(1, 1024 // planes)
        self._asked, self._least = asked, max(1, 64 // planes)
        self._seen_rows = self._seen_bytes = self._seen_raw_bytes = 0

    def learn(self, written: WrittenFiles, work_s: float) -> None:
        """Learn from files that were written; `work_s`: since the first was begun, as if made one by one."""
        self._seen_rows += written.files.rows
        self._seen_bytes += written.files.size_bytes
        self._seen_raw_bytes += written.raw_bytes
        if self._asked is None and self._seen_rows:
            by_file = _FILE_BYTES * self._seen_rows / max(self._seen_bytes, 1)
            by_memory = _RAW_BYTES * self._seen_rows / max(self._seen_raw_bytes, 1)
            by_work = _FILE_WORK_S * self._seen_rows / max(work_s, 1e-3)
            self.rows = int(max(self._least, min(by_file, by_memory, by_work)))


@dataclass(frozen=True)
class Runner(ABC):
    """How pending rows become files of an attempt."""

    config: SegmentConfig
    manifest: Manifest
    columns: Columns
    predict: PredictOptions
    num_predictors: int
    num_cores: int

    @abstractmethod
    def run(self, pending: np.ndarray, attempt_uri: str) -> Iterator[WrittenFiles]:
        """Do the regions of a bitmap (bool, one a region of the manifest)."""

    @abstractmethod
    def predicted(self) -> list[int]:
        """Regions that the predictors have done so far, and how many of them failed; files follow minutes later."""

    @property
    def columns_read(self) -> list[str]:
        """The columns of the manifest that a segmenter needs."""
        names = [name for name in self.columns.results.names if name in self.manifest.columns]
        return list(dict.fromkeys([*names, "kind"]))

    @property
    def segmenter_arguments(self) -> SegmenterArguments:
        """The arguments of a predictor's `Segmenter`, wherever it runs."""
        read = read_options(self.config, self.num_predictors, self.num_cores)
        return storage.absolute(self.config.checkpoint), self.predict, read, self.columns

    def rows_per_block(self, count: int) -> int:
        """How many of `count` rows a predictor takes at once."""
        return int(np.clip(count // (4 * self.num_predictors), 1, max(1, 64 // self.columns.planes)))

    def file_size(self) -> FileSize:
        return FileSize(self.config.rows_per_file, self.columns.planes)
