"""What training makes small: cross-entropy, soft Dice, their sum, focal, OHEM. Ignored pixels count nowhere.

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
    al. 2016, without their squares, extended to many classes). `class_weights` is taken and not used: the
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


def focal(
    logits: Tensor,
    target: Tensor,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
    gamma: float = 2.0,
) -> Tensor:
    """Mean of -(1 - p)^gamma log p, p of the truth: pixels that are right already weigh little.

    Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5, with softmax for sigmoid and `class_weights`
    for alpha. The mean is over all pixels that count, each by its class's weight, so gamma 0 is cross-entropy.
    """
    log_p = functional.log_softmax(logits.float(), dim=1)
    classes, counts = _known(target, ignore_index)
    weights = _pixel_weights(log_p, classes, counts, class_weights)
    of_truth = log_p.gather(1, classes[:, None])[:, 0]
    # from log p: (1 - p)^gamma has no gradient of its own to speak of at p = 1, and none that is infinite
    modulation = (-torch.expm1(of_truth)).clamp_min(1e-12) ** gamma
    return -(modulation * of_truth * weights).sum() / _not_zero(weights.sum())


def ohem_cross_entropy(
    logits: Tensor,
    target: Tensor,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
    threshold: float = 0.7,
    least_share: float = 1 / 16,
) -> Tensor:
    """Cross-entropy over the hard pixels alone: those whose truth has p < `threshold`.

    Where fewer than `least_share` of the pixels that count are that hard, the hardest so many are taken (online hard
    example mining: Shrivastava et al. 2016; for pixels as in BiSeNet, Yu et al. 2018, section 4.1).
    """
    log_p = functional.log_softmax(logits.float(), dim=1)
    classes, counts = _known(target, ignore_index)
    of_truth = log_p.detach().gather(1, classes[:, None])[:, 0]
    hardness = torch.where(counts, -of_truth, -torch.inf).flatten()
    least = (counts.sum() * least_share).ceil().long().clamp(min=1)
    # the `least`-th hardest pixel: a sort, so that nothing waits for the device
    bound = hardness.sort(descending=True).values[least - 1]
    hard = hardness.view_as(counts) >= torch.minimum(bound, -torch.tensor(threshold).log().to(bound))
    return _cross_entropy(log_p, classes, counts & hard, class_weights)


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "dice": soft_dice,
    "cross_entropy_dice": cross_entropy_dice,
    "focal": focal,
    "ohem_cross_entropy": ohem_cross_entropy,
}


def with_auxiliary(
    loss: Loss,
    logits: Tensor | tuple[Tensor, ...],
    target: Tensor,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
    *,
    weight: float = 0.4,
) -> Tensor:
    """`loss` of the logits, and of each auxiliary head `weight` times its own (PSPNet, Zhao et al. 2017, section 3.3).

    `logits` is what a network gives in training: a tensor, or (logits, auxiliary logits, ...) of one shape.
    """
    main, *auxiliary = logits if isinstance(logits, tuple) else (logits,)
    total = loss(main, target, class_weights, ignore_index)
    for head in auxiliary:
        total = total + weight * loss(head, target, class_weights, ignore_index)
    return total


def _known(target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Class ids N x H x W with 0 in place of ignored, and which pixels count (bool N x H x W)."""
    counts = target != ignore_index
    return target.long().masked_fill(~counts, 0), counts


def _cross_entropy(log_p: Tensor, classes: Tensor, counts: Tensor, class_weights: Tensor | None) -> Tensor:
    weights = _pixel_weights(log_p, classes, counts, class_weights)
    of_truth = log_p.gather(1, classes[:, None])[:, 0]
    return -(of_truth * weights).sum() / _not_zero(weights.sum())


def _pixel_weights(log_p: Tensor, classes: Tensor, counts: Tensor, class_weights: Tensor | None) -> Tensor:
    weights = counts.to(log_p.dtype)
    return weights if class_weights is None else weights * class_weights.to(log_p)[classes]


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
