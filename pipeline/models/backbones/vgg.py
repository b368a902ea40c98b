"""VGG as a backbone (Simonyan and Zisserman 2015, "Very Deep Convolutional Networks", table 1)."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.vgg import make_layers

from pipeline.errors import InputError
from pipeline.models.backbones.weights import classifier, widen_first_convolution

CONVOLUTIONS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """The convolutions of VGG, stage by stage, without their pooling: `stages[i]` is a Sequential of convolutions.

    Forward: N x B x H x W -> five maps, the last before each pooling, at strides 1, 2, 4, 8, 16, with 2x2 max pooling
    between the stages; `channels` lists theirs (64, 128, 256, 512, 512 times `width`). Networks that pool in another
    way walk over `stages` themselves. `batch_norm` takes torchvision's variants with batch norm. Weights (the whole
    classifier's state dict, or "imagenet") fit `width` 1 only.
    """

    def __init__(
        self,
        name: str = "vgg16",
        in_channels: int = 3,
        *,
        batch_norm: bool = False,
        width: float = 1.0,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if name not in CONVOLUTIONS:
            raise InputError(f"no backbone {name!r}", expected=", ".join(CONVOLUTIONS))
        if not 0 < width <= 4:
            raise InputError("width out of range", found=width, expected="above 0, at most 4")
        self.channels = tuple(max(1, round(width * channels)) for channels in CHANNELS)
        if weights is None:  # not the classifier's 120 M parameters, which nobody needs here
            features = self._features(name, batch_norm)
            widen_first_convolution(features, in_channels)
        elif width != 1:
            raise InputError("weights of VGG fit width 1 only", found=f"width {width}")
        else:
            features = classifier(name + "_bn" * batch_norm, weights, in_channels).features
        self.stages = nn.ModuleList()
        stage: list[nn.Module] = []
        for layer in features:
            if isinstance(layer, nn.MaxPool2d):
                self.stages.append(nn.Sequential(*stage))
                stage = []
            else:
                stage.append(layer)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)  # odd sizes keep their last row and column

    def _features(self, name: str, batch_norm: bool) -> nn.Sequential:
        plan: list[str | int] = []
        for channels, convolutions in zip(self.channels, CONVOLUTIONS[name], strict=True):
            plan += [channels] * convolutions + ["M"]
        features = make_layers(plan, batch_norm=batch_norm)  # type: ignore[arg-type]
        for layer in features:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        return features

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for i, stage in enumerate(self.stages):
            x = stage(self.pool(x) if i else x)
            features.append(x)
        return features
