"""The options of an import: how the network wants its pixels, and which class each of its channels stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import InputError
from pipeline.labels import LABEL_SETS, LabelSet
from pipeline.models import preprocessing
from pipeline.runtime.options import INPUT, NETWORK, OUTPUT, option

PIXELS = "pixels"  # group of options
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass
class ImportConfig:
    """Make a checkpoint of a network that was trained elsewhere."""

    model: str = option(
        help="export:FILE.pt2, hf:FOLDER, smp:NAME?encoder_name=..., torchvision:NAME, or a name of docs/networks.md.",
        group=NETWORK,
    )
    label_set: str = option(help=f"Classes: {', '.join(sorted(LABEL_SETS))}, or a YAML file.", group=INPUT)
    output: str = option(help="Folder or prefix of the checkpoint.", group=OUTPUT)
    weights: str | None = option(
        None, "Path or URI of a state dict, for a network that brings no weights.", group=NETWORK
    )
    weights_key: str | None = option(
        None, "Entry of the weights file to take, where it holds several (model, model_ema).", group=NETWORK
    )
    mean: str | None = option(
        None, "Mean of a pixel divided by --scale, one number for each band: 0.485,0.456,0.406.", group=PIXELS
    )
    std: str | None = option(
        None, "Standard deviation, likewise; a pixel enters the network as (pixel / scale - mean) / std.", group=PIXELS
    )
    scale: float | None = option(None, "What a pixel is divided by first (default: 255).", group=PIXELS)
    channel_order: str | None = option(
        None, "Order of the channels (default: rgb).", group=PIXELS, choices=("rgb", "bgr")
    )
    input_size: str | None = option(
        None,
        "HEIGHT,WIDTH that every picture is resized to; its logits are brought back.",
        group=PIXELS,
    )
    size_multiple: int = option(1, "Pictures are padded to a multiple of this many px.", group=PIXELS)
    class_map: str | None = option(
        None, "channel:class,... where the network's channels are not the classes of the label set.", group=NETWORK
    )
    try_: str | None = option(
        None, "Picture to run through the network; it is written beside its classes to OUTPUT/try.png.", group=OUTPUT
    )
    overwrite: bool = option(False, "Replace another imported network in the output folder.", group=OUTPUT)


def pixels(config: ImportConfig) -> dict[str, Any]:
    """mean, std, scale, channel_order and input_size: the flags, over what the network says of itself."""
    known = preprocessing(config.model, {})
    provider = config.model.partition(":")[0]
    if not known and provider in ("export", "hf") and (config.mean is None or config.std is None):
        raise InputError(
            "--mean and --std are missing",
            where=config.model,
            todo="give what the network was trained with (0,0,0 and 1,1,1 where it normalises itself): nothing says so",
        )
    size: Any = known.get("input_size")
    if config.input_size is not None:
        size = None if config.input_size.lower() == "none" else _numbers("--input-size", config.input_size, int)
    if size is not None and not (isinstance(size, tuple) and len(size) == 2 and min(size) > 0):
        raise InputError(
            "input size is no height and width",
            found=config.input_size or size,
            expected="H,W in px",
            todo="give --input-size H,W, or --input-size none to leave pictures as they are",
        )
    found: dict[str, Any] = {**_IMAGENET, **known, "input_size": size}
    found |= {name: _numbers(f"--{name}", text, float) for name in ("mean", "std") if (text := getattr(config, name))}
    found |= {name: value for name in ("scale", "channel_order") if (value := getattr(config, name)) is not None}
    return found


def _numbers(flag: str, text: str, kind: Any) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.strip("()[] ").split(","))
    except ValueError:
        raise InputError(f"{flag} has a wrong value", found=text, expected="numbers with commas between") from None


def class_map(text: str | None) -> dict[int, int]:
    """Channel -> class; empty where none is given."""
    found: dict[int, int] = {}
    for part in text.strip("{} ").split(",") if text else ():
        try:
            channel, label = (int(number) for number in part.split(":"))
        except ValueError:
            raise InputError("--class-map has a wrong value", found=part, expected="channel:class,...") from None
        if channel in found or channel < 0 or label < 0:
            raise InputError("--class-map has a wrong value", found=part, expected="each channel once, none below 0")
        found[channel] = label
    return found


def channel_classes(mapped: Mapping[int, int], channels: int, label_set: LabelSet) -> tuple[int | None, ...] | None:
    """The class of each channel; None where channels and classes agree. Raises InputError where they cannot."""
    if not mapped:
        if channels != label_set.num_classes:
            raise InputError(
                "the network's classes do not match the label set",
                found=f"{channels} channels",
                expected=f"{label_set.num_classes} classes of {label_set.name}",
                todo="give another --label-set, or --class-map channel:class,...",
            )
        return None
    if max(mapped) >= channels:
        raise InputError(
            "--class-map names a channel that the network does not have",
            found=max(mapped),
            expected=f"0 to {channels - 1}",
        )
    return tuple(mapped.get(channel) for channel in range(channels))
