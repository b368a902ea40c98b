"""MobileNetV2 as a backbone (Sandler et al. 2018, "Inverted Residuals and Linear Bottlenecks")."""

from __future__ import annotations

from torch import nn

from pipeline.errors import InputError
from pipeline.models.backbones.dilation import dilate
from pipeline.models.backbones.staged import StagedBackbone
from pipeline.models.backbones.weights import classifier


class MobileNetV2(StagedBackbone):
    """MobileNetV2 without pooling and classifier (Sandler et al. 2018): N x B x H x W -> [C1, C2, C3, C4, C5].

    Channels 16, 24, 32, 96, 320 (1280 for C5 with `last_conv`), `channels` lists them.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        output_stride: int = 16,
        weights: str | None = None,
        last_conv: bool = False,
    ) -> None:
        if output_stride not in (8, 16, 32):
            raise InputError("output_stride out of range", found=output_stride, expected="8, 16 or 32")
        network = classifier("mobilenet_v2", weights, in_channels)
        features = list(network.features)
        stem, blocks, last = features[:2], features[2:18], features[18:]
        # strides after each stage: 2 (stem, 16), 4 (24), 8 (32), 16 (64, 96), 32 (160, 320)
        stages = [stem, blocks[:2], blocks[2:5], blocks[5:12], blocks[12:]]
        if output_stride == 8:
            dilate(stages[3], 2)
            dilate(stages[4], 4)
        elif output_stride == 16:
            dilate(stages[4], 2)
        if last_conv:
            stages[4] = [*stages[4], *last]
        super().__init__(
            (nn.Sequential(*stage) for stage in stages), channels=(16, 24, 32, 96, 1280 if last_conv else 320)
        )
