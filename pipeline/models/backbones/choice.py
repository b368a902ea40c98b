"""The backbones that a DeepLab can choose from, by name."""

from __future__ import annotations

from pipeline.errors import InputError, nearest
from pipeline.models.backbones.mobilenet_v2 import MobileNetV2
from pipeline.models.backbones.resnet import RESNETS, ResNet
from pipeline.models.backbones.staged import StagedBackbone

BACKBONES = ("resnet101", "resnet50", "mobilenet_v2")


def build_backbone(
    name: str, in_channels: int = 3, *, output_stride: int = 16, weights: str | None = None
) -> StagedBackbone:
    """N x B x H x W -> [C1, C2, C3, C4, C5], with their `channels`. Raises InputError for a name not in BACKBONES."""
    if name not in BACKBONES:
        raise InputError(f"no backbone {name!r}", expected=", ".join(BACKBONES), todo=nearest(name, BACKBONES) or None)
    if name in RESNETS:
        return ResNet(name, in_channels, output_stride=output_stride, weights=weights)
    return MobileNetV2(in_channels, output_stride=output_stride, weights=weights)
