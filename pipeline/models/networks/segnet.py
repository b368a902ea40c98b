"""`segnet`: an encoder whose pooling remembers where each maximum stood, and a decoder that puts it back there.

Paper: Badrinarayanan, Kendall, Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image
Segmentation" (2017). New in it: the way up has no weights of its own to upsample with; each decoder level unpools by
the indices of the encoder's max pooling at that level, which keeps borders without carrying whole feature maps across.

    N x B x H x W
      VGG16     2 convolutions 64 /1, 2 of 128 /2, 3 of 256 /4, 3 of 512 /8, 3 of 512 /16; 2x2 max pooling -> /32
      decoder   unpool, 3 convolutions 512 -> 512 /16;  3, 512 -> 256 /8;  3, 256 -> 128 /4;  2, 128 -> 64 /2;
                unpool, 64 -> 64 /1
      head      3x3 -> K at H x W

Departures:
- `batch_norm` behind every convolution, as in the paper; ImageNet weights of VGG16 with or without it load.
- Odd sizes: the picture is padded to a multiple of 32 with zeros (the mean colour) and the logits are cut, since
  unpooling needs windows that are whole.
- `width` multiplies every layer's channels, for experiments on small machines.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.backbones import VGG
from pipeline.models.blocks import ConvBNReLU

STRIDE = 32


class SegNet(nn.Module):
    """N x B x H x W float -> logits N x K x H x W.

    Options: `width` multiplies all channels; `backbone_weights` is None, "imagenet" (downloads) or the path or URI of a
    state dict of torchvision's vgg16 or vgg16_bn (width 1 only).
    """

    def __init__(
        self, num_classes: int, in_channels: int = 3, *, width: float = 1.0, backbone_weights: str | None = None
    ) -> None:
        super().__init__()
        self.encoder = VGG("vgg16", in_channels, batch_norm=True, width=width, weights=backbone_weights)
        channels = self.encoder.channels  # strides 1, 2, 4, 8, 16
        shallower = (channels[0], *channels[:-1])
        convolutions = (1, 2, 3, 3, 3)
        self.decoder = nn.ModuleList(  # from the deepest level up
            nn.Sequential(*(ConvBNReLU(here, here) for _ in range(count - 1)), ConvBNReLU(here, above))
            for here, above, count in reversed(list(zip(channels, shallower, convolutions, strict=True)))
        )
        self.head = nn.Conv2d(channels[0], num_classes, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        y = functional.pad(x, (0, -width % STRIDE, 0, -height % STRIDE))
        places = []
        for stage in self.encoder.stages:
            y, indices = functional.max_pool2d(stage(y), 2, return_indices=True)
            places.append(indices)
        for level, indices in zip(self.decoder, reversed(places), strict=True):
            y = level(functional.max_unpool2d(y, indices, [2, 2]))
        return self.head(y)[..., :height, :width]
