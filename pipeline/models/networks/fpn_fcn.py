"""`fpn_fcn`: an FCN on VGG19 with a feature pyramid ahead of the upsampling path.

Paper: multi-level feature fusion semantic segmentation on a VGG FCN (in Chinese, Pascal VOC; compared with FCN-32s,
FCN-16s and FCN-8s). New in it: before anything is upsampled to class scores, a feature pyramid (Lin et al. 2017)
carries the deepest map down into every shallower level; the scores are read off the pyramid, not off the backbone.

    N x B x H x W
      VGG19       pool1 64 /2   pool2 128 /4   pool3 256 /8   pool4 512 /16   pool5 512 /32   (2-2-4-4-4 convolutions)
      pyramid     fpn1 = pool5; fpn(i+1) = 3x3 (1x1 (bilinear x2 of fpn(i)) + pool(5-i)), down to fpn5 64 /2
      scores      y = 1x1 (fpn1) -> K /32;  y = bilinear x2 of y + 1x1 (fpn(i)) -> K, down to /2
      end         bilinear x2 -> K at H x W

Departures:
- The text says VGG16, its drawing shows VGG19's convolutions: `backbone` is "vgg19" by default, "vgg16" allowed.
- The convolution to K channels is 1x1 (the paper gives no kernel); those of the pyramid have neither norm nor ReLU, as
  in Lin et al.
- `batch_norm` (on by default; the paper has none) in VGG's convolutions: see fcn.py.
- `width` multiplies every layer's channels, for experiments on small machines.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.models.backbones import VGG
from pipeline.models.blocks import upsample

BACKBONES = ("vgg19", "vgg16")


class FPNFCN(nn.Module):
    """N x B x H x W float -> logits N x K x H x W.

    Options: `backbone` vgg19 or vgg16; `width` multiplies all channels; `batch_norm` in VGG's convolutions;
    `backbone_weights` is None, "imagenet" (downloads) or the path or URI of a state dict of torchvision's network of
    that name, with or without batch norm (width 1 only).
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        backbone: str = "vgg19",
        width: float = 1.0,
        batch_norm: bool = True,
        backbone_weights: str | None = None,
    ) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise InputError(f"no backbone {backbone!r} for fpn_fcn", expected=", ".join(BACKBONES))
        self.encoder = VGG(
            backbone, in_channels, batch_norm=batch_norm, width=width, pooled=True, weights=backbone_weights
        )
        channels = self.encoder.channels[::-1]  # from pool5 to pool1
        self.merges = nn.ModuleList(Merge(deep, shallow) for deep, shallow in pairwise(channels))
        self.scores = nn.ModuleList(nn.Conv2d(level, num_classes, kernel_size=1) for level in channels)

    def forward(self, x: Tensor) -> Tensor:
        level, *shallower = reversed(self.encoder(x))  # pool5 /32; pool4 .. pool1
        pyramid = [level]
        for merge, pooled in zip(self.merges, shallower, strict=True):
            level = merge(level, pooled)
            pyramid.append(level)
        y, *finer = (score(level) for level, score in zip(pyramid, self.scores, strict=True))
        for scores in finer:  # N x K at strides 16, 8, 4, 2
            y = upsample(y, 2, like=scores) + scores
        return upsample(y, 2, like=x)


class Merge(nn.Module):
    """One step of the pyramid: deep (N x C x h x w) into pooled (N x D x 2h x 2w) -> N x D x 2h x 2w."""

    def __init__(self, deep_channels: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(deep_channels, channels, kernel_size=1)
        self.smooth = nn.Conv2d(channels, channels, kernel_size=3, padding=1)  # against aliasing

    def forward(self, deep: Tensor, pooled: Tensor) -> Tensor:
        # a 1x1 and bilinear upsampling commute, and here the projection costs a quarter
        return self.smooth(upsample(self.project(deep), 2, like=pooled) + pooled)
