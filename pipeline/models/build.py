"""The table of networks, and the one function that builds any of them by name.

A new network is one file beside this one and one line in `MODELS`. Its class takes `num_classes`, `in_channels` and its
own keyword options; its forward takes N x B x H x W floats and returns logits N x K x H x W at the input's own size.

A provider brings in networks whose code is elsewhere: one file and one line in `PROVIDERS`. Its class takes the name
first, and may have static methods of the names of functions below, which say something of a network before it is built.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import nn

MODELS = {
    "lightweight": "pipeline.models.networks.lightweight:Lightweight",
    "multilevel_deeplab": "pipeline.models.networks.multilevel_deeplab:MultilevelDeepLab",
    "attention_fcn": "pipeline.models.networks.attention_fcn:AttentionFCN",
    "fpn_fcn": "pipeline.models.networks.fpn_fcn:FPNFCN",
    "deeplabv3plus": "pipeline.models.networks.deeplabv3plus:DeepLabV3Plus",
    "unet": "pipeline.models.networks.unet:UNet",
    "fcn32s": "pipeline.models.networks.fcn32s:FCN32s",
    "fcn16s": "pipeline.models.networks.fcn16s:FCN16s",
    "fcn8s": "pipeline.models.networks.fcn8s:FCN8s",
    "pspnet": "pipeline.models.networks.pspnet:PSPNet",
    "bisenet": "pipeline.models.networks.bisenet:BiSeNet",
    "espnetv2": "pipeline.models.networks.espnetv2:ESPNetV2",
    "segnet": "pipeline.models.networks.segnet:SegNet",
    "crf_rnn": "pipeline.models.networks.fcn8s:FCN8s",  # with `crf`: see below
}

PROVIDERS = {  # "provider:name" -> a class whose first argument is the name
    "torchvision": "pipeline.models.providers.torchvision_model:TorchvisionModel",
    "smp": "pipeline.models.providers.smp_model:SmpModel",
    "hf": "pipeline.models.providers.huggingface_model:HuggingFaceModel",
    "export": "pipeline.models.providers.exported_model:ExportedModel",
}

# Options that say where a network's first weights come from. They are no part of its structure, so a checkpoint
# that brings weights of its own is rebuilt without them.
WEIGHT_OPTIONS = ("weights", "backbone_weights", "encoder_weights")


def build_model(model: str, *, num_classes: int, in_channels: int = 3, **options: Any) -> nn.Module:
    """The network named `model`, with random weights unless an option names weights; never downloads by default.

    `model` is a key of `MODELS`, or `provider:name` (`torchvision:lraspp_mobilenet_v3_large`), either with options
    behind a question mark (`smp:Unet?encoder_name=resnet34`). Its forward is N x `in_channels` x H x W float -> logits
    N x `num_classes` x H x W. With `crf=True`, an option of every model, a mean-field CRF stands behind it. Raises
    InputError for an unknown name (suggests the nearest, lists all), an unknown option, one out of range, or a library
    that is not installed (with the command that does).
    """
    if num_classes < 1 or in_channels < 1:
        raise InputError(
            f"model {model!r} needs at least one class and one band",
            found=f"num_classes={num_classes}, in_channels={in_channels}",
        )
    model, options = parse_model(model, options)
    network = _network_class(model)
    crf = options.pop("crf", model == "crf_rnn")
    if not isinstance(crf, bool):
        raise InputError(f"option crf of model {model!r} is out of range", found=crf, expected="true or false")
    parameters = inspect.signature(network).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):  # else it looks for itself
        named = [p.name for p in parameters if p.name not in ("name", "num_classes", "in_channels")]
        check_options(model, options, [*named, "crf"])
    provider, colon, name = model.partition(":")
    first = (name,) if colon else ()
    built: nn.Module = network(*first, num_classes=num_classes, in_channels=in_channels, **options)
    if not crf:
        return built
    from pipeline.models.networks.crf_rnn import WithCRF

    return WithCRF(built, num_classes)


def parse_model(model: str, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """`smp:Unet?encoder_name=resnet34&encoder_depth=4` -> `smp:Unet` and its options, the values read as YAML.

    Options given beside the string stand over those within it. Raises InputError for a query that is none.
    """
    name, _, query = model.partition("?")
    read: dict[str, Any] = {}
    for part in query.split("&") if query else ():
        key, equals, value = part.partition("=")
        if not key or not equals:
            raise InputError(f"model {model!r} has a wrong query", found=part, expected="?option=value&option=value")
        try:
            read[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"model {model!r} has a wrong query", found=part, expected="a value in YAML") from None
    return name, {**read, **(options or {})}


def portable(model: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The model string and options by which a checkpoint rebuilds it: no query, no path, no first weights."""
    name, read = _of_provider("portable", model, options) or parse_model(model, options)
    return name, structure_options(read)


def preprocessing(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What the network says of the pixels it was trained on, as fields of a `ModelSpec`; empty where it says nothing.

    Of `mean`, `std`, `scale`, `channel_order`, `input_size`; a size that is no (height, width) stands as it was found.
    """
    return _of_provider("preprocessing", model, options) or {}


def output_channels(model: str, options: Mapping[str, Any]) -> int | None:
    """How many classes the weights that the network brings along know; None where it brings or says none."""
    return _of_provider("output_channels", model, options)


def weights_sha256(model: str, options: Mapping[str, Any]) -> str | None:
    """sha256 (hex) of the weights that the model string itself names; None where it names none."""
    return _of_provider("weights_sha256", model, options)


def structure_options(options: dict[str, Any]) -> dict[str, Any]:
    """`options` without those that only say where the first weights come from."""
    return {key: value for key, value in options.items() if key not in WEIGHT_OPTIONS}


def check_options(model: str, options: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises InputError for the first of `options` that is not among `known`."""
    known = list(known)
    for option in options:
        if option not in known:
            raise InputError(
                f"model {model!r} has no option {option!r}",
                expected=f"one of {', '.join(known)}" if known else "none",
                todo=nearest(option, known) or None,
            )


def optional_library(name: str, extra: str) -> Any:
    """The module `name`, which the extra `extra` of this package brings. Raises InputError where it is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise InputError(
            f"{name} is not installed", todo=f"install it with: pip install 'ray-segmentation[{extra}]'"
        ) from None


def _of_provider(question: str, model: str, options: Mapping[str, Any]) -> Any:
    """What the static method `question` of a provider's class returns; None where it has none."""
    name, options = parse_model(model, options)
    method = getattr(_network_class(name), question, None)
    return None if method is None else method(name.partition(":")[2], options)


def _network_class(model: str) -> Any:
    provider, colon, name = model.partition(":")
    target = PROVIDERS.get(provider) if colon and name else MODELS.get(model)
    if target is None:
        known = [*MODELS, *(f"{provider}:NAME" for provider in PROVIDERS)]
        raise InputError(
            f"no model {model!r}",
            expected=f"one of {', '.join(known)}",
            todo=nearest(provider, [*MODELS, *PROVIDERS]) or None,
        )
    module, _, class_name = target.partition(":")
    return getattr(importlib.import_module(module), class_name)
