"""Logits -> which class wins where, how surely, and how often: what remains of K planes.

The first of equal channels wins, as in argmax. Everything adds up the same in any order of the pictures.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.models.spec import ModelSpec
from pipeline.prediction.resizing import resized_rows

BAND_PX = 32768  # post-processing goes in bands of about as many pixels: K planes of them stay in a core's cache
WIDE_BAND_PX = 2**20  # the same on a GPU, where logits are enlarged: K planes of a whole picture might not fit


def channel_classes(spec: ModelSpec) -> Tensor:
    """The class of each output channel, or the ignore value."""
    ignore = spec.label_set.ignore_value
    classes = [ignore if k is None else k for k in spec.class_map or ()]
    return torch.tensor(classes, dtype=torch.uint8 if ignore <= 255 else torch.int32)


def argmax(logits: Tensor, size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Logits K x h x w -> the winning channel (H x W, uint8 or int32) and its softmax (H x W float32).

    H x W is h x w, or `size`, to which the logits are brought bilinearly.
    A running maximum over the K planes, in bands of rows: argmax over K x H x W costs several times as much on a CPU.
    Of equal classes the first wins, as in argmax.
    """
    classes = logits.shape[0]
    height, width = size or logits.shape[1:]
    kind = torch.uint8 if classes <= 254 else torch.int32  # 255 is left for "no prediction"
    class_map = torch.zeros(height, width, dtype=kind, device=logits.device)
    confidence = torch.empty(height, width, dtype=torch.float32, device=logits.device)
    for rows, band in _bands(logits, size):
        best = band[0].clone()
        winner = class_map[rows]
        for k in range(1, classes):
            # k rises, so the largest k that beat the best before it is the winner
            torch.maximum(winner, (band[k] > best).to(kind).mul_(k), out=winner)
            torch.maximum(best, band[k], out=best)
        confidence[rows] = (band - best).exp_().sum(0).reciprocal_()
    return class_map, confidence


def probabilities(
    logits: Tensor, classes: int, labels: Tensor | None = None, size: tuple[int, int] | None = None
) -> Tensor:
    """Logits as in `argmax` -> the softmax of every class times 255 (`classes` x H x W uint8).

    `labels` gives the class of each channel, or a number beyond: channels of one class add up, those of none are left
    out. Without it the channels are the classes, and the winner's is what `argmax` gives as its confidence.
    """
    height, width = size or logits.shape[1:]
    found = torch.empty(classes, height, width, dtype=torch.uint8, device=logits.device)
    for rows, band in _bands(logits, size):
        softmax = (band - band.amax(0)).exp_()
        softmax *= softmax.sum(0).reciprocal_()
        if labels is not None:
            known = labels < classes
            by_class = softmax.new_zeros(classes, *softmax.shape[1:])
            softmax = by_class.index_add_(0, labels[known].long(), softmax[known])
        found[:, rows] = softmax.mul_(255).round_().clamp_(max=255).to(torch.uint8)
    return found


def _bands(logits: Tensor, size: tuple[int, int] | None) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the picture, and their logits as K planes (float32)."""
    height, width = size or logits.shape[1:]
    if logits.is_cuda:
        step = height if size is None else max(1, WIDE_BAND_PX // width)
    else:
        step = max(1, BAND_PX // width)
    for top in range(0, height, step):
        rows = slice(top, min(top + step, height))
        if size is None:
            yield rows, _planes(logits[:, rows].float())
        else:
            yield rows, resized_rows(logits, range(rows.start, rows.stop), size)


def _planes(band: Tensor) -> Tensor:
    """K x h x w with whole planes in memory: a step over K pixels costs half as much again in every pass on a CPU."""
    pixels = band.permute(1, 2, 0)
    if band.is_cuda or band.shape[0] == 1 or not pixels.is_contiguous():
        return band
    planes = torch.empty(band.shape, dtype=band.dtype)
    planes.view(len(band), -1).copy_(pixels.view(-1, len(band)).t())  # which torch transposes in blocks
    return planes


def per_class(class_map: Tensor, confidence: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Pixels (int64) and the sum of confidence (float64) of every class; the ignore value is none."""
    if class_map.is_cuda:  # a weighted bincount adds in any order there
        pixels = torch.bincount(class_map.flatten(), minlength=classes)[:classes]
        sums = [(confidence * (class_map == k)).sum(dtype=torch.float64) for k in range(classes)]
        return pixels, torch.stack(sums)
    flat = class_map.flatten()
    weighted = torch.bincount(flat, weights=confidence.flatten().double(), minlength=classes)
    return torch.bincount(flat, minlength=classes)[:classes], weighted[:classes]
