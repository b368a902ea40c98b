"""A stage that keeps its resolution and sees as far as before: stride traded for dilation."""

from __future__ import annotations

from torch import nn


def dilate(blocks: list[nn.Module], dilation: int) -> None:
    """Trade the stride of a stage for dilation, in place.

    The convolution that had the stride reads the same neighbours as before (half the dilation); those after it stand on
    a grid twice as dense, so they reach `dilation` pixels.
    """
    reach = dilation // 2
    for block in blocks:
        for module in block.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
                strided = module.stride != (1, 1)
                module.stride = (1, 1)
                module.dilation = (reach, reach)
                module.padding = (reach * (module.kernel_size[0] // 2), reach * (module.kernel_size[1] // 2))
                if strided:
                    reach = dilation
