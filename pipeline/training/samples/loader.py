"""Samples of the plan -> augmented pixels and truth, on whatever process reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.labels import LabelSet
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

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample: pixels and truth."""
        height, width = self.augmentation.crop
        return height * width * (3 + np.dtype(self.label_set.mask_dtype).itemsize)

    def load(
        self, table: pa.Table, samples: Sequence[int], reader: RegionReader, padding: int = 0
    ) -> dict[str, np.ndarray]:
        """`samples` by number -> pixels (n x H x W x 3 uint8), truth (n x H x W), failure (n texts).

        `table` holds the training rows (`COLUMNS`); `padding` samples that are all ignored stand at the end.
        """
        drawn = [self.plan.draw(sample) for sample in samples]
        rows = table.take([row for _, row in drawn]).to_pylist()
        (height, width), ignore = self.augmentation.crop, self.label_set.ignore_value
        count = len(samples) + padding
        pixels = np.full((count, height, width, 3), self.augmentation.fill, np.uint8)
        truth = np.full((count, height, width), ignore, self.label_set.mask_dtype)
        failures = [""] * count
        good: Region | None = None
        for i, ((epoch, _), region) in enumerate(
            zip(drawn, reader.read(rows, pictures=True, labels=True), strict=True)
        ):
            seed = (self.plan.seed, epoch, int(region.row["region_id"]))
            failures[i] = why_unusable(region)
            if not failures[i]:
                good = region
            if good is not None:
                assert good.pixels is not None and good.truth is not None
                pixels[i], truth[i] = self.augmentation(good.pixels.values, good.truth, ignore_value=ignore, seed=seed)
        return {"pixels": pixels, "truth": truth, "failure": np.array(failures, object)}
