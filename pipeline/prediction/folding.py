"""Batch norm folded into the convolution before it: the same function with fewer passes over memory (inference only).

Which batch norm follows which convolution is seen by running the network once, not by tracing its code, so any module
that runs can be folded. A folded network that does not give the same logits is thrown away.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TOLERANCE = 1e-3  # of the largest logit; rounding alone stays two orders below


def fold_batch_norm(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy of `model` in eval mode with its batch norms folded; `model` itself where that cannot be done.

    `example` is an input (N x B x H x W) on the model's device that the network takes.
    """
    model.eval()
    try:
        folded = copy.deepcopy(model)
        with torch.no_grad():
            expected = model(example)
            for convolution, norm in _pairs(folded, example):
                _fold(folded, convolution, norm)
            difference = (folded(example) - expected).abs().max()
    except Exception:  # a network that cannot be copied, or not take this example, runs as it is
        return model
    return folded if bool(difference <= TOLERANCE * expected.abs().max()) else model


def _pairs(model: nn.Module, example: Tensor) -> list[tuple[nn.Module, nn.BatchNorm2d]]:
    """(convolution, batch norm) where the norm reads the convolution's output and both run once in a forward."""
    made: dict[int, nn.Module] = {}  # id of an output -> its convolution; the outputs are kept, so ids stay unique
    kept: list[Tensor] = []
    pairs: list[tuple[nn.Module, nn.BatchNorm2d]] = []
    calls: dict[nn.Module, int] = {}

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, CONVOLUTIONS):
            made[id(output)] = module
            kept.append(output)
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made and module.running_mean is not None:
            pairs.append((made[id(inputs[0])], module))

    watched = [m for m in model.modules() if isinstance(m, (*CONVOLUTIONS, nn.BatchNorm2d))]
    hooks = [module.register_forward_hook(watch) for module in watched]
    try:
        model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return [(c, n) for c, n in pairs if calls[c] == calls[n] == 1]


def _fold(network: nn.Module, convolution: Any, norm: Any) -> None:
    """Move the norm into the convolution's weights, in place, and put the identity in its stead."""
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
        transpose=getattr(convolution, "transposed", False),
    )
    name = next(name for name, module in network.named_modules() if module is norm)
    network.set_submodule(name, nn.Identity())
