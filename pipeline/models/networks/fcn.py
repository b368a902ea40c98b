"""The trunk of `fcn32s`, `fcn16s` and `fcn8s`: VGG16 made fully convolutional, class scores carried back up.

Paper: Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation" (2015; extended in PAMI 2017).
New in it: a classifier's fully connected layers read as convolutions (fc6 7x7, fc7 1x1), so that a picture of any size
gives a map of scores; transposed convolutions that start as bilinear interpolation; and a skip architecture that adds
the scores of shallower, finer layers. The three networks differ only in how many of those they add.

    N x B x H x W
      VGG16      pool3 256 /8    pool4 512 /16    pool5 512 /32
      fc6, fc7                                    4096 /32   (7x7, 1x1)
      scores     1x1 -> K /32
      fcn32s     bilinear x32
      fcn16s     x2 | 1x1 (pool4) -> K /16 -> bilinear x16
      fcn8s      x2 | 1x1 (pool4) -> x2 | 1x1 (pool3) -> K /8 -> bilinear x8

Departures:
- `batch_norm` (on by default; the paper has none) in the convolutions of VGG: from random weights the plain network
  hardly learns in the hundreds of steps that an ablation has. ImageNet weights of either VGG16 load (backbones.VGG).
- fc6 is padded by 3 and maps are cropped at the right and below, where the paper pads the picture by 100 and crops in
  the middle: the maps are 7 x 7 smaller in the deepest level, and a pixel stands where it was pooled from.
- Trained at once: the scores of pool4 and pool3 begin random, not as zeros upon a trained network of the coarser kind.
- `slim_head`: fc6 of 352 channels and fc7 of 1024 instead of 4096, the 91.3 MiB that Huo et al. (2023) give for FCN-8s;
  with 4096 the network has 512 MiB.
- `width` multiplies every layer's channels, for experiments on small machines.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.models.backbones import VGG
from pipeline.models.backbones.vgg import FULLY_CONNECTED
from pipeline.models.blocks import crop, upsample

SLIM_HEAD = (352, 1024)


class FCN(nn.Module):
    """N x B x H x W float -> logits N x K x H x W.

    Options: `slim_head` is the preset of 91.3 MiB (for FCN-8s at 21 classes); `width` multiplies all channels;
    `batch_norm` in VGG16's convolutions; `dropout` after fc6 and fc7; `backbone_weights` is None, "imagenet"
    (downloads) or the path or URI of a state dict of torchvision's vgg16 or vgg16_bn (width 1 only), whose classifier
    fills fc6 and fc7 where they are 4096 wide.
    """

    levels: tuple[int, ...] = ()  # the pooled maps whose scores are added, deep to shallow

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        slim_head: bool = False,
        width: float = 1.0,
        batch_norm: bool = True,
        dropout: float = 0.5,
        backbone_weights: str | None = None,
    ) -> None:
        super().__init__()
        head = SLIM_HEAD if slim_head else FULLY_CONNECTED
        self.encoder = VGG(
            "vgg16",
            in_channels,
            batch_norm=batch_norm,
            width=width,
            fully_connected=head,
            dropout=dropout,
            weights=backbone_weights,
        )
        self.score = nn.Conv2d(self.encoder.channels[-1], num_classes, kernel_size=1)
        self.scores = nn.ModuleList(
            nn.Conv2d(self.encoder.channels[level - 1], num_classes, kernel_size=1) for level in self.levels
        )
        self.doublings = nn.ModuleList(BilinearDoubling(num_classes) for _ in self.levels)
        self.factor = 32 // 2 ** len(self.levels)

    def forward(self, x: Tensor) -> Tensor:
        *pooled, deep = self.encoder(x)  # strides 2, 4, 8, 16, 32; fc7 at 32
        y = self.score(deep)  # N x K x H/32 x W/32
        for level, score, double in zip(self.levels, self.scores, self.doublings, strict=True):
            finer = score(pooled[level - 1])
            y = crop(double(y), finer) + finer  # N x K, the size of the level
        return upsample(y, self.factor, like=x)


class BilinearDoubling(nn.ConvTranspose2d):
    """N x K x H x W -> N x K x 2H x 2W: a transposed convolution that starts as bilinear interpolation, and learns."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, kernel_size=4, stride=2, padding=1, bias=False)
        line = torch.tensor([0.25, 0.75, 0.75, 0.25])
        with torch.no_grad():
            nn.init.zeros_(self.weight)
            self.weight[range(channels), range(channels)] = torch.outer(line, line)
