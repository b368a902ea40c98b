"""`espnetv2`: a network of extremely efficient spatial pyramids (EESP), depthwise and dilated throughout.

Paper: Mehta, Rastegari, Shapiro, Hajishirzi, "ESPNetv2: A Light-weight, Power Efficient, and General Purpose
Convolutional Neural Network" (2019). New in it: a unit that reduces by a grouped 1x1, looks at four dilations with
depthwise 3x3, adds each branch to the next so that dilation leaves no grid (hierarchical feature fusion), and merges by
one grouped 1x1; downsampling that keeps an average beside the convolution and adds the picture itself at every level.

    N x B x H x W                                                        (channels at width 2)
      encoder   3x3 32 /2 -> down 128 /4 -> down 256 /8, 3 EESP -> down 512 /16, 7 EESP
      level 3   up, 1x1 256 /8 | 256 /8 -> EESP 256 -> pyramid pooling -> 1x1 -> K /8
      level 2   up K /4 | 128 /4 -> 1x1 -> K /4
      level 1   up K /2 |  32 /2 -> 1x1 -> K /2 -> bilinear to H x W

Departures:
- This is the ESPNetv2 of the paper and of its authors' segmentation code; the DiCE units and the CSPN decoder of their
  later repository (DiCENet, EdgeNets) are not here.
- torchvision has no ESPNetv2, so `backbone_weights` takes a state dict of this encoder only, and "imagenet" is refused.
- The fifth stage of the classification network is left out, as in the authors' segmentation code.
- Bilinear upsampling does not align corners.
- The batch norm of a hierarchical sum follows no single convolution, so fold.py leaves it where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.models.backbones import load_weights
from pipeline.models.blocks import check_dropout, resize
from pipeline.models.weights_file import read_state_dict

WIDTHS = (0.5, 1.0, 1.25, 1.5, 2.0)  # the paper's; each keeps every group of every convolution whole
GROUPS = 4  # of the 1x1 convolutions, and branches of a unit (K in the paper)


class ESPNetV2(nn.Module):
    """N x B x H x W float -> logits N x K x H x W; in training with `aux_head` (logits, those of level 3), both so.

    Options: `width` 0.5, 1.0, 1.25, 1.5 or 2.0; `aux_head`; `dropout` of whole channels before the logits of levels 3
    and 1; `backbone_weights` is None or the path or URI of a state dict of the encoder.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        width: float = 2.0,
        aux_head: bool = False,
        dropout: float = 0.2,
        backbone_weights: str | None = None,
    ) -> None:
        super().__init__()
        check_dropout(dropout)
        self.encoder = ESPNetV2Encoder(in_channels, width)
        at_2, at_4, at_8, at_16 = self.encoder.channels
        self.project_16 = ConvBNPReLU(at_16, at_8, 1)
        self.pyramid = nn.Sequential(EESP(2 * at_8, at_8, rates=(1, 1, 2, 3)), EfficientPyramidPooling(at_8))
        self.logits_8 = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(at_8, num_classes, 1, bias=False))
        self.activate_8 = nn.Sequential(nn.BatchNorm2d(num_classes), nn.PReLU(num_classes))
        self.merge_4 = ConvBNPReLU(at_4 + num_classes, num_classes, 1)
        self.head = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(at_2 + num_classes, num_classes, 1))
        self.aux_head = aux_head
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if backbone_weights == "imagenet":
            raise InputError("torchvision has no ImageNet weights of ESPNetv2", expected="None or a state dict's path")
        if backbone_weights is not None:
            load_weights(self.encoder, read_state_dict(backbone_weights), where=backbone_weights)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        at_2, at_4, at_8, at_16 = self.encoder(x)
        y = resize(self.project_16(at_16), at_8)
        logits_8 = self.logits_8(self.pyramid(torch.cat([at_8, y], dim=1)))  # N x K x H/8 x W/8
        y = self.activate_8(logits_8)
        y = self.merge_4(torch.cat([at_4, resize(y, at_4)], dim=1))  # N x K x H/4 x W/4
        logits = resize(self.head(torch.cat([at_2, resize(y, at_2)], dim=1)), x)
        if self.training and self.aux_head:
            return logits, resize(logits_8, x)
        return logits


class ESPNetV2Encoder(nn.Module):
    """N x B x H x W -> four maps at strides 2, 4, 8, 16; `channels` lists theirs (table 1 of the paper, to level 4)."""

    def __init__(self, in_channels: int = 3, width: float = 2.0) -> None:
        super().__init__()
        if width not in WIDTHS:
            raise InputError("width out of range", found=width, expected=", ".join(map(str, WIDTHS)))
        base = int(32 * width)
        self.channels = (min(base, 32), 2 * base, 4 * base, 8 * base)
        at_2, at_4, at_8, at_16 = self.channels
        self.stem = ConvBNPReLU(in_channels, at_2, 3, stride=2)
        self.down_4 = Downsampling(at_2, at_4, in_channels)
        self.down_8 = Downsampling(at_4, at_8, in_channels)
        self.stage_8 = nn.Sequential(*(EESP(at_8, at_8, rates=(1, 2, 3, 4)) for _ in range(3)))
        self.down_16 = Downsampling(at_8, at_16, in_channels)
        self.stage_16 = nn.Sequential(*(EESP(at_16, at_16, rates=(1, 1, 2, 3)) for _ in range(7)))

    def forward(self, x: Tensor) -> list[Tensor]:
        pictures = [x]  # at strides 1, 2, 4, 8, 16
        for _ in range(4):
            pictures.append(functional.avg_pool2d(pictures[-1], 3, stride=2, padding=1))
        at_2 = self.stem(x)
        at_4 = self.down_4(at_2, pictures[2])
        at_8 = self.stage_8(self.down_8(at_4, pictures[3]))
        at_16 = self.stage_16(self.down_16(at_8, pictures[4]))
        return [at_2, at_4, at_8, at_16]


class EESP(nn.Module):
    """Reduce, split, transform, merge: N x C x H x W -> N x out x H x W, half the size at stride 2 (figure 1c).

    `rates` are the branches' dilations. At stride 1 and C = out the input is added. `activated=False` leaves the last
    PReLU to the caller.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, rates: Sequence[int], stride: int = 1, activated: bool = True
    ) -> None:
        super().__init__()
        branch = out_channels // GROUPS
        self.reduce = ConvBNPReLU(in_channels, branch, 1, groups=GROUPS)
        self.branches = nn.ModuleList(
            nn.Conv2d(branch, branch, 3, stride, padding=rate, dilation=rate, groups=branch, bias=False)
            for rate in rates
        )
        self.activate = nn.Sequential(nn.BatchNorm2d(out_channels), nn.PReLU(out_channels))
        self.merge = nn.Sequential(
            nn.Conv2d(out_channels, out_channels, 1, groups=GROUPS, bias=False), nn.BatchNorm2d(out_channels)
        )
        self.residual = stride == 1 and in_channels == out_channels
        self.last = nn.PReLU(out_channels) if activated else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        sums = accumulate(branch(reduced) for branch in self.branches)  # hierarchical feature fusion
        y = self.merge(self.activate(torch.cat(list(sums), dim=1)))
        return self.last(y + x if self.residual else y)


class Downsampling(nn.Module):
    """N x C x H x W -> N x out x H/2 x W/2: strided EESP beside an average, plus the picture that small (figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, bands: int) -> None:
        super().__init__()
        self.eesp = EESP(in_channels, out_channels - in_channels, rates=(1, 2, 3, 4), stride=2, activated=False)
        self.picture = nn.Sequential(
            ConvBNPReLU(bands, bands, 3), nn.Conv2d(bands, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
        )
        self.activate = nn.PReLU(out_channels)

    def forward(self, x: Tensor, picture: Tensor) -> Tensor:
        average = functional.avg_pool2d(x, 3, stride=2, padding=1)
        return self.activate(torch.cat([average, self.eesp(x)], dim=1) + self.picture(picture))


class EfficientPyramidPooling(nn.Module):
    """N x C x H x W -> the same: depthwise 3x3 on averages at 1/2, 1/4, 1/8 and 1/16 of the size, beside the input."""

    def __init__(self, channels: int, levels: int = 4) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False) for _ in range(levels)
        )
        self.project = ConvBNPReLU((levels + 1) * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts, average = [x], x
        for branch in self.branches:
            average = functional.avg_pool2d(average, 3, stride=2, padding=1)
            parts.append(resize(branch(average), x))
        return self.project(torch.cat(parts, dim=1))


class ConvBNPReLU(nn.Sequential):
    """k x k convolution without bias, batch norm, a PReLU a channel; keeps the size at stride 1."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(
            nn.Conv2d(
                in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
            ),
            nn.BatchNorm2d(out_channels),
            nn.PReLU(out_channels),
        )
