"""The exact confusion matrix of a network on one worker's share of the validation pictures, and their sum.

Pictures go through the same `Predictor` that the segment job uses, so the figures are the ones it will give.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed
from torch import nn

from pipeline.metrics import ConfusionMatrix
from pipeline.models.spec import ModelSpec
from pipeline.prediction.predictor import Prediction, Predictor
from pipeline.training.samples.validation import ValidationPicture

_AT_ONCE = 8  # pictures


def confusion(
    model: nn.Module, spec: ModelSpec, pictures: Iterator[ValidationPicture], device: torch.device
) -> tuple[ConfusionMatrix, int]:
    """The matrix of these pictures, and how many of them could not be read.

    A picture that cannot be read, or on which the network raises, counts as unpredicted; one whose truth cannot be read
    counts nowhere.
    """
    label_set = spec.label_set
    matrix, failed = ConfusionMatrix(label_set.num_classes), 0
    flags = (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32)
    matmul = torch.backends.cuda.matmul.allow_tf32
    predictor = Predictor(copy.deepcopy(model), spec, device=str(device))
    while some := list(itertools.islice(pictures, _AT_ONCE)):
        failed += sum(bool(picture.failure) for picture in some)
        predictions = iter(predictor.predict([p.pixels for p in some if p.pixels is not None and p.truth is not None]))
        for picture in some:
            if picture.truth is not None:
                predicted = next(predictions) if picture.pixels is not None else None
                class_map = predicted.class_map if isinstance(predicted, Prediction) else None
                matrix.update(picture.truth, class_map, label_set.ignore_value)
    # the predictor wants exact repeats of the whole process; training wants speed
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = flags
    torch.backends.cuda.matmul.allow_tf32 = matmul
    return matrix, failed


def summed(matrix: ConfusionMatrix, counts: list[int], device: torch.device) -> tuple[ConfusionMatrix, list[int]]:
    """The matrix and the counts, summed over the workers of the process group (int64, so exact in any order)."""
    k = matrix.num_classes
    parts = [matrix.matrix.ravel(), matrix.unpredicted, np.array([matrix.ignored, *counts], np.int64)]
    total = torch.from_numpy(np.concatenate(parts)).to(device)
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
    sums = total.cpu().numpy()
    whole = ConfusionMatrix.from_counts(sums[: k * k].reshape(k, k), sums[k * k : k * k + k], int(sums[k * k + k]))
    return whole, [int(count) for count in sums[k * k + k + 1 :]]
