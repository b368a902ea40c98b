"""How pixels of any type become what a network is fed: the one place, for training and for prediction.

value x scale + offset, clipped to 0..1 (where a scaling says so), then (x - mean) / std, band by band; what is not
valid is the mean, 0 after that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.models.spec import ModelSpec


class Normalization:
    """N x H x W x B of any type -> N x B x H x W float32, channels last in memory."""

    def __init__(self, spec: ModelSpec, device: torch.device | str) -> None:
        def column(numbers: tuple[float, ...]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.float32, device=device)[:, None, None]

        self._mean, std = column(spec.mean), column(spec.std)
        self._factor, self._shift = 1 / (spec.scale * std), -self._mean / std
        self._scaling: tuple[Tensor, Tensor] | None = None
        if spec.scaling is not None:
            self._scaling = column(spec.scaling.scales), column(spec.scaling.offsets)
            self._factor = 1 / std
        self._clips = spec.scaling is not None and spec.scaling.clips

    def __call__(self, pixels: Tensor, valid: Tensor | None = None) -> Tensor:
        """`valid` is N x H x W bool; None = all are."""
        x = pixels.permute(0, 3, 1, 2).to(torch.float32)
        if self._scaling is not None:
            x = x.mul(self._scaling[0]).add_(self._scaling[1])
            if self._clips:
                x = x.clamp_(0, 1)
        x = x.mul(self._factor) if x.dtype == pixels.dtype else x.mul_(self._factor)
        x = x.add_(self._shift)
        return x if valid is None else torch.where(valid[:, None], x, 0.0)
