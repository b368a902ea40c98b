"""Logits -> which class wins where, how surely, and how often: what remains of K planes.

The first of equal channels wins, as in argmax. Everything adds up the same in any order of the pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.model_spec import ModelSpec
from pipeline.resizing import resized_rows

BAND_PX = 32768  # post-processing goes in bands of about as many pixels: K planes of them stay in a core's cache
WIDE_BAND_PX = 2**20  # the same on a GPU, where logits are enlarged: K planes of a whole picture might not fit


def channel_classes(spec: ModelSpec) -> Tensor:
    """The class of each output channel, or the ignore value."""
    ignore = spec.label_set.ignore_value
    classes = [ignore if k is None else k for k in spec.class_map or ()]
    return torch.tensor(classes, dtype=torch.uint8 if ignore <= 255 else torch.int32)


def winners(logits: Tensor, size: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Logits K x h x w -> the winning channel (H x W, uint8 or int32) and its softmax (H x W float32).

    H x W is h x w, or `size`, to which the logits are brought bilinearly.
    A running maximum over the K planes, in bands of rows: argmax over K x H x W costs several times as much on a CPU.
    Of equal classes the first wins, as in argmax.
    """
    classes = logits.shape[0]
    height, width = size or logits.shape[1:]
    kind = torch.uint8 if classes <= 254 else torch.int32
    class_map = torch.empty(height, width, dtype=kind, device=logits.device)
    confidence = torch.empty(height, width, dtype=torch.float32, device=logits.device)
    if logits.is_cuda:
        rows = height if size is None else max(1, WIDE_BAND_PX // width)
    else:
        rows = max(1, BAND_PX // width)
    for top in range(0, height, rows):
        if size is None:
            band = logits[:, top : top + rows].to(torch.float32, memory_format=torch.contiguous_format)
        else:
            band = resized_rows(logits, range(top, min(top + rows, height)), size)
        best = band[0].clone()
        winner = torch.zeros(best.shape, dtype=kind, device=logits.device)
        for k in range(1, classes):
            # k rises, so the largest k that beat the best before it is the winner
            torch.maximum(winner, (band[k] > best).to(kind).mul_(k), out=winner)
            torch.maximum(best, band[k], out=best)
        class_map[top : top + rows] = winner
        confidence[top : top + rows] = (band - best).exp_().sum(0).reciprocal_()
    return class_map, confidence


def per_class(class_map: Tensor, confidence: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Pixels (int64) and the sum of confidence (float64) of every class; the ignore value is none."""
    if class_map.is_cuda:  # a weighted bincount adds in any order there
        pixels = torch.bincount(class_map.flatten(), minlength=classes)[:classes]
        sums = [(confidence * (class_map == k)).sum(dtype=torch.float64) for k in range(classes)]
        return pixels, torch.stack(sums)
    flat = class_map.flatten()
    weighted = torch.bincount(flat, weights=confidence.flatten().double(), minlength=classes)
    return torch.bincount(flat, minlength=classes)[:classes], weighted[:classes]
