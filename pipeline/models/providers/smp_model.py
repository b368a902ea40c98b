"""`smp:NAME`: any network of segmentation_models_pytorch, with random weights unless an option asks for others.

The networks and encoders are the library's own (https://smp.readthedocs.io); this file names what does not fit, and
pads what they take only in multiples of their output stride. (What an encoder's published weights were trained on, the
library asks the hub for; so nothing is said of it here, and ImageNet's mean and deviation stand, as for most.)
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError, nearest
from pipeline.models import check_options, optional_library
from pipeline.models.backbones import load_weights
from pipeline.models.weights_file import read_state_dict

_NOT_OPTIONS = ("self", "kwargs", "in_channels", "classes", "activation", "aux_params")
_OWN_OPTIONS = ("weights", "backbone_weights")


class SmpModel(nn.Module):
    """N x B x H x W float -> logits N x K x H x W.

    Options: those of the library's class (`encoder_name`, `decoder_channels`, ...), with `encoder_weights` None unless
    it is given (a name such as "imagenet" downloads); `weights`, the path or URI of a state dict of the whole network;
    `backbone_weights`, "imagenet" (downloads) or a state dict of the encoder. Below an `encoder_depth` of 5 the library
    keeps the stages that are left out, as parameters without a gradient: such a network trains on one worker only.
    """

    def __init__(self, name: str, num_classes: int, in_channels: int = 3, **options: Any) -> None:
        super().__init__()
        smp = optional_library("segmentation_models_pytorch", "smp")
        architecture = _architecture(smp, name)
        known = [p for p in inspect.signature(architecture.__init__).parameters if p not in _NOT_OPTIONS]
        check_options(f"smp:{name}", options, [*known, *_OWN_OPTIONS])
        weights, encoder_file = options.pop("weights", None), options.pop("backbone_weights", None)
        options = {"encoder_weights": "imagenet" if encoder_file == "imagenet" else None, **options}
        _check_encoder(smp, str(options.get("encoder_name", "resnet34")))
        try:
            self.network = architecture(in_channels=in_channels, classes=num_classes, **options)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:  # its own word on an option out of range
            raise InputError(f"smp:{name} cannot be built", found=f"{type(error).__name__}: {error}") from None
        if encoder_file not in (None, "imagenet"):
            load_weights(self.network.encoder, read_state_dict(encoder_file), where=encoder_file)
        if weights is not None:
            load_weights(self.network, read_state_dict(weights), where=weights)
        divisible = getattr(self.network, "requires_divisible_input_shape", True)
        self.size_multiple = int(self.network.encoder.output_stride) if divisible else 1

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        bottom, right = -height % self.size_multiple, -width % self.size_multiple
        if bottom or right:  # with the mean colour, which is 0 here
            x = functional.pad(x, (0, right, 0, bottom))
        logits: Tensor = self.network(x)
        return logits[..., :height, :width]


def _architecture(smp: Any, name: str) -> Any:
    names = {cls.__name__: cls for cls in smp.MODEL_ARCHITECTURES_MAPPING.values()}
    if name not in names:
        raise InputError(
            f"segmentation_models_pytorch has no network {name!r}",
            expected=f"one of {', '.join(sorted(names))}",
            todo=nearest(name, names) or None,
        )
    return names[name]


def _check_encoder(smp: Any, encoder: str) -> None:
    names = smp.encoders.get_encoder_names()
    if encoder not in names and not encoder.startswith("tu-"):  # tu-: any of timm's
        raise InputError(
            f"segmentation_models_pytorch has no encoder {encoder!r}",
            expected=f"one of {len(names)} ({', '.join(names[:3])}, ...), or tu-NAME for any of timm's",
            todo=nearest(encoder, names) or None,
        )
