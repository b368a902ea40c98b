"""The confusion matrix, and every figure that follows from it.

`matrix[truth, prediction]` is int64 and exact, so matrices of pictures, workers and nights add up to the same
in any order. Beside it stand the column `unpredicted` (truth pixels without a prediction, or with one outside the
label set) and `ignored` (pixels whose truth is void, left out of everything).

With t_i = row sum of the matrix + unpredicted_i, p_i = column sum, T = sum of t_i:

    PA     sum m_ii / T
    MPA    mean of m_ii / t_i              over the classes with t_i > 0
    IoU_i  m_ii / (t_i + p_i - m_ii)       mIoU: mean over the classes with t_i + p_i > 0
    FWIoU  sum t_i / T * IoU_i
    Dice_i 2 m_ii / (t_i + p_i)            mean over the classes with t_i + p_i > 0

So a pixel without a prediction is a miss for its row and in no p_i. A class in neither truth nor prediction has
no value: None, never 0, 1 or NaN. mmsegmentation, Cityscapes and Hugging Face agree with this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np

CHUNK_PX = 1 << 18  # bincount widens its input to 8 bytes a pixel: 2 MiB at a time stays in the cache


class ConfusionMatrix:
    """Pixel counts of K classes: `matrix` (int64, K x K), `unpredicted` (int64, K) and `ignored`."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.matrix = np.zeros((num_classes, num_classes), dtype=np.int64)
        self.unpredicted = np.zeros(num_classes, dtype=np.int64)
        self.ignored = 0

    @classmethod
    def from_counts(
        cls, matrix: np.ndarray, unpredicted: np.ndarray | None = None, ignored: int = 0
    ) -> ConfusionMatrix:
        """From counts made elsewhere: `matrix` K x K, `unpredicted` K (none: zeros)."""
        result = cls(len(matrix))
        result.matrix += np.asarray(matrix, dtype=np.int64)
        if unpredicted is not None:
            result.unpredicted += np.asarray(unpredicted, dtype=np.int64)
        result.ignored = int(ignored)
        return result

    @classmethod
    def from_sparse(
        cls,
        truth: Sequence[int] | np.ndarray,
        prediction: Sequence[int] | np.ndarray,
        pixels: Sequence[int] | np.ndarray,
        unpredicted: Sequence[int] | np.ndarray,
        ignored: int = 0,
    ) -> ConfusionMatrix:
        """The inverse of `sparse`. Equal pairs add up: lists of many pictures may be joined end to end."""
        result = cls(len(unpredicted))
        pairs = (np.asarray(truth, dtype=np.int64), np.asarray(prediction, dtype=np.int64))
        np.add.at(result.matrix, pairs, np.asarray(pixels, dtype=np.int64))
        result.unpredicted += np.asarray(unpredicted, dtype=np.int64)
        result.ignored = int(ignored)
        return result

    def update(self, truth: np.ndarray, prediction: np.ndarray | None, ignore_value: int = 255) -> ConfusionMatrix:
        """Counts one picture (or a batch of them) and returns itself.

        `truth` holds class ids and `ignore_value`, `prediction` class ids and anything else for "no prediction";
        both are integers of one shape. Without a prediction every truth pixel is unpredicted. Raises ValueError
        for sizes that differ and for a truth value that is neither a class nor `ignore_value`.
        """
        truth = np.ascontiguousarray(truth).reshape(-1)
        if prediction is None:
            prediction = np.broadcast_to(np.array(self.num_classes, dtype=np.int64), truth.shape)
        elif prediction.size != truth.size:
            raise ValueError(f"truth has {truth.size} pixels, prediction {prediction.size}")
        else:
            prediction = np.ascontiguousarray(prediction).reshape(-1)
        narrow = truth.dtype == prediction.dtype == np.uint8 and self.num_classes <= min(256, ignore_value)
        count = self._count_bytes if narrow else self._count_wide
        total = np.zeros((self.num_classes + 1, self.num_classes + 1), dtype=np.int64)
        for start in range(0, truth.size, CHUNK_PX):
            stop = start + CHUNK_PX
            total += count(truth[start:stop], prediction[start:stop], ignore_value)
        k = self.num_classes
        self.matrix += total[:k, :k]
        self.unpredicted += total[:k, k]
        self.ignored += int(total[k].sum())
        return self

    def _count_bytes(self, truth: np.ndarray, prediction: np.ndarray, ignore_value: int) -> np.ndarray:
        """Two uint8 side by side are one uint16, truth << 8 | prediction: one bincount and no arithmetic."""
        pairs = np.empty((truth.size, 2), dtype=np.uint8)
        pairs[:, 0], pairs[:, 1] = prediction, truth
        counts = np.bincount(pairs.view("<u2").reshape(-1), minlength=1 << 16).reshape(256, 256)
        k = self.num_classes
        outside = counts[k:].sum(axis=1)
        if 0 <= ignore_value - k < len(outside):
            outside[ignore_value - k] = 0
        if outside.any():
            self._refuse(k + int(np.flatnonzero(outside)[0]), ignore_value)
        total = np.zeros((k + 1, k + 1), dtype=np.int64)
        total[:k, :k] = counts[:k, :k]
        total[:k, k] = counts[:k, k:].sum(axis=1)
        total[k, k] = counts[k:].sum()
        return total

    def _count_wide(self, truth: np.ndarray, prediction: np.ndarray, ignore_value: int) -> np.ndarray:
        k = self.num_classes
        void = truth == ignore_value
        known = (truth >= 0) & (truth < k)
        if not (known | void).all():
            self._refuse(int(truth[~(known | void)][0]), ignore_value)
        rows = np.where(known & ~void, truth, k).astype(np.int64)
        columns = np.where((prediction >= 0) & (prediction < k), prediction, k).astype(np.int64)
        return np.bincount(rows * (k + 1) + columns, minlength=(k + 1) ** 2).reshape(k + 1, k + 1)

    def _refuse(self, value: int, ignore_value: int) -> None:
        raise ValueError(
            f"truth holds {value}, expected class ids 0..{self.num_classes - 1} or {ignore_value} (ignored)"
        )

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        return ConfusionMatrix.from_counts(self.matrix, self.unpredicted, self.ignored).__iadd__(other)

    def __iadd__(self, other: ConfusionMatrix) -> Self:
        if other.num_classes != self.num_classes:
            raise ValueError(f"matrices of {self.num_classes} and {other.num_classes} classes do not add up")
        self.matrix += other.matrix
        self.unpredicted += other.unpredicted
        self.ignored += other.ignored
        return self

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ConfusionMatrix)
            and np.array_equal(self.matrix, other.matrix)
            and np.array_equal(self.unpredicted, other.unpredicted)
            and self.ignored == other.ignored
        )

    __hash__ = None  # type: ignore[assignment]  # it changes in place

    def __repr__(self) -> str:
        return f"ConfusionMatrix({self.num_classes} classes, {self.pixels} pixels, {self.ignored} ignored)"

    @property
    def truth_pixels(self) -> np.ndarray:
        """t: int64, K."""
        return self.matrix.sum(axis=1) + self.unpredicted

    @property
    def predicted_pixels(self) -> np.ndarray:
        """p: int64, K."""
        return self.matrix.sum(axis=0)

    @property
    def pixels(self) -> int:
        """T: the pixels with a truth."""
        return int(self.truth_pixels.sum())

    def sparse(self) -> tuple[list[int], list[int], list[int]]:
        """The entries of the matrix that are not 0, as three lists: truth, prediction, pixels."""
        truth, prediction = np.nonzero(self.matrix)
        return truth.tolist(), prediction.tolist(), self.matrix[truth, prediction].tolist()

    @property
    def iou(self) -> np.ndarray:
        """float64, K; NaN where the class is absent."""
        hit = np.diagonal(self.matrix)
        return _ratio(hit, self.truth_pixels + self.predicted_pixels - hit)

    @property
    def accuracy(self) -> np.ndarray:
        """float64, K: the share of each class's truth that was found; NaN where truth has none of it."""
        return _ratio(np.diagonal(self.matrix), self.truth_pixels)

    @property
    def dice(self) -> np.ndarray:
        """float64, K; NaN where the class is absent."""
        return _ratio(2 * np.diagonal(self.matrix), self.truth_pixels + self.predicted_pixels)

    @property
    def pixel_accuracy(self) -> float | None:
        return float(np.trace(self.matrix)) / self.pixels if self.pixels else None

    @property
    def miou(self) -> float | None:
        return _mean(self.iou)

    @property
    def fwiou(self) -> float | None:
        weights = self.truth_pixels
        present = weights > 0
        if not present.any():
            return None
        return float((weights[present] / weights.sum() * self.iou[present]).sum())

    def metrics(self, names: Sequence[str]) -> dict[str, Any]:
        """Everything as plain JSON values, fractions in 0..1 unrounded, None where there is no value.

        `names` are the K class names, the keys of `per_class`. Raises ValueError if there are not K of them.
        """
        if len(names) != self.num_classes:
            raise ValueError(f"{len(names)} names for {self.num_classes} classes")
        truth, predicted = self.truth_pixels, self.predicted_pixels
        iou, accuracy, dice = self.iou, self.accuracy, self.dice
        per_class = {
            name: {
                "iou": _value(iou[i]),
                "accuracy": _value(accuracy[i]),
                "dice": _value(dice[i]),
                "truth_pixels": int(truth[i]),
                "predicted_pixels": int(predicted[i]),
                "unpredicted_pixels": int(self.unpredicted[i]),
            }
            for i, name in enumerate(names)
        }
        return {
            "pixel_accuracy": self.pixel_accuracy,
            "mean_pixel_accuracy": _mean(accuracy),
            "miou": _mean(iou),
            "fwiou": self.fwiou,
            "dice": _mean(dice),
            "num_classes": self.num_classes,
            "classes_counted": int(((truth + predicted) > 0).sum()),
            "classes_in_truth": int((truth > 0).sum()),
            "pixels": self.pixels,
            "ignored": self.ignored,
            "per_class": per_class,
            "confusion_matrix": self.matrix.tolist(),
            "unpredicted": self.unpredicted.tolist(),
        }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float | None:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else None


def _value(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
