"""What the backbones of a DeepLab have in common: five stages one behind the other, each giving a map."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


class StagedBackbone(nn.Module):
    """N x B x H x W -> the maps behind each of `stages`, [C1, C2, C3, C4, C5]; `channels` lists theirs."""

    def __init__(self, stages: Iterable[nn.Module], channels: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.channels = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features
