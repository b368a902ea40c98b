"""Convolutions by oneDNN, their weights kept in the order in which it reads them (inference in float32, x86 CPUs).

torch leaves 1 x 1 convolutions in one thread to its BLAS (`use_mkldnn` in its Convolution.cpp), which takes far longer
on AMD's processors, and reorders the weights of the others at every call. docs/performance.md has what this gains. The
operators are those that torch.compile puts in the place of a frozen network's convolutions.
"""

from __future__ import annotations

import copy
import platform
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.prediction.folding import TOLERANCE
from pipeline.runtime.process import MIB

MOST_BYTES = 64 * MIB  # of a convolution's weights: they are kept twice

mkldnn = torch.ops.mkldnn


class PackedConv2d(nn.Module):
    """What a `Conv2d` gives, N x C x H x W float32 each way."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = convolution.weight, convolution.bias
        self._geometry = (convolution.padding, convolution.stride, convolution.dilation, convolution.groups)
        self._packed: Any = None  # not a buffer: such a tensor is neither saved nor moved
        self._packed_for: tuple[torch.Size, int] | None = None

    def forward(self, x: Tensor) -> Tensor:
        # The best order depends on both, and another one takes up to twice as long. Shapes change seldom, and packing
        # costs what torch would spend at every call; kept by shape alone, no mask depends on what was seen before it
        shape_and_threads = (x.shape, torch.get_num_threads())
        if self._packed_for != shape_and_threads:
            self._packed = mkldnn._reorder_convolution_weight(self.weight, *self._geometry, list(x.shape))
            self._packed_for = shape_and_threads
        found: Tensor = mkldnn._convolution_pointwise(x, self._packed, self.bias, *self._geometry, "none", [], "")
        return found


def pack_convolutions(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy of `model` in eval mode with its convolutions packed; `model` itself where that cannot be done.

    `example` is an input (N x B x H x W) that the network takes. Weights are shared with `model`.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return model
    try:
        with torch.no_grad():
            packed = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
            for name, module in list(packed.named_modules()):
                if _packable(module):
                    packed.set_submodule(name, PackedConv2d(module))
            expected = model(example)
            difference = (packed(example) - expected).abs().max()
    except Exception:  # a network that cannot be copied, or not take this example, runs as it is
        return model
    return packed if bool(difference <= TOLERANCE * expected.abs().max()) else model


def _packable(module: nn.Module) -> bool:
    """Whether a module is a plain `Conv2d`: no subclass, and without hooks."""
    return (
        type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.weight.dtype is torch.float32
        and module.weight.nbytes <= MOST_BYTES
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )
