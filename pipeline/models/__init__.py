"""The table of networks, and the one function that builds any of them by name.

A new network is one file beside this one and one line in `MODELS`. Its class takes `num_classes`, `in_channels` and its
own keyword options; its forward takes N x B x H x W floats and returns logits N x K x H x W at the input's own size.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import nn

MODELS = {
    "lightweight": "pipeline.models.lightweight:Lightweight",
    "multilevel_deeplab": "pipeline.models.multilevel_deeplab:MultilevelDeepLab",
    "attention_fcn": "pipeline.models.attention_fcn:AttentionFCN",
    "fpn_fcn": "pipeline.models.fpn_fcn:FPNFCN",
    "deeplabv3plus": "pipeline.models.deeplabv3plus:DeepLabV3Plus",
    "fcn32s": "pipeline.models.fcn32s:FCN32s",
    "fcn16s": "pipeline.models.fcn16s:FCN16s",
    "fcn8s": "pipeline.models.fcn8s:FCN8s",
    "pspnet": "pipeline.models.pspnet:PSPNet",
    "bisenet": "pipeline.models.bisenet:BiSeNet",
    "espnetv2": "pipeline.models.espnetv2:ESPNetV2",
}

PROVIDERS = {  # "provider:name" -> a class whose first argument is the name
    "torchvision": "pipeline.models.torchvision_model:TorchvisionModel",
}

# Options that say where a network's first weights come from. They are no part of its structure, so a checkpoint
# that brings weights of its own is rebuilt without them.
WEIGHT_OPTIONS = ("weights", "backbone_weights")


def build_model(model: str, *, num_classes: int, in_channels: int = 3, **options: Any) -> nn.Module:
    """The network named `model`, with random weights unless an option names weights; never downloads by default.

    `model` is a key of `MODELS`, or `provider:name` (`torchvision:lraspp_mobilenet_v3_large`). Its forward is
    N x `in_channels` x H x W float -> logits N x `num_classes` x H x W. Raises InputError for an unknown name (suggests
    the nearest, lists all), an unknown option, or one out of range.
    """
    if num_classes < 1 or in_channels < 1:
        raise InputError(
            f"model {model!r} needs at least one class and one band",
            found=f"num_classes={num_classes}, in_channels={in_channels}",
        )
    provider, colon, name = model.partition(":")
    target = PROVIDERS.get(provider) if colon and name else MODELS.get(model)
    if target is None:
        known = [*MODELS, *(f"{provider}:NAME" for provider in PROVIDERS)]
        raise InputError(
            f"no model {model!r}",
            expected=f"one of {', '.join(known)}",
            todo=nearest(model, [*MODELS, *PROVIDERS]) or None,
        )
    module, _, class_name = target.partition(":")
    network = getattr(importlib.import_module(module), class_name)
    _check_options(model, network, options)
    first = (name,) if colon else ()
    return network(*first, num_classes=num_classes, in_channels=in_channels, **options)


def structure_options(options: dict[str, Any]) -> dict[str, Any]:
    """`options` without those that only say where the first weights come from."""
    return {key: value for key, value in options.items() if key not in WEIGHT_OPTIONS}


def _check_options(model: str, network: type, options: dict[str, Any]) -> None:
    parameters = inspect.signature(network).parameters
    known = [p for p in parameters if p not in ("name", "num_classes", "in_channels")]
    for option in options:
        if option not in known:
            raise InputError(
                f"model {model!r} has no option {option!r}",
                expected=f"one of {', '.join(known)}",
                todo=nearest(option, known) or None,
            )
