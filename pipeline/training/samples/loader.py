"""Samples of the plan -> augmented pixels and truth, on whatever process reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.decode.raster_header import wide_type
from pipeline.labels import LabelSet
from pipeline.reading.pixels import Pixels
from pipeline.reading.regions import ReadOptions, Region, RegionReader
from pipeline.training.samples.augmentation import Augmentation
from pipeline.training.samples.plan import SamplePlan
from pipeline.training.samples.validation import why_unusable


@dataclass(frozen=True)
class SampleLoader:
    """What it takes to read and augment any sample of a run.

    A picture or truth that cannot be read never stops a run: its place is taken by another view of a picture read in
    the same call (or by a sample that is all ignored), and `failure` says which one it was and why.
    """

    plan: SamplePlan
    augmentation: Augmentation
    label_set: LabelSet
    options: ReadOptions
    bands: int = 3
    dtype: str = "uint8"  # of the samples; float32 for scenes of wider values

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample: pixels and truth."""
        height, width = self.augmentation.crop
        pixel_bytes = self.bands * np.dtype(self.dtype).itemsize + np.dtype(self.label_set.mask_dtype).itemsize
        return height * width * pixel_bytes

    def load(
        self, table: pa.Table, samples: Sequence[int], reader: RegionReader, padding: int = 0
    ) -> dict[str, np.ndarray]:
        """`samples` by number -> pixels (n x H x W x B), truth (n x H x W), failure (n texts).

        `table` holds the training rows (`COLUMNS`); `padding` samples that are all ignored stand at the end.
        """
        drawn = [self.plan.draw(sample) for sample in samples]
        rows = [
            self._moved(row, (self.plan.seed, epoch, int(row["region_id"])))
            for (epoch, _), row in zip(drawn, table.take([row for _, row in drawn]).to_pylist(), strict=True)
        ]
        (height, width), ignore = self.augmentation.crop, self.label_set.ignore_value
        count = len(samples) + padding
        pixels = np.empty((count, height, width, self.bands), self.dtype)
        pixels[:] = self.augmentation.fills(self.bands)
        truth = np.full((count, height, width), ignore, self.label_set.mask_dtype)
        failures = [""] * count
        good: Region | None = None
        for i, ((epoch, _), region) in enumerate(
            zip(drawn, reader.read(rows, pictures=True, labels=True), strict=True)
        ):
            seed = (self.plan.seed, epoch, int(region.row["region_id"]))
            failures[i] = why_unusable(region) or self._misfit(region)
            if not failures[i]:
                good = region
            if good is not None:
                assert good.pixels is not None and good.truth is not None
                values = self._filled(good.pixels)
                pixels[i], truth[i] = self.augmentation(values, good.truth, ignore_value=ignore, seed=seed)
        return {"pixels": pixels, "truth": truth, "failure": np.array(failures, object)}

    def _moved(self, row: dict[str, Any], seed: tuple[int, ...]) -> dict[str, Any]:
        """The row of a window of a scene, read elsewhere: as large as a view can show, at random around the window. So
        every part of a scene is seen as often as its area says, and never twice the same."""
        window = row.get("window")
        if window is None or not row.get("scene_width"):
            return row
        random = np.random.default_rng((*seed, 1))
        height, width = self.augmentation.reach()
        height, width = min(height, row["scene_height"]), min(width, row["scene_width"])
        x = window["x"] + int(random.integers(0, window["width"])) - width // 2
        y = window["y"] + int(random.integers(0, window["height"])) - height // 2
        x = int(np.clip(x, 0, row["scene_width"] - width))
        y = int(np.clip(y, 0, row["scene_height"] - height))
        return row | {"window": {"x": x, "y": y, "width": width, "height": height}, "read_window": None}

    def _filled(self, pixels: Pixels) -> np.ndarray:
        """H x W x B of the samples' type; what is not valid is the fill."""
        values = pixels.values.astype(self.dtype, copy=False)
        if pixels.valid is None:
            return values
        fill = np.array(self.augmentation.fills(self.bands)).astype(self.dtype)
        return np.where(pixels.valid[..., None], values, fill)

    def _misfit(self, region: Region) -> str:
        """Why a scene is not like those that the network is made for, or an empty text."""
        assert region.pixels is not None
        bands, dtype = region.pixels.shape[2], region.pixels.values.dtype.name
        if bands == self.bands and wide_type(dtype) == (self.dtype != "uint8"):
            return ""
        return f"{region.row['path']}: {bands} bands of {dtype}, the others have {self.bands} of {self.dtype}"
