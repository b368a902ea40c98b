"""`lightweight`: MobileNetV2 DeepLab with feature enhancement and multi-level fusion.

Paper: Huo, Wang, Liu, Li, "Lightweight Semantic Segmentation Algorithm Based on Multi-level Feature Fusion" (2023).
New in it: the low-level features of two backbone stages pass a feature enhancement (FE: local edges beside global
position) before they meet the context of the ASPP in a decoder with one refinement per level. 23.2 MiB of float32
parameters at 21 classes.

    N x B x H x W
      MobileNetV2   C2 24 /4    C3 32 /8    C5 320 /16
      ASPP                                  256 /16
      level 1       up 256 /8  | FE(C3) 128 /8  -> 3x3 -> 256 /8
      level 2       up 256 /4  | FE(C2)  64 /4  -> 3x3 -> 160 /4
      head          1x1 -> K /4 -> bilinear to H x W

Departures (the paper is silent, or contradicts itself):
- FE reads the 24 channels at stride 4 and the 32 at stride 8; the paper names no stages.
- ASPP reads the 320-channel stage: behind the 1x1 to 1280 of the paper's table the network would weigh 51 MiB, not its
  23.2 (`last_conv=True` keeps the 1280).
- Output stride 16 where the paper's table ends at 32 (`output_stride`).
- FE's two branches are fused by gating: the global one weighs the channels of the local one.
- The widths (3x3 of 96 and 384 channels in FE, 256 and 160 in the levels) are chosen so that the published size is met
  and the stride-4 level, where a weight costs four times what it costs at stride 8, stays cheap.
- `input_zoom` (1 by default): the network looks at an enlarged input, where pictures are small and classes thin.
- Pooled branches have a bias instead of batch norm (see blocks.ImagePooling).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.models.backbones import MobileNetV2
from pipeline.models.blocks import ASPP, ConvBNReLU, ImagePooling, check_dropout, check_rates, resize, zoom


class Lightweight(nn.Module):
    """N x B x H x W float -> logits N x K x H x W.

    Options: `output_stride` 8, 16 or 32; `rates` of the ASPP; `feature_enhancement=False` replaces FE by a 1x1 (the
    paper's ablation); `last_conv=True` keeps the 1280-channel 1x1; `dropout` after the ASPP; `input_zoom` enlarges the
    input before the encoder (time and memory grow with its square); `backbone_weights` is None, "imagenet" (downloads)
    or the path or URI of a state dict of torchvision's MobileNetV2.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        output_stride: int = 16,
        rates: Sequence[int] = (6, 12, 18),
        feature_enhancement: bool = True,
        last_conv: bool = False,
        dropout: float = 0.1,
        input_zoom: float = 1.0,
        backbone_weights: str | None = None,
    ) -> None:
        super().__init__()
        check_rates(rates)
        check_dropout(dropout)
        if not 0.25 <= input_zoom <= 4:
            raise InputError("input_zoom out of range", found=input_zoom, expected="0.25 to 4")
        self.input_zoom = float(input_zoom)
        self.encoder = MobileNetV2(
            in_channels, output_stride=output_stride, weights=backbone_weights, last_conv=last_conv
        )
        _, at_4, at_8, _, deep = self.encoder.channels
        self.aspp = ASPP(deep, 256, rates, dropout)
        if feature_enhancement:
            self.enhance_8: nn.Module = FeatureEnhancement(at_8, 384, 128)
            self.enhance_4: nn.Module = FeatureEnhancement(at_4, 96, 64)
        else:
            self.enhance_8 = ConvBNReLU(at_8, 128, 1)
            self.enhance_4 = ConvBNReLU(at_4, 64, 1)
        self.refine_8 = ConvBNReLU(256 + 128, 256)
        self.refine_4 = ConvBNReLU(256 + 64, 160)
        self.head = nn.Conv2d(160, num_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        enlarged = x if self.input_zoom == 1 else zoom(x, self.input_zoom)
        _, at_4, at_8, _, deep = self.encoder(enlarged)
        y = self.aspp(deep)  # N x 256 x H/16 x W/16
        y = self.refine_8(torch.cat([resize(y, at_8), self.enhance_8(at_8)], dim=1))  # N x 256 x H/8 x W/8
        y = self.refine_4(torch.cat([resize(y, at_4), self.enhance_4(at_4)], dim=1))  # N x 160 x H/4 x W/4
        return resize(self.head(y), x)


class FeatureEnhancement(nn.Module):
    """N x C x H x W -> N x out x H x W: 3x3 (local edges) and 1x1 to fewer channels, gated by the global average."""

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__()
        self.local = nn.Sequential(
            ConvBNReLU(in_channels, hidden_channels), ConvBNReLU(hidden_channels, out_channels, 1)
        )
        self.position = ImagePooling(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.local(x) * self.position(x).sigmoid()
