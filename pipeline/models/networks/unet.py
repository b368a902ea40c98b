"""`unet`: the U-shaped network, with its own encoder or VGG16's.

Paper: Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation" (2015). New in it:
a way up as rich as the way down, each level concatenating the map that the way down had at its size; no fully connected
layer, so a picture of any size.

    N x B x H x W
      encoder     64 /1   128 /2   256 /4   512 /8   1024 /16    (plain: twice 3x3 each, 2x2 max pooling between)
      decoder     2x2 transposed -> 512 | copy 512 -> twice 3x3 -> 512 /8; likewise 256 /4, 128 /2, 64 /1
      head        1x1 -> K at H x W

`encoder="vgg16"` is the network of 24.89 M parameters (94.9 MiB) that Huo et al. (2023) compare with:

      VGG16       64 /1   128 /2   256 /4   512 /8   512 /16
      decoder     bilinear x2, concat, twice 3x3 -> 512 /8, 256 /4, 128 /2, 64 /1

Departures:
- `padding="same"` (default) keeps the size in every convolution; "valid" is the original, whose output is smaller than
  its input: the picture is then mirrored at its borders, so far that the logits still cover all of it.
- `batch_norm` (on by default; the original has none) in every convolution: see fcn.py. No dropout.
- Odd sizes: pooling keeps the last row and column, and the way up crops.
- The original weighs the loss by the distance to borders between cells: a matter of the loss, not of the network.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError, nearest
from pipeline.models.backbones import VGG
from pipeline.models.blocks import crop, scaled, upsample

CHANNELS = (64, 128, 256, 512, 1024)
ENCODERS = ("plain", "vgg16")
PADDINGS = ("same", "valid")


class UNet(nn.Module):
    """N x B x H x W float -> logits N x K x H x W.

    Options: `encoder` plain or vgg16; `padding` same or valid; `width` multiplies all channels; `batch_norm` in every
    convolution; `backbone_weights` (vgg16 of width 1 only) is None, "imagenet" (downloads) or the path or URI of a
    state dict of torchvision's vgg16 or vgg16_bn.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        encoder: str = "plain",
        padding: str = "same",
        width: float = 1.0,
        batch_norm: bool = True,
        backbone_weights: str | None = None,
    ) -> None:
        super().__init__()
        for what, found, known in (("encoder", encoder, ENCODERS), ("padding", padding, PADDINGS)):
            if found not in known:
                raise InputError(
                    f"no {what} {found!r} for unet", expected=", ".join(known), todo=nearest(str(found), known) or None
                )
        plain = encoder == "plain"
        if plain and backbone_weights is not None:
            raise InputError(
                "the plain encoder of unet has no weights to load",
                found=f"backbone_weights={backbone_weights}",
                todo="set the option encoder to vgg16",
            )
        if plain:
            self.encoder: Encoder | VGG = Encoder(in_channels, width, batch_norm)
        else:
            self.encoder = VGG("vgg16", in_channels, batch_norm=batch_norm, width=width, weights=backbone_weights)
        channels = self.encoder.channels[::-1]  # from stride 16 to stride 1
        self.steps = nn.ModuleList(Up(deep, copy, plain, batch_norm) for deep, copy in pairwise(channels))
        self.head = nn.Conv2d(channels[-1], num_classes, kernel_size=1)
        self.same = padding == "same"
        if not self.same:
            for module in (*self.encoder.modules(), *self.steps.modules()):
                if isinstance(module, nn.Conv2d):
                    module.padding = (0, 0)

    def forward(self, x: Tensor) -> Tensor:
        *copies, y = self.encoder(x if self.same else self._mirrored(x))
        for step, copy in zip(self.steps, reversed(copies), strict=True):
            y = step(y, copy)
        return crop(self.head(y), x)

    def _mirrored(self, x: Tensor) -> Tensor:
        """`x` with its borders mirrored, so far that the output of unpadded convolutions begins where `x` does.

        The deepest map of d px a side comes from 16 d and what the stages take off, and gives 16 d less what the steps
        take off; the least d that covers the picture is taken, so every pooling meets an even size.
        """
        per_stage = [2 * sum(isinstance(m, nn.Conv2d) for m in stage.modules()) for stage in self.encoder.stages]
        taken_down_px = sum(px << i for i, px in enumerate(per_stage))
        taken_up_px = sum(4 << i for i in range(len(self.steps)))
        stride = 1 << len(self.steps)
        before_px = (taken_down_px + taken_up_px) // 2
        for dim in (2, 3):
            size_px = x.shape[dim]
            deepest = -(-(size_px + taken_up_px) // stride)
            after_px = deepest * stride + taken_down_px - size_px - before_px
            x = x.index_select(dim, mirror(size_px, before_px, after_px, x.device))
        return x


class Encoder(nn.Module):
    """The original way down: N x B x H x W -> five maps of 64 to 1024 channels (times `width`) at strides 1 to 16."""

    def __init__(self, in_channels: int, width: float, batch_norm: bool) -> None:
        super().__init__()
        self.channels = scaled(CHANNELS, width)
        self.stages = nn.ModuleList(twice_3x3(a, b, batch_norm) for a, b in pairwise((in_channels, *self.channels)))

    def forward(self, x: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            x = stage(functional.max_pool2d(x, 2, ceil_mode=True) if i else x)
            features.append(x)
        return features


class Up(nn.Module):
    """deep (N x C x h x w), copy (N x D x 2h x 2w or larger) -> N x D x 2h x 2w, or 4 px smaller without padding."""

    def __init__(self, deep_channels: int, copy_channels: int, transposed: bool, batch_norm: bool) -> None:
        super().__init__()
        self.doubling = (
            nn.ConvTranspose2d(deep_channels, copy_channels, kernel_size=2, stride=2) if transposed else None
        )
        doubled = copy_channels if transposed else deep_channels
        self.refine = twice_3x3(doubled + copy_channels, copy_channels, batch_norm)

    def forward(self, deep: Tensor, copy: Tensor) -> Tensor:
        y = upsample(deep, 2, like=copy) if self.doubling is None else crop(self.doubling(deep), copy)
        top, left = ((large - small) // 2 for large, small in zip(copy.shape[-2:], y.shape[-2:], strict=True))
        middle = copy[..., top : top + y.shape[-2], left : left + y.shape[-1]]  # all of it where nothing was taken off
        return self.refine(torch.cat([y, middle], dim=1))


def twice_3x3(in_channels: int, out_channels: int, batch_norm: bool) -> nn.Sequential:
    """Twice 3x3 convolution, batch norm if asked for, ReLU."""
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        convolution = nn.Conv2d(channels, out_channels, kernel_size=3, padding=1, bias=not batch_norm)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, *[nn.BatchNorm2d(out_channels)] * batch_norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def mirror(size_px: int, before_px: int, after_px: int, device: torch.device) -> Tensor:
    """Indices of a side of `size_px` continued by mirroring, the outermost pixel not repeated; any number of times."""
    period = max(1, 2 * size_px - 2)
    place = torch.arange(-before_px, size_px + after_px, device=device) % period
    return torch.minimum(place, period - place)
