"""Test-time augmentation: a network that looks at a picture several times, mirrored and zoomed, and averages.

What is averaged is the softmax of each view, brought back to the picture's own place and size (as in DeepLab, Chen et
al. 2018, section 4.1, "multi-scale inputs and left-right flipping").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.models.blocks import resize, zoom


class Views(nn.Module):
    """N x B x H x W -> N x K x H x W, the logarithm of the mean softmax: its own softmax is that mean.

    `scales` are factors of height and width; with `flip` each is also seen mirrored left to right. Takes
    len(scales) * (1 + flip) forward passes. Zoomed sides are multiples of `multiple`, which the input's are. Raises
    InputError for a scale out of range.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        *,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        multiple: int = 1,
    ) -> None:
        super().__init__()
        if not scales or min(scales) < 0.25 or max(scales) > 4:
            raise InputError("scales of the views out of range", found=list(scales), expected="one or more, 0.25 to 4")
        self.multiple = multiple
        self.network, self.flip, self.scales = network, flip, tuple(float(scale) for scale in scales)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor | None = None
        for scale in self.scales:
            seen = x if scale == 1 else zoom(x, scale, self.multiple)
            for mirrored in (False, True)[: 1 + self.flip]:
                logits = self.network(seen.flip(-1) if mirrored else seen)
                softmax = resize(logits.float().softmax(dim=1), x)
                softmax = softmax.flip(-1) if mirrored else softmax
                total = softmax if total is None else total + softmax
        assert total is not None
        return (total / (len(self.scales) * (1 + self.flip))).clamp_min(torch.finfo(total.dtype).tiny).log()
