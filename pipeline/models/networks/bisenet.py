"""`bisenet`: two paths, one that keeps the picture's detail and one that sees far.

Paper: Yu, Wang, Peng, Gao, Yu, Sang, "BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation"
(2018). New in it: a shallow spatial path beside a fast backbone (context path) whose two last stages pass attention
refinement, and a feature fusion module that joins features of such different levels.

    N x B x H x W
      spatial    7x7 64 /2 -> 3x3 64 /4 -> 3x3 64 /8 -> 1x1 128 /8
      encoder    C4 256 /16   C5 512 /32                                    (ResNet-18)
      context    refined C5 + average of C5  128 /32 -> up, 3x3 -> 128 /16
                 refined C4 + that           128 /16 -> up, 3x3 -> 128 /8
      fusion     spatial 128 | context 128 -> 1x1 256 /8, reweighted by its own average
      head       3x3 -> 256 /8 -> 1x1 -> K /8 -> bilinear to H x W
      auxiliary  3x3 -> 64 -> 1x1 -> K of the context at /8 and at /16      (training only, `aux_head`)

Departures (the paper prints no widths; 64 and 128 and the 3x3 after each upsampling are those of the authors' code):
- The attention's 1x1 on a pooled map has a bias instead of batch norm, and so has the average (see
  blocks.ImagePooling).
- `aux_head` is off by default; the paper trains with both heads, their losses weighted 1.
- Its Xception39 is not here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError, nearest
from pipeline.models.backbones import ResNet
from pipeline.models.blocks import ConvBNReLU, FCNHead, ImagePooling, resize

CONTEXT_PATHS = ("resnet18", "resnet34", "resnet50", "resnet101")


class BiSeNet(nn.Module):
    """N x B x H x W float -> logits N x K x H x W; in training with `aux_head` (logits, two auxiliary logits), all so.

    Options: `backbone` resnet18, resnet34, resnet50 or resnet101; `aux_head`; `backbone_weights` is None, "imagenet"
    (downloads) or the path or URI of a state dict of torchvision's backbone.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        backbone: str = "resnet18",
        aux_head: bool = False,
        backbone_weights: str | None = None,
    ) -> None:
        super().__init__()
        if backbone not in CONTEXT_PATHS:
            raise InputError(
                f"no backbone {backbone!r}",
                expected=", ".join(CONTEXT_PATHS),
                todo=nearest(str(backbone), CONTEXT_PATHS) or None,
            )
        self.encoder = ResNet(backbone, in_channels, weights=backbone_weights)
        *_, at_16, at_32 = self.encoder.channels
        self.spatial = nn.Sequential(
            ConvBNReLU(in_channels, 64, 7, stride=2),
            ConvBNReLU(64, 64, stride=2),
            ConvBNReLU(64, 64, stride=2),
            ConvBNReLU(64, 128, 1),
        )
        self.average = ImagePooling(at_32, 128)
        self.attention_32 = AttentionRefinement(at_32, 128)
        self.attention_16 = AttentionRefinement(at_16, 128)
        self.refine_16 = ConvBNReLU(128, 128)
        self.refine_8 = ConvBNReLU(128, 128)
        self.fusion = FeatureFusion(128 + 128, 256)
        self.head = FCNHead(256, 256, num_classes, dropout=0.0)
        self.auxiliary = nn.ModuleList(FCNHead(128, 64, num_classes, dropout=0.0) for _ in range(2 * aux_head))

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        *_, at_16, at_32 = self.encoder(x)
        detail = self.spatial(x)  # N x 128 x H/8 x W/8
        y = self.attention_32(at_32) + functional.relu(self.average(at_32))
        context_16 = self.refine_16(resize(y, at_16))  # N x 128 x H/16 x W/16
        y = self.attention_16(at_16) + context_16
        context_8 = self.refine_8(resize(y, detail))  # N x 128 x H/8 x W/8
        logits = resize(self.head(self.fusion(detail, context_8)), x)
        if self.training and self.auxiliary:
            contexts = zip(self.auxiliary, (context_8, context_16), strict=True)
            return logits, *(resize(head(context), x) for head, context in contexts)
        return logits


class AttentionRefinement(nn.Module):
    """N x C x H x W -> N x out x H x W: 3x3, its channels weighed by their own global average (section 3.2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = ConvBNReLU(in_channels, out_channels)
        self.attention = ImagePooling(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * self.attention(y).sigmoid()


class FeatureFusion(nn.Module):
    """Two maps of one size, C channels together -> N x out x H x W: 1x1, y + y times its attention (section 3.3)."""

    def __init__(self, in_channels: int, out_channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.conv = ConvBNReLU(in_channels, out_channels, 1)
        self.attention = nn.Sequential(
            ImagePooling(out_channels, out_channels // reduction),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels // reduction, out_channels, kernel_size=1),
        )

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        y = self.conv(torch.cat([spatial, context], dim=1))
        return y + y * self.attention(y).sigmoid()
