"""One prediction per picture, stitched from its tiles: class map, counts, confidence.

The network sees tiles, or the one tile that is the whole picture. Of each, the inner part is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.labels import LabelSet
from pipeline.models.spec import ModelSpec
from pipeline.prediction.resizing import resize_pixels
from pipeline.prediction.tiling import Cut
from pipeline.reading.pixels import Pixels


@dataclass(frozen=True)
class Prediction:
    """The prediction of one picture of H x W pixels and K classes.

    A pixel whose winning channel stands for no class has no prediction: the ignore value, in none of the figures.
    """

    class_map: np.ndarray  # H x W of the label set's mask_dtype
    class_pixels: np.ndarray  # int64, K
    mean_confidence: float  # mean over predicted pixels of the softmax of the winning channel; nan where there are none
    class_confidence: np.ndarray  # float64, K: the same per winning class, nan where a class does not occur
    low_confidence_share: float  # of the predicted pixels: winning softmax below `low_confidence`; nan likewise
    confidence: np.ndarray | None = None  # H x W uint8, softmax of the winning channel times 255, where it is asked for
    probabilities: np.ndarray | None = None  # K x H x W uint8, softmax of every class times 255, likewise


@dataclass(frozen=True)
class TileResult:
    """What was found of the inner part (h x w) of one tile."""

    class_map: np.ndarray  # h x w
    class_pixels: np.ndarray  # int64, K
    confidence_sum: np.ndarray  # float64, K: the sum of the softmax of the winning channel
    low_pixels: int  # predicted pixels below `low_confidence`
    are_numbers: bool  # whether the network gave numbers everywhere
    confidence: np.ndarray | None = None  # h x w uint8
    probabilities: np.ndarray | None = None  # K x h x w uint8

    @classmethod
    def nothing(cls, size: tuple[int, ...], label_set: LabelSet, with_probabilities: bool) -> TileResult:
        """Of a tile of which no pixel is valid."""
        classes = label_set.num_classes
        return cls(
            class_map=np.full(size, label_set.ignore_value, label_set.mask_dtype),
            class_pixels=np.zeros(classes, np.int64),
            confidence_sum=np.zeros(classes),
            low_pixels=0,
            are_numbers=True,
            confidence=np.zeros(size, np.uint8),
            probabilities=np.zeros((classes, *size), np.uint8) if with_probabilities else None,
        )


class Stitcher:
    """Adds up the prediction of the core of one picture from the inner parts of its tiles."""

    def __init__(
        self, picture: Pixels, spec: ModelSpec, keep_confidence: bool = False, keep_probabilities: bool = False
    ) -> None:
        self.picture = picture
        self.error: Exception | None = None
        size = picture.core_size
        self.class_map = np.empty(size, dtype=spec.label_set.mask_dtype)
        self.class_pixels = np.zeros(spec.label_set.num_classes, dtype=np.int64)
        self.confidence_sum = np.zeros(spec.label_set.num_classes, dtype=np.float64)
        self.low_pixels = 0
        self.confidence = np.empty(size, dtype=np.uint8) if keep_confidence else None
        planes = (spec.label_set.num_classes, *size)
        self.probabilities = np.empty(planes, dtype=np.uint8) if keep_probabilities else None

    def add(self, where: tuple[slice, slice], found: TileResult) -> None:
        """Add what was found of the rectangle `where`."""
        self.class_map[where] = found.class_map
        if self.confidence is not None and found.confidence is not None:
            self.confidence[where] = found.confidence
        if self.probabilities is not None and found.probabilities is not None:
            self.probabilities[:, *where] = found.probabilities
        self.class_pixels += found.class_pixels
        self.confidence_sum += found.confidence_sum
        self.low_pixels += found.low_pixels
        if not found.are_numbers:
            self.error = FloatingPointError("the network gave logits that are no numbers")

    def prediction(self) -> Prediction:
        occurs = self.class_pixels > 0
        means = np.full(len(occurs), np.nan)
        means[occurs] = self.confidence_sum[occurs] / self.class_pixels[occurs]
        predicted = int(self.class_pixels.sum()) or math.nan
        return Prediction(
            self.class_map,
            self.class_pixels,
            mean_confidence=float(self.confidence_sum.sum() / predicted),
            class_confidence=means,
            low_confidence_share=self.low_pixels / predicted,
            confidence=self.confidence,
            probabilities=self.probabilities,
        )


@dataclass
class Tile:
    """One rectangle of a picture on its way through the network."""

    stitcher: Stitcher
    row: Cut
    column: Cut
    input_size: tuple[int, int] | None = None  # what the network sees it resized to

    @cached_property
    def pixels(self) -> np.ndarray:
        """What the network sees, H x W x B."""
        picture = self.stitcher.picture
        pixels = picture.values[self.row.read, self.column.read]
        if self.input_size is None:
            return pixels
        if picture.valid is not None:  # what is not valid would run into its neighbours: the mean of the others
            valid = picture.valid[self.row.read, self.column.read]
            pixels = np.where(valid[..., None], pixels, pixels[valid].mean(axis=0) if valid.any() else 0)
        return resize_pixels(pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32), self.input_size)

    @cached_property
    def valid(self) -> np.ndarray | None:
        """H x W bool of what the network sees; None where all of it is valid, and for what is resized."""
        valid = self.stitcher.picture.valid
        if valid is None or self.input_size is not None:
            return None
        valid = valid[self.row.read, self.column.read]
        return None if valid.all() else valid

    @property
    def enlarged(self) -> tuple[int, int] | None:
        """The size that its logits are brought back to: the whole picture's, halo and all."""
        if self.input_size is None:
            return None
        height, width = self.stitcher.picture.shape[:2]
        return height, width

    @property
    def kept(self) -> tuple[slice, slice]:
        """What is kept, in pixels of the picture: the tile's own part of the core."""
        rows, columns = self.stitcher.picture.core_slices
        return _overlap(self.row.keep, rows), _overlap(self.column.keep, columns)

    @property
    def outer(self) -> tuple[slice, slice]:
        """What is kept, in pixels of the core."""
        rows, columns = self.stitcher.picture.core_slices
        return _shifted(self.kept[0], -rows.start), _shifted(self.kept[1], -columns.start)

    @property
    def inner(self) -> tuple[slice, slice]:
        """What is kept, in pixels of the logits, once they are `enlarged`."""
        if self.input_size is not None:
            return self.kept
        return _shifted(self.kept[0], -self.row.read.start), _shifted(self.kept[1], -self.column.read.start)

    @property
    def kept_valid(self) -> np.ndarray | None:
        """h x w bool of what is kept; None where all of it is valid."""
        valid = self.stitcher.picture.valid
        if valid is None:
            return None
        valid = valid[self.kept]
        return None if valid.all() else valid


def _overlap(one: slice, other: slice) -> slice:
    start = max(one.start, other.start)
    return slice(start, max(start, min(one.stop, other.stop)))


def _shifted(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)
