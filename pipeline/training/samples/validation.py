"""Validation pictures: read whole, in the order of their rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.reading.pixels import Pixels
from pipeline.reading.regions import Region, RegionReader


@dataclass(frozen=True)
class ValidationPicture:
    """`pixels` and the `truth` of their core (H x W) are None where they could not be read; `failure` says why."""

    pixels: Pixels | None
    truth: np.ndarray | None
    failure: str = ""


def read_validation(reader: RegionReader, rows: Iterable[dict[str, Any]]) -> Iterator[ValidationPicture]:
    """One picture for each row."""
    for region in reader.read(rows, pictures=True, labels=True):
        failure = why_unusable(region)
        yield ValidationPicture(None if failure else region.pixels, region.truth, failure)


def why_unusable(region: Region) -> str:
    """Why a region cannot be trained on or validated with: its path and the reason, or an empty text."""
    reason = region.error or region.truth_error
    if reason is None and region.pixels is not None and region.truth is not None:
        if region.pixels.core_size == region.truth.shape:
            return ""
        (height, width), (h, w) = region.pixels.core_size, region.truth.shape
        reason = f"picture is {width} x {height} px, its label file {w} x {h}"
    return f"{region.row['path']}: {reason or region.status}"
