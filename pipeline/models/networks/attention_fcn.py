"""`attention_fcn`: VGG16 FCN with strided convolutions for pooling, skips at every level, and channel attention.

Paper: Shen, Sun, "A Deep Learning-Based Image Semantic Segmentation Algorithm" (2022). New in it: each pooling layer of
VGG16 is a convolution of stride 2, so that going down is learned too; an atrous spatial pyramid stands between encoder
and decoder; skips lie over every level of the way down and of the way up; and what a decoder level has fused is weighed
channel by channel by an attention unit (a squeeze-and-excitation of reduction 16).

    N x B x H x W
      VGG16       C1 64 /1   C2 128 /2   C3 256 /4   C4 512 /8   C5 512 /16, a 3x3 of stride 2 behind each
      ASPP        256 /32
      decoder     4x4 transposed x2 + 1x1 (C5) -> attention -> 128 /16; likewise C4 128 /8, C3 64 /4, C2 64 /2, C1 64 /1
      classifier  1x1 -> K at H x W

Departures (the paper is silent, or contradicts itself):
- Five full VGG16 stages hold 14.7 M parameters, nine times the paper's 1.63 M. `width` multiplies every layer's
  channels: 1.0 takes ImageNet weights, "slim" (a quarter) has the paper's size.
- "Skips in the downsampling path" are read as 1x1 shortcuts around each VGG stage, which begin as zero and so leave
  pretrained features as they are; those of the upsampling path bring the stage's map to the decoder level by a 1x1. At
  "slim" both together add 2.3 % of parameters (paper: 1.63 / 1.58 M, 3.2 %).
- Rates 3, 6, 9 (the paper names none): DeepLab's 6, 12, 18 for stride 16, halved for stride 32.
- The widths of ASPP and decoder are chosen so that "slim" meets the published size.
- `batch_norm` (on by default; the paper does not say) in VGG's convolutions: see fcn.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.models.backbones import VGG
from pipeline.models.blocks import ASPP, ConvBNReLU, check_dropout, check_rates, crop, scaled

SLIM = 0.25
CONTEXT = 256
DECODER = (128, 128, 64, 64, 64)  # from stride 16 to stride 1


class AttentionFCN(nn.Module):
    """N x B x H x W float -> logits N x K x H x W.

    Options: `width` multiplies all channels, "slim" is the preset of 1.63 M parameters; `attention` and `skips` switch
    the paper's two ablations; `reduction` of the attention unit; `rates` and `dropout` of the ASPP; `batch_norm` in
    VGG16's convolutions; `backbone_weights` is None, "imagenet" (downloads) or the path or URI of a state dict of
    torchvision's vgg16 or vgg16_bn (width 1 only).
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        width: float | str = 1.0,
        attention: bool = True,
        skips: bool = True,
        reduction: int = 16,
        rates: Sequence[int] = (3, 6, 9),
        dropout: float = 0.1,
        batch_norm: bool = True,
        backbone_weights: str | None = None,
    ) -> None:
        super().__init__()
        if isinstance(width, str) and width != "slim":
            raise InputError("width out of range", found=width, expected='a number or "slim"')
        scale = SLIM if isinstance(width, str) else width
        check_rates(rates)
        if not isinstance(reduction, int) or reduction < 1:
            raise InputError("reduction out of range", found=reduction, expected="an integer from 1 up")
        check_dropout(dropout)
        self.skips = skips
        self.encoder = VGG("vgg16", in_channels, batch_norm=batch_norm, width=scale, weights=backbone_weights)
        stages = self.encoder.channels
        context, *decoder = scaled((CONTEXT, *DECODER), scale)
        self.downs = nn.ModuleList(ConvBNReLU(channels, channels, stride=2) for channels in stages)
        self.aspp = ASPP(stages[-1], context, rates, dropout)
        self.ups = nn.ModuleList(Doubling(a, b) for a, b in pairwise((context, *decoder)))
        self.attentions = nn.ModuleList(
            ChannelAttention(channels, reduction) if attention else nn.Identity() for channels in decoder
        )
        if skips:
            shortcuts = [nn.Conv2d(a, b, kernel_size=1, bias=False) for a, b in pairwise((in_channels, *stages))]
            for shortcut in shortcuts:
                nn.init.zeros_(shortcut.weight)
            self.shortcuts = nn.ModuleList(shortcuts)
            self.laterals = nn.ModuleList(
                nn.Conv2d(a, b, kernel_size=1) for a, b in zip(reversed(stages), decoder, strict=True)
            )
        self.head = nn.Conv2d(decoder[-1], num_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        levels = []  # C1 .. C5
        y = x
        for i, (stage, down) in enumerate(zip(self.encoder.stages, self.downs, strict=True)):
            y = stage(y) + self.shortcuts[i](y) if self.skips else stage(y)
            levels.append(y)
            y = down(y)
        y = self.aspp(y)  # N x 256 x H/32 x W/32
        for i, (level, up, attend) in enumerate(zip(reversed(levels), self.ups, self.attentions, strict=True)):
            y = crop(up(y), level)  # odd sizes: a strided convolution rounds up
            y = attend(functional.relu(y + self.laterals[i](level) if self.skips else y))
        return self.head(y)


class Doubling(nn.Sequential):
    """N x C x H x W -> N x out x 2H x 2W: a transposed convolution and batch norm."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        convolution = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(out_channels))


class ChannelAttention(nn.Module):
    """N x C x H x W -> the same, channel by channel times a factor in 0..1 learned from the channels' averages.

    Global average, two fully connected layers C -> max(1, C // reduction) -> C with ReLU and sigmoid.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        squeeze, excite = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        nn.init.ones_(squeeze.bias)  # active at first: narrow networks have one hidden unit, and a dead one is none
        self.weigh = nn.Sequential(squeeze, nn.ReLU(inplace=True), excite, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(x.mean(dim=(2, 3)))[:, :, None, None]
