"""The convolutions behind a network's encoder, and which of its levels each one reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Convolution:
    """One call of a convolution behind the encoder, for an input of 128 x 192."""

    levels: tuple[str, ...]  # of C1..C5, those that its output depends on
    kernel: int
    dilation: int
    size: tuple[int, int]
    groups: int
    channels: int  # out


def behind_the_encoder(network: nn.Module) -> list[Convolution]:
    """Every convolution behind `network.encoder` in the order of their calls, and the levels a gradient reaches."""
    levels: list[torch.Tensor] = []
    calls: list[tuple[nn.Conv2d, torch.Tensor]] = []

    def cut(module: nn.Module, inputs: Any, outputs: list[torch.Tensor]) -> list[torch.Tensor]:
        levels.extend(output.detach().requires_grad_() for output in outputs)
        return list(levels)

    inner = set(network.encoder.modules())
    network.encoder.register_forward_hook(cut)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module not in inner:
            module.register_forward_hook(lambda module, inputs, output: calls.append((module, output)))
    network.eval()(torch.rand(1, 3, 128, 192))
    found = []
    for module, output in calls:
        gradients = torch.autograd.grad(output.sum(), levels, retain_graph=True, allow_unused=True)
        reached = tuple(f"C{i}" for i, g in enumerate(gradients, start=1) if g is not None and g.any())
        size = (output.shape[-2], output.shape[-1])
        kernel, dilation = module.kernel_size[0], module.dilation[0]
        found.append(Convolution(reached, kernel, dilation, size, module.groups, module.out_channels))
    return found
