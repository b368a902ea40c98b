"""How many pictures a forward pass takes: doubled until memory or the rate says no. Found once a run, then kept."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.predict_options import PredictOptions
from pipeline.regions import ReadOptions, RegionReader

if TYPE_CHECKING:
    from pipeline.predictor import Predictor

_LEAST_GAIN = 1.05  # of the rate, for twice the memory
_MOST = 64
_LONGEST_S = 5.0  # a pass that takes longer is not doubled
_PASSES = 3  # the fastest counts


def find_batch_size(predictor: Predictor, picture: np.ndarray, most: int = _MOST) -> tuple[int, dict[int, float]]:
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
    checkpoint: str, options: PredictOptions, read: ReadOptions, rows: list[dict[str, Any]]
) -> tuple[int, dict[int, float]] | None:
    """`find_batch_size` for pictures of the commonest shape among these rows of a manifest; None where none is read.

    Runs where the predictors will: on a worker with a device of the run's.
    """
    from pipeline.checkpoint import load_checkpoint
    from pipeline.predictor import Predictor

    reader = RegionReader(read)
    try:
        pictures = [region.pixels for region in reader.read(rows) if region.pixels is not None]
    finally:
        reader.close()
    if not pictures:
        return None
    ((shape, _),) = Counter(picture.shape for picture in pictures).most_common(1)
    picture = next(picture for picture in pictures if picture.shape == shape)
    chosen = {name: value for name, value in vars(options).items() if not name.startswith("deadline_s")}
    return find_batch_size(Predictor(*load_checkpoint(checkpoint), **chosen), picture)


def _timed(predictor: Predictor, pictures: list[np.ndarray]) -> float:
    begin_s = time.monotonic()
    predictor.predict(pictures)
    return time.monotonic() - begin_s
