"""`pspnet`: pyramid scene parsing, averages over ever smaller regions beside the features they come from.

Paper: Zhao, Shi, Qi, Wang, Jia, "Pyramid Scene Parsing Network" (2017). New in it: the pyramid pooling module (global
average pooling and averages over 2x2, 3x3 and 6x6 regions), and a second loss on the stage before the last. 178 MiB of
float32 parameters at 21 classes (the PSPNet that the `lightweight` paper compares with).

    N x B x H x W
      encoder    C4 1024 /8   C5 2048 /8                                    (ResNet-50)
      pyramid    averages of C5 over 1x1 | 2x2 | 3x3 | 6x6 regions, each 1x1 -> 512, bilinear to /8
      head       C5 2048 | 4 x 512  -> 3x3 -> 512 /8 -> 1x1 -> K /8 -> bilinear to H x W
      auxiliary  3x3 (C4) -> 256 /8 -> 1x1 -> K /8 -> bilinear to H x W     (training only, `aux_head`)

Departures:
- torchvision's ResNet-50 begins with one 7x7 convolution; the authors' has three 3x3. The paper's best is a ResNet-101.
- The average over the whole picture has a bias instead of batch norm (see blocks.ImagePooling).
- Bilinear upsampling does not align corners.
- `aux_head` is off by default; the paper trains with it, its loss weighted 0.4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.models.backbones import build_backbone
from pipeline.models.blocks import ConvBNReLU, FCNHead, ImagePooling, check_dropout, resize


class PSPNet(nn.Module):
    """N x B x H x W float -> logits N x K x H x W; in training with `aux_head` (logits, auxiliary logits), both so.

    Options: `backbone` resnet50, resnet101 or mobilenet_v2; `output_stride` 8, 16 or 32; `bins`, the regions a side of
    each average; `aux_head`; `dropout` before each last 1x1; `backbone_weights` is None, "imagenet" (downloads) or the
    path or URI of a state dict of torchvision's backbone.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        backbone: str = "resnet50",
        output_stride: int = 8,
        bins: Sequence[int] = (1, 2, 3, 6),
        aux_head: bool = False,
        dropout: float = 0.1,
        backbone_weights: str | None = None,
    ) -> None:
        super().__init__()
        if not bins or not all(isinstance(side, int) and side >= 1 for side in bins):
            raise InputError("bins out of range", found=list(bins), expected="one or more integers from 1 up")
        check_dropout(dropout)
        self.encoder = build_backbone(backbone, in_channels, output_stride=output_stride, weights=backbone_weights)
        *_, before, deep = self.encoder.channels
        self.pyramid = PyramidPooling(deep, bins)
        self.head = FCNHead(self.pyramid.out_channels, 512, num_classes, dropout)
        self.auxiliary = FCNHead(before, 256, num_classes, dropout) if aux_head else None

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        *_, before, deep = self.encoder(x)
        logits = resize(self.head(self.pyramid(deep)), x)
        if self.training and self.auxiliary is not None:
            return logits, resize(self.auxiliary(before), x)
        return logits


class PyramidPooling(nn.Module):
    """N x C x H x W -> N x `out_channels` x H x W: the input beside its averages over `bins` x `bins` regions.

    The averages share C channels between them, so four bins double the width (section 3.2).
    """

    def __init__(self, in_channels: int, bins: Sequence[int]) -> None:
        super().__init__()
        share = max(1, in_channels // len(bins))
        self.bins = tuple(bins)
        self.branches = nn.ModuleList(
            ImagePooling(in_channels, share) if side == 1 else ConvBNReLU(in_channels, share, 1) for side in bins
        )
        self.out_channels = in_channels + len(self.bins) * share

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for side, branch in zip(self.bins, self.branches, strict=True):
            average = functional.relu(branch(functional.adaptive_avg_pool2d(x, side)))  # N x share x side x side
            parts.append(resize(average, x))
        return torch.cat(parts, dim=1)
