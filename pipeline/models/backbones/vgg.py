"""VGG as a backbone (Simonyan and Zisserman 2015, "Very Deep Convolutional Networks", table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.models.backbones.weights import classifier, load_weights, widen_first_convolution
from pipeline.models.blocks import check_dropout, scaled
from pipeline.models.weights_file import read_state_dict

if TYPE_CHECKING:
    from torchvision import models

CONVOLUTIONS = {"vgg11": (1, 1, 2, 2, 2), "vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)
FULLY_CONNECTED = (4096, 4096)  # the classifier's first two layers


class VGG(nn.Module):
    """The convolutions of VGG, stage by stage, without their pooling: `stages[i]` is a Sequential of convolutions.

    Forward: N x B x H x W -> five maps, each stage's before the 2x2 max pooling, at strides 1, 2, 4, 8, 16, or with
    `pooled` those after it, at strides 2, 4, 8, 16, 32; `channels` lists theirs (64, 128, 256, 512, 512 times `width`).
    Networks that pool in another way walk over `stages` themselves. `fully_connected` (two numbers of channels) adds
    the classifier's first two layers, times `width`, as a 7x7 and a 1x1 convolution, each with ReLU and `dropout`: one
    more map behind the last pooling. `batch_norm` takes torchvision's variants with batch norm.

    Weights (the state dict of torchvision's classifier, or "imagenet") fit `width` 1 only, and the fully connected
    layers only where they are 4096 wide (others begin random). A file without batch norm fits a network with it: the
    norms begin as the identity, so that the network gives in eval mode what the file's gave.
    """

    def __init__(
        self,
        name: str = "vgg16",
        in_channels: int = 3,
        *,
        batch_norm: bool = False,
        width: float = 1.0,
        pooled: bool = False,
        fully_connected: Sequence[int] | None = None,
        dropout: float = 0.5,
        weights: str | None = None,
    ) -> None:
        super().__init__()
        if name not in CONVOLUTIONS:
            raise InputError(f"no backbone {name!r}", expected=", ".join(CONVOLUTIONS))
        check_dropout(dropout)
        self.pooled = pooled or fully_connected is not None
        self.channels = scaled(CHANNELS, width)
        layers: Sequence[nn.Module] = ()
        if weights is None:  # not the classifier's 120 M parameters, which nobody needs here
            features = self._features(name, batch_norm)
            widen_first_convolution(features, in_channels)
        elif width != 1:
            raise InputError("weights of VGG fit width 1 only", found=f"width {width}")
        else:
            network = _pretrained(name, batch_norm, weights, in_channels)
            features, layers = network.features, network.classifier
        self.stages = nn.ModuleList()
        stage: list[nn.Module] = []
        for layer in features:
            if isinstance(layer, nn.MaxPool2d):
                self.stages.append(nn.Sequential(*stage))
                stage = []
            else:
                stage.append(layer)
        if fully_connected is not None:
            widths = scaled(fully_connected, width)
            self.fully_connected = _fully_connected(self.channels[-1], widths, dropout, layers)
            self.channels += (widths[-1],)

    def _features(self, name: str, batch_norm: bool) -> nn.Sequential:
        from torchvision.models.vgg import make_layers

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
        before, after = [], []
        for i, stage in enumerate(self.stages):
            before.append(stage(x))
            if self.pooled or i + 1 < len(self.stages):
                # ceil_mode: odd sizes keep their last row and column
                x = functional.max_pool2d(before[-1], 2, ceil_mode=True)
                after.append(x)
        if hasattr(self, "fully_connected"):
            after.append(self.fully_connected(x))
        return after if self.pooled else before


def _pretrained(name: str, batch_norm: bool, weights: str, in_channels: int) -> models.VGG:
    """torchvision's classifier with its weights, with or without batch norm."""
    from torchvision import models

    if weights == "imagenet":
        network: models.VGG = classifier(name + "_bn" * batch_norm, weights, in_channels)
        return network
    state = read_state_dict(weights)
    normed = any(key.endswith("running_mean") for key in state)
    if normed and not batch_norm:
        raise InputError(
            "weights with batch norm for a network without it", where=weights, todo="set the option batch_norm"
        )
    network = models.get_model(name + "_bn" * normed, init_weights=False)  # type: ignore[assignment]
    load_weights(network, state, where=weights)
    if batch_norm and not normed:
        layers: list[nn.Module] = []
        for layer in network.features:
            layers += [layer, nn.BatchNorm2d(layer.out_channels)] if isinstance(layer, nn.Conv2d) else [layer]
        network.features = nn.Sequential(*layers)
    widen_first_convolution(network, in_channels)
    return network


def _fully_connected(
    in_channels: int, widths: Sequence[int], dropout: float, layers: Sequence[nn.Module]
) -> nn.Sequential:
    """fc6 and fc7 as convolutions; `layers` are those of a trained classifier, used where the widths are its own."""
    fc6 = nn.Conv2d(in_channels, widths[0], kernel_size=7, padding=3)
    fc7 = nn.Conv2d(widths[0], widths[1], kernel_size=1)
    for convolution in (fc6, fc7):
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    if tuple(widths) == FULLY_CONNECTED:
        trained = [layer for layer in layers if isinstance(layer, nn.Linear)]
        for convolution, layer in zip((fc6, fc7), trained, strict=False):  # none where nothing was trained
            with torch.no_grad():
                convolution.weight.copy_(layer.weight.view_as(convolution.weight))
                convolution.bias.copy_(layer.bias)  # type: ignore[union-attr]
    return nn.Sequential(
        fc6, nn.ReLU(inplace=True), nn.Dropout(dropout), fc7, nn.ReLU(inplace=True), nn.Dropout(dropout)
    )
