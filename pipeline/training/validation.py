"""The exact confusion matrix of a network on one worker's share of the validation pictures, and their sum.

Pictures go through the same `Predictor` that the segment job uses, so the figures are the ones it will give.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import nn

from pipeline.metrics import ConfusionMatrix
from pipeline.models.spec import ModelSpec
from pipeline.prediction.predictor import Prediction, Predictor


def confusion(model: nn.Module, spec: ModelSpec, shard: Any, device: torch.device) -> tuple[ConfusionMatrix, int]:
    """Of `shard` (a stream of `samples.ValidationLoader` rows): the matrix, and how many pictures were unreadable.

    A picture that cannot be read, or on which the network raises, counts as unpredicted; a truth that cannot, nowhere.
    """
    label_set = spec.label_set
    matrix, failed = ConfusionMatrix(label_set.num_classes), 0
    flags = (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32)
    matmul = torch.backends.cuda.matmul.allow_tf32
    predictor = Predictor(copy.deepcopy(model), spec, device=str(device))
    for batch in shard.iter_batches(batch_size=8, batch_format="pyarrow", prefetch_batches=1):
        rows = [row for row in batch.to_pylist() if row["valid"]]
        failed += sum(bool(row["failure"]) for row in rows)
        readable = [row for row in rows if row["truth"] is not None]
        pictures = [
            np.frombuffer(row["pixels"], np.uint8).reshape(row["height"], row["width"], -1)
            for row in readable
            if row["pixels"] is not None
        ]
        predictions = iter(predictor.predict(pictures))
        for row in readable:
            truth = np.frombuffer(row["truth"], label_set.mask_dtype).reshape(row["height"], row["width"])
            answer = next(predictions) if row["pixels"] is not None else None
            found = answer.class_map if isinstance(answer, Prediction) else None
            matrix.update(truth, found, label_set.ignore_value)
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
