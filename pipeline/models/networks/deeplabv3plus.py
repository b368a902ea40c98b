"""`deeplabv3plus`: DeepLabv3+, atrous separable convolutions and a small decoder.

Paper: Chen, Zhu, Papandreou, Schroff, Adam, "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
Segmentation" (2018), as the survey "Image semantic segmentation based on deep networks" (2019) restates it. New in it:
the 3x3 convolutions of the atrous spatial pyramid are depthwise separable, and a decoder of one step adds edges.

    N x B x H x W
      encoder    C2 /4   C5 /16                            (256, 2048 channels of a ResNet-101)
      ASPP       1x1 | separable 3x3 rates 6, 12, 18 | average   -> 1x1 -> 256 /16
      decoder    up 256 /4 | 1x1 (C2) 48 /4   -> 2 x separable 3x3 -> 256 /4
      head       1x1 -> K /4 -> bilinear to H x W

Departures:
- The survey prints rates 6, 8, 12; the default is the original network's 6, 12, 18 (`rates`).
- ResNet-101 is torchvision's, a single 7x7 first; the paper's own best figures are of a modified Xception.
- The last stage is dilated by one rate, without the multi-grid of DeepLabv3.
- The pooled branch has a bias instead of batch norm (see blocks.ImagePooling).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.models.backbones import build_backbone
from pipeline.models.blocks import ASPP, ConvBNReLU, SeparableConv, check_dropout, check_rates, resize


class DeepLabV3Plus(nn.Module):
    """N x B x H x W float -> logits N x K x H x W.

    Options: `backbone` resnet101, resnet50 or mobilenet_v2; `output_stride` 8, 16 or 32 (the paper doubles `rates` at
    8); `rates` of the ASPP; `dropout` after it; `backbone_weights` is None, "imagenet" (downloads) or the path or URI
    of a state dict of torchvision's backbone.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        backbone: str = "resnet101",
        output_stride: int = 16,
        rates: Sequence[int] = (6, 12, 18),
        dropout: float = 0.1,
        backbone_weights: str | None = None,
    ) -> None:
        super().__init__()
        check_rates(rates)
        check_dropout(dropout)
        self.encoder = build_backbone(backbone, in_channels, output_stride=output_stride, weights=backbone_weights)
        _, at_4, _, _, deep = self.encoder.channels
        self.aspp = ASPP(deep, 256, rates, dropout, separable=True)
        self.low_level = ConvBNReLU(at_4, 48, 1)
        self.refine = nn.Sequential(SeparableConv(256 + 48, 256), SeparableConv(256, 256))
        self.head = nn.Conv2d(256, num_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        _, at_4, _, _, deep = self.encoder(x)
        y = self.aspp(deep)  # N x 256 x H/16 x W/16
        y = self.refine(torch.cat([resize(y, at_4), self.low_level(at_4)], dim=1))  # N x 256 x H/4 x W/4
        return resize(self.head(y), x)
