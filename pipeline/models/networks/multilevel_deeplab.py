"""`multilevel_deeplab`: DeepLabv3+ whose pyramid reads four levels and whose decoder carries depth into each.

Paper: a thesis, "image semantic segmentation method integrating multi-level feature information", of which only the
abstract is to hand; its base is DeepLabv3+ (Chen et al. 2018, "Encoder-Decoder with Atrous Separable Convolution"). New
in it: each branch of the atrous spatial pyramid reads a level of its own instead of all reading the deepest; a global
average joins them; and the decoder fuses deep features into one shallower level after the other. Its four ablations are
the options `rates`, `channels`, `global_pooling` and `fusion`.

    N x B x H x W
      encoder    C2 /4   C3 /8   C4 /16   C5 /16        (256, 512, 1024, 2048 channels of a ResNet-101)
      pyramid    1x1 (C5) | 3x3 rate 6 (C4) | rate 12 (C3) | rate 18 (C2) | average (C5)   -> 1x1 -> 256 /16
      level C4   fuse 256, 1x1 (C4) -> 3x3 -> 256 /16
      level C3   up, fuse 256, 1x1 (C3) -> 3x3 -> 256 /8
      level C2   up, fuse 256, 1x1 (C2) -> 3x3 -> 256 /4
      head       1x1 -> K /4 -> bilinear to H x W

Departures (the abstract names no backbone, level, rate or width, so these are choices):
- ResNet-101, dilated to output stride 16, as DeepLabv3+ has it; the pyramid reads C2 to C5, the rates grow from deep to
  shallow, and the shallower levels are averaged down to C5's size before their convolution, which costs 1/16 of
  convolving C2 where it stands.
- `fusion`: "add"; "concat" and a 1x1; "gated": a 1x1 on both decides, per pixel and channel, how much of each is kept.
  What is fused is brought to 256 channels first, so the three differ in nothing else.
- Pooled branches have a bias instead of batch norm (see blocks.ImagePooling).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError, nearest
from pipeline.models.backbones import build_backbone
from pipeline.models.blocks import ConvBNReLU, ImagePooling, check_dropout, check_rates, resize

POOLED_LEVELS = {"none": (), "deep": (3,), "every_level": (0, 1, 2, 3)}  # of [C2, C3, C4, C5]


class MultilevelDeepLab(nn.Module):
    """N x B x H x W float -> logits N x K x H x W.

    Options: `backbone` resnet101, resnet50 or mobilenet_v2; `output_stride` 8, 16 or 32; `rates` of the branches on C4,
    C3 and C2; `channels` of every branch and decoder level; `global_pooling` "none", "deep" (C5) or "every_level"
    (C2 to C5, a branch each); `fusion` "add", "concat" or "gated"; `dropout` after the pyramid; `backbone_weights` is
    None, "imagenet" (downloads) or the path or URI of a state dict of torchvision's backbone.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        backbone: str = "resnet101",
        output_stride: int = 16,
        rates: Sequence[int] = (6, 12, 18),
        channels: int = 256,
        global_pooling: str = "deep",
        fusion: str = "concat",
        dropout: float = 0.1,
        backbone_weights: str | None = None,
    ) -> None:
        super().__init__()
        check_rates(rates, count=3)
        if channels < 1:
            raise InputError("channels out of range", found=channels, expected="1 or more")
        check_dropout(dropout)
        for what, found, known in (("global_pooling", global_pooling, POOLED_LEVELS), ("fusion", fusion, FUSIONS)):
            if found not in known:
                raise InputError(
                    f"no {what} {found!r}", expected=", ".join(known), todo=nearest(str(found), known) or None
                )
        self.encoder = build_backbone(backbone, in_channels, output_stride=output_stride, weights=backbone_weights)
        levels = self.encoder.channels[1:]
        self.pyramid = MultilevelPyramid(levels, channels, rates, POOLED_LEVELS[global_pooling])
        self.dropout = nn.Dropout(dropout)
        # C4, C3, C2: the order of the way back up
        self.laterals = nn.ModuleList(ConvBNReLU(level, channels, 1) for level in reversed(levels[:-1]))
        self.fusions = nn.ModuleList(FUSIONS[fusion](channels) for _ in self.laterals)
        self.refinements = nn.ModuleList(ConvBNReLU(channels, channels) for _ in self.laterals)
        self.head = nn.Conv2d(channels, num_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        c2, c3, c4, c5 = self.encoder(x)[1:]
        y = self.dropout(self.pyramid([c2, c3, c4, c5]))  # N x channels x H/16 x W/16
        steps = zip((c4, c3, c2), self.laterals, self.fusions, self.refinements, strict=True)
        for level, lateral, fuse, refine in steps:
            y = refine(fuse(resize(y, level), lateral(level)))  # N x channels, the size of the level
        return resize(self.head(y), x)


class MultilevelPyramid(nn.Module):
    """[C2, C3, C4, C5] -> N x out x the size of C5: a branch a level, and a global average of each in `pooled`."""

    def __init__(self, levels: Sequence[int], out_channels: int, rates: Sequence[int], pooled: Sequence[int]) -> None:
        super().__init__()
        *shallow, deepest = levels
        self.branches = nn.ModuleList(  # rates are listed from C4 down to C2
            ConvBNReLU(channels, out_channels, 3, dilation=rate)
            for channels, rate in zip(shallow, reversed(rates), strict=True)
        )
        self.branches.append(ConvBNReLU(deepest, out_channels, 1))
        self.pooled = tuple(pooled)
        self.poolings = nn.ModuleList(ImagePooling(levels[i], out_channels) for i in pooled)
        self.project = ConvBNReLU((len(levels) + len(self.pooled)) * out_channels, out_channels, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        size = (levels[-1].shape[-2], levels[-1].shape[-1])
        parts = [
            branch(functional.adaptive_avg_pool2d(level, size))
            for branch, level in zip(self.branches, levels, strict=True)
        ]
        for i, pooling in zip(self.pooled, self.poolings, strict=True):
            parts.append(functional.relu(pooling(levels[i])).expand(-1, -1, *size))
        return self.project(torch.cat(parts, dim=1))


class Add(nn.Module):
    """deep, shallow (N x C x H x W each) -> their sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        return deep + shallow


class Concat(nn.Module):
    """deep, shallow (N x C x H x W each) -> both side by side, brought back to C by a 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = ConvBNReLU(2 * channels, channels, 1)

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        return self.project(torch.cat([deep, shallow], dim=1))


class Gated(nn.Module):
    """deep, shallow (N x C x H x W each) -> gate * deep + (1 - gate) * shallow, the gate seeing both."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Conv2d(2 * channels, channels, kernel_size=1)

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        gate = self.gate(torch.cat([deep, shallow], dim=1)).sigmoid()
        return shallow + gate * (deep - shallow)


FUSIONS: dict[str, type[Add | Concat | Gated]] = {"add": Add, "concat": Concat, "gated": Gated}
