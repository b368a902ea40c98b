"""`torchvision:NAME`: any segmentation network of torchvision, with any band and class count.

The network and its weight enums are torchvision's own (https://docs.pytorch.org/vision/stable/models.html); this file
only unwraps its dict of outputs, widens its first convolution and says plainly what does not fit.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision import models

from pipeline.errors import InputError, nearest
from pipeline.models.backbones import load_weights, widen_first_convolution
from pipeline.models.weights_file import read_state_dict, unprefixed


class TorchvisionModel(nn.Module):
    """N x B x H x W float -> logits N x K x H x W.

    Options: `weights` is None (random), "default" (torchvision's weight enum, which downloads; it has 21 classes and
    3 bands) or the path or URI of a state dict of the whole network; `backbone_weights` is None, "imagenet" (downloads)
    or the path or URI of a state dict of the classification network that torchvision builds the backbone from.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        in_channels: int = 3,
        *,
        weights: str | None = None,
        backbone_weights: str | None = None,
    ) -> None:
        super().__init__()
        names = models.list_models(module=models.segmentation)
        if name not in names:
            raise InputError(
                f"torchvision has no segmentation model {name!r}",
                expected=f"one of {', '.join(names)}",
                todo=nearest(name, names) or None,
            )
        self.network = models.get_model(
            name,
            weights=None,
            weights_backbone="DEFAULT" if backbone_weights == "imagenet" else None,
            num_classes=num_classes,
            aux_loss=False,
        )
        if weights is not None:
            if weights == "default":
                pretrained = models.get_model_weights(name).DEFAULT.get_state_dict(check_hash=True)
            else:
                pretrained = unprefixed(read_state_dict(weights), self.network.state_dict())
            # published weights come with an auxiliary head, which only training uses
            plain = {key: value for key, value in pretrained.items() if not key.startswith("aux_classifier.")}
            load_weights(self.network, plain, where=weights)
        elif backbone_weights not in (None, "imagenet"):
            # The file is a state dict of the classification network: MobileNets keep the backbone under `features`.
            own = self.network.backbone.state_dict()
            pretrained = unprefixed(read_state_dict(backbone_weights), [*own, *(f"features.{key}" for key in own)])
            pretrained = {key.removeprefix("features."): value for key, value in pretrained.items()}
            fitting = {key: value for key, value in pretrained.items() if key in own}
            load_weights(self.network.backbone, fitting, where=backbone_weights)
        widen_first_convolution(self.network.backbone, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)["out"]
