"""What training makes small: cross-entropy, soft Dice, and their sum. Ignored pixels count nowhere.

Every loss takes logits N x K x H x W and a target N x H x W of class ids (int64, `ignore_index` where there is no
truth) and returns a float32 scalar; it is exactly 0, with gradients of 0, where a whole batch is ignored.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[..., Tensor]


def cross_entropy(
    logits: Tensor, target: Tensor, class_weights: Tensor | None = None, ignore_index: int = 255
) -> Tensor:
    """Mean of -log p(truth) over the pixels that count, each weighed by the weight of its class (float, K)."""
    log_p = functional.log_softmax(logits.float(), dim=1)
    return _cross_entropy(log_p, *_known(target, ignore_index), class_weights)


def soft_dice(logits: Tensor, target: Tensor, class_weights: Tensor | None = None, ignore_index: int = 255) -> Tensor:
    """Mean of 1 - 2|X n Y| / (|X| + |Y|) over the classes present in the batch's truth.

    X is the softmax of a class, Y its truth, both summed over the pixels of the batch that count (V-Net, Milletari et
    al. 2016, without their squares; systems.md's choice for many classes). `class_weights` is taken and not used: the
    mean over classes already weighs a thin class like a large one.
    """
    p = functional.softmax(logits.float(), dim=1)
    return _soft_dice(p, *_known(target, ignore_index))


def cross_entropy_dice(
    logits: Tensor, target: Tensor, class_weights: Tensor | None = None, ignore_index: int = 255
) -> Tensor:
    """Cross-entropy + soft Dice with weight 1 (Huo et al. 2023); one softmax serves both."""
    log_p = functional.log_softmax(logits.float(), dim=1)
    classes, counts = _known(target, ignore_index)
    return _cross_entropy(log_p, classes, counts, class_weights) + _soft_dice(log_p.exp(), classes, counts)


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "dice": soft_dice,
    "cross_entropy_dice": cross_entropy_dice,
}


def _known(target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Class ids N x H x W with 0 in place of ignored, and which pixels count (bool N x H x W)."""
    counts = target != ignore_index
    return target.long().masked_fill(~counts, 0), counts


def _cross_entropy(log_p: Tensor, classes: Tensor, counts: Tensor, class_weights: Tensor | None) -> Tensor:
    weights = counts.to(log_p.dtype)
    if class_weights is not None:
        weights = weights * class_weights.to(log_p)[classes]
    per_pixel = log_p.gather(1, classes[:, None])[:, 0]
    return -(per_pixel * weights).sum() / _not_zero(weights.sum())


def _soft_dice(p: Tensor, classes: Tensor, counts: Tensor) -> Tensor:
    num_classes = p.shape[1]
    known = counts.to(p.dtype)
    right = p.gather(1, classes[:, None])[:, 0] * known
    flat = classes.flatten()
    intersection = p.new_zeros(num_classes).index_add(0, flat, right.flatten())
    truth = p.new_zeros(num_classes).index_add(0, flat, known.flatten())
    predicted = torch.einsum("nkhw,nhw->k", p, known)
    present = truth > 0
    dice = 2 * intersection / _not_zero(predicted + truth)
    return ((1 - dice) * present).sum() / _not_zero(present.sum())


def _not_zero(value: Tensor) -> Tensor:
    """1 in place of 0, so that a sum over nothing divided by it is 0 and not NaN."""
    return torch.where(value == 0, torch.ones_like(value), value)
