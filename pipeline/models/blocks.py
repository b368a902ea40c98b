"""The blocks that several networks share: convolution + batch norm + ReLU, image pooling, atrous spatial pyramid, head.

Shapes are N x C x H x W; "stride s" means H/s x W/s of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear to the height and width of `like` (N x C x h x w -> N x C x H x W); `x` itself where they agree."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return functional.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def crop(x: Tensor, like: Tensor) -> Tensor:
    """The top left of `x` in the height and width of `like` (N x C x h x w -> N x C x H x W, none larger)."""
    return x[..., : like.shape[-2], : like.shape[-1]]


def upsample(x: Tensor, factor: int, like: Tensor) -> Tensor:
    """Bilinear by a whole factor, then cropped to `like`: a pixel comes to stand where it was pooled from.

    Pooling that keeps the last row of an odd size (`ceil_mode`) leaves a map whose grid reaches beyond the picture;
    stretching it to the picture's size would move everything in it.
    """
    size = [factor * side for side in x.shape[-2:]]
    return crop(functional.interpolate(x, size=size, mode="bilinear", align_corners=False), like)


def zoom(x: Tensor, factor: float, multiple: int = 1) -> Tensor:
    """Bilinear by `factor` (N x C x H x W -> N x C x round(factor H) x round(factor W)), to multiples of `multiple`."""
    size = [multiple * max(1, round(side * factor / multiple)) for side in x.shape[-2:]]
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def check_size(network: nn.Module, size_px: Sequence[int]) -> None:
    """Raises InputError where a picture of `size_px` (height, width) is smaller than `network.smallest_px` a side.

    A network without that attribute takes any size.
    """
    smallest_px = int(getattr(network, "smallest_px", 1))
    if min(size_px) < smallest_px:
        raise InputError(
            f"picture too small for {type(network).__name__}",
            found=f"{size_px[0]}x{size_px[1]}",
            expected=f"{smallest_px} px or more a side",
        )


def check_rates(rates: Sequence[int], count: int | None = None) -> None:
    """Raises InputError unless the dilation rates are integers from 1 up, `count` of them where it is given."""
    whole = all(isinstance(rate, int) and rate >= 1 for rate in rates)
    if not whole or not rates or count not in (None, len(rates)):
        number = {None: "one or more", 3: "three"}.get(count, str(count))
        raise InputError("rates out of range", found=list(rates), expected=f"{number} integers from 1 up")


def check_dropout(dropout: float) -> None:
    """Raises InputError unless `dropout` is a share below 1."""
    if not 0 <= dropout < 1:
        raise InputError("dropout out of range", found=dropout, expected="0 <= dropout < 1")


def scaled(channels: Sequence[int], width: float) -> tuple[int, ...]:
    """`channels` times `width`, none below 1. Raises InputError unless 0 < width <= 4."""
    if not isinstance(width, int | float) or not 0 < width <= 4:
        raise InputError("width out of range", found=width, expected="above 0, at most 4")
    return tuple(max(1, round(width * c)) for c in channels)


class ConvBNReLU(nn.Sequential):
    """k x k convolution without bias, batch norm, ReLU; keeps the size at stride 1."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
    ) -> None:
        convolution = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class SeparableConv(nn.Sequential):
    """3x3 on each channel alone, then 1x1 across them, each with batch norm and ReLU; keeps the size.

    Chen et al. 2018, "Encoder-Decoder with Atrous Separable Convolution", section 3.1.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dilation: int = 1) -> None:
        super().__init__(
            ConvBNReLU(in_channels, in_channels, 3, dilation=dilation, groups=in_channels),
            ConvBNReLU(in_channels, out_channels, 1),
        )


class ImagePooling(nn.Module):
    """Global average pooling and a 1x1 convolution: N x C x H x W -> N x out x 1 x 1.

    A bias instead of batch norm: one value a picture gives no statistics worth keeping at the small batches of a CPU
    worker, and a batch of one picture could not be trained at all.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x.mean(dim=(2, 3), keepdim=True))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al. 2017, "Rethinking Atrous Convolution", section 3.3).

    1x1, one 3x3 per rate and image pooling side by side, concatenated, projected: N x C x H x W -> N x out x H x W.
    `separable` makes the 3x3 depthwise separable.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        rates: Sequence[int] = (6, 12, 18),
        dropout: float = 0.1,
        *,
        separable: bool = False,
    ) -> None:
        super().__init__()
        atrous = SeparableConv if separable else ConvBNReLU
        self.branches = nn.ModuleList([ConvBNReLU(in_channels, out_channels, 1)])
        self.branches.extend(atrous(in_channels, out_channels, dilation=rate) for rate in rates)
        self.pooling = ImagePooling(in_channels, out_channels)
        self.project = ConvBNReLU((len(self.branches) + 1) * out_channels, out_channels, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        context = functional.relu(self.pooling(x)).expand(-1, -1, *x.shape[-2:])
        return self.dropout(self.project(torch.cat([*(branch(x) for branch in self.branches), context], dim=1)))


class FCNHead(nn.Sequential):
    """3x3, dropout and a 1x1 to the classes: N x C x H x W -> logits N x K x H x W."""

    def __init__(self, in_channels: int, hidden_channels: int, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__(
            ConvBNReLU(in_channels, hidden_channels),
            nn.Dropout(dropout),
            nn.Conv2d(hidden_channels, num_classes, kernel_size=1),
        )
