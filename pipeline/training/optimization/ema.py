"""The exponential moving average of a network's weights, which is what a training run validates and saves.

At a small batch it is clearly better than the weights themselves, and it costs one pass over them a step.
"""

from __future__ import annotations

import copy

import torch
from torch import nn


class EMA:
    """Exponential moving average of a network, its batch-norm statistics included."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        pairs = zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        both = [(mine, theirs.detach()) for mine, theirs in pairs]
        self._floats = [pair for pair in both if pair[0].is_floating_point()]
        self._others = [pair for pair in both if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After `step`; young averages forget faster, so that the random beginning is soon gone."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([m for m, _ in self._floats], [t for _, t in self._floats], 1 - decay)
        for mine, theirs in self._others:
            mine.copy_(theirs)
