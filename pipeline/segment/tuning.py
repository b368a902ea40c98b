"""The batch size and threads of a forward pass, found at the start of a long run and kept with it.

Both can change a network's last bits.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.reading.pixels import Pixels
from pipeline.reading.regions import ReadOptions, RegionReader
from pipeline.segment.predict_options import PredictOptions

if TYPE_CHECKING:
    from pipeline.prediction.predictor import Predictor

_LEAST_GAIN = 1.05  # of the rate, for twice the memory
_LEAST_SHARE = 0.95  # of a rate that grows with the threads: below, that many predictors of one thread are faster
_MOST = 64
_LONGEST_S = 5.0  # a pass that takes longer is not doubled
_PASSES = 3  # the fastest counts


@dataclass(frozen=True)
class Tuning:
    """The best threads and batch size, and the pictures a second of each tried, of one predictor alone."""

    threads: int | None
    batch_size: int
    by_threads: dict[int, float]
    by_batch_size: dict[int, float]

    def summary(self) -> str:
        """The result as one line of text."""
        parts = [f"batch size {self.batch_size} ({_rates(self.by_batch_size)})"]
        if self.by_threads:
            parts.append(f"{self.threads} thread{'s' * (self.threads != 1)} a predictor ({_rates(self.by_threads)})")
        return "; ".join(parts)


def find_threads(predictor: Predictor, picture: Pixels | np.ndarray, most: int) -> tuple[int, dict[int, float]]:
    """The threads for a predictor on a CPU of `most` cores, and the pictures a second of each number tried.

    As many, in powers of two, as make it faster in proportion. A heavy network's layers are large enough for that, and
    fewer predictors share the caches better; a light one's are not. The predictor is left with the best.
    """
    import torch

    rates: dict[int, float] = {}
    best = threads = 1
    while threads <= most:
        torch.set_num_threads(threads)
        predictor.predict([picture])
        rates[threads] = round(1 / min(_timed(predictor, [picture]) for _ in range(_PASSES)), 3)
        if rates[threads] < _LEAST_SHARE * threads * rates[1]:
            break
        best = threads
        threads *= 2
    torch.set_num_threads(best)
    return best, rates


def find_batch_size(
    predictor: Predictor, picture: Pixels | np.ndarray, most: int = _MOST
) -> tuple[int, dict[int, float]]:
    """The best batch size for pictures like this one (H x W x B uint8), and the pictures a second of each tried.

    A size that does not fit into the device's memory is not taken. The predictor is left with the best.
    """
    rates: dict[int, float] = {}
    best = size = predictor.limits.batch.clamp(1)
    while size <= most and predictor.limits.batch.clamp(size) == size:
        predictor.batch_size = size
        predictor.predict([picture] * size)  # chooses algorithms, takes memory
        if predictor.batch_size_of(picture) < size:
            break
        fastest_s = min(_timed(predictor, [picture] * size) for _ in range(_PASSES))
        rates[size] = round(size / fastest_s, 3)
        if size != best and rates[size] < _LEAST_GAIN * rates[best]:
            break
        best = size
        if fastest_s > _LONGEST_S:
            break
        size *= 2
    predictor.batch_size = best
    return best, rates


def probe(
    checkpoint: str, options: PredictOptions, read: ReadOptions, rows: list[dict[str, Any]], cores: int
) -> Tuning | None:
    """Batch size and threads for pictures of the commonest shape among these manifest rows; None if none can be read.

    Threads are tried where `cores` is above 1. To be called where the predictors will run, on the same kind of device.
    """
    reader = RegionReader(read)
    try:
        pictures = [region.pixels for region in reader.read(rows) if region.pixels is not None]
    finally:
        reader.close()
    if not pictures:
        return None
    ((shape, _),) = Counter(picture.shape for picture in pictures).most_common(1)
    picture = next(picture for picture in pictures if picture.shape == shape)
    predictor = options.predictor(checkpoint)
    predictor.batch_size = predictor.limits.batch.clamp(1)
    threads, by_threads = options.threads, dict[int, float]()
    if cores > 1:
        threads, by_threads = find_threads(predictor, picture, cores)
    batch_size, by_batch_size = find_batch_size(predictor, picture)
    return Tuning(threads, batch_size, by_threads, by_batch_size)


def _timed(predictor: Predictor, pictures: list[Pixels | np.ndarray]) -> float:
    begin_s = time.monotonic()
    predictor.predict(pictures)
    return time.monotonic() - begin_s


def _rates(rates: dict[int, float]) -> str:
    return ", ".join(f"{rate:.1f} pictures/s at {tried}" for tried, rate in rates.items())
