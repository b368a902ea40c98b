"""The import job: a network that was trained elsewhere -> a checkpoint folder with all that it needs to be fed right.

Normalisation, size and the order of the classes are no part of a network's weights; a wrong one costs tens of points
and no error. So they are asked for (or read, where a Hugging Face folder states them), kept beside the weights, and
`--try` shows on one picture what they do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from pipeline import storage
from pipeline.decode import DecodeError
from pipeline.decode.picture import decode
from pipeline.errors import InputError
from pipeline.labels import load_label_set
from pipeline.models import build_model, output_channels, parse_model, portable, structure_options
from pipeline.models.backbones import load_weights
from pipeline.models.blocks import check_size
from pipeline.models.checkpoint import network_fingerprint, save_checkpoint
from pipeline.models.limits import UNLIMITED, InputLimits
from pipeline.models.providers.exported_model import ExportedModel
from pipeline.models.spec import DESCRIPTION, ModelSpec, read_spec, weights_fingerprint
from pipeline.models.weights_file import read_state_dict, unprefixed
from pipeline.prediction.import_config import ImportConfig, channel_classes, class_map, pixels
from pipeline.prediction.predictor import Prediction, Predictor
from pipeline.storage import folders
from pipeline.tables.masks import beside

_PROBE_PX = 128
_TRIED = "try.png"


def import_model(config: ImportConfig) -> str:
    """Run the job. Returns the lines that say what was imported. Raises InputError, before anything is written."""
    label_set = load_label_set(config.label_set)
    mapped = class_map(config.class_map)
    fed = pixels(config)
    bands = len(fed["mean"])
    network = _network(config, bands, expected=max(mapped) + 1 if mapped else label_set.num_classes)
    limits: InputLimits = getattr(network, "limits", UNLIMITED)
    model, options = portable(config.model, {})
    if config.size_multiple < 1:
        raise InputError("--size-multiple out of range", found=config.size_multiple, expected="1 or more")
    multiple = math.lcm(config.size_multiple, int(getattr(network, "size_multiple", 1)))
    probe_size = _probe_size(network, fed["input_size"], limits, multiple)
    logits = _probe(network, limits.batch.clamp(1), bands, probe_size)
    if isinstance(network, ExportedModel) and _are_probabilities(logits):
        options["probabilities"] = network.probabilities = True
    spec = ModelSpec(
        model,
        options,
        label_set,
        bands=bands,
        **fed,
        size_multiple=multiple,
        class_map=channel_classes(mapped, int(logits.shape[1]), label_set),
        imported_from=config.model if config.weights is None else f"{config.model} with {config.weights}",
    )
    tried = None if config.try_ is None else _tried(network, spec, config.try_)
    there = _already_there(config, network, spec)
    if not there:
        save_checkpoint(config.output, network, spec)
    lines = [f"{'there already' if there else 'imported'}: {_told(spec)}; checkpoint in {config.output}"]
    if tried is not None:
        png, shares = tried
        storage.write_bytes(storage.join(config.output, _TRIED), png)
        lines.append(f"{config.try_}: {shares}; drawn in {storage.join(config.output, _TRIED)}")
    return "\n".join(lines)


# ---- the network -----------------------------------------------------------------------------------------------------


def _network(config: ImportConfig, bands: int, *, expected: int) -> nn.Module:
    """The network with its weights in eval mode.

    `expected` is the number of channels that the label set or class map speak for; the weights may know another.
    """
    name, options = parse_model(config.model)
    weights = config.weights or options.get("weights")
    if name.startswith(("hf:", "export:")):
        if weights is not None:
            raise InputError("--weights does not go with a network that brings its own", where=config.model)
        channels = output_channels(name, options) or expected
        return build_model(name, num_classes=channels, in_channels=bands, **options).eval()
    if weights is None:
        raise InputError(
            "--weights is missing", where=config.model, expected="a state dict", todo="random weights are no network"
        )
    if weights == "default":  # torchvision's own, which download
        return build_model(name, num_classes=expected, in_channels=bands, **options).eval()
    structure = structure_options(options)
    built = build_model(name, num_classes=expected, in_channels=bands, **structure)
    inner = getattr(built, "network", None)
    keys = {*built.state_dict(), *(inner.state_dict() if isinstance(inner, nn.Module) else ())}
    state = unprefixed(read_state_dict(str(weights), key=config.weights_key), keys)
    channels = _channels_in(state, built, expected)
    if channels != expected:
        built = build_model(name, num_classes=channels, in_channels=bands, **structure)
    # published weights come with an auxiliary head, which only training uses
    plain = {key: value for key, value in state.items() if not key.startswith("aux_classifier.")}
    load_weights(_core(built, state), plain, where=weights)
    return built.eval()


def _core(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """The module whose keys the state dict has: torchvision's and smp's own networks lie within one of ours."""
    inner = getattr(network, "network", None)
    return inner if isinstance(inner, nn.Module) and not any(key.startswith("network.") for key in state) else network


def _channels_in(state: Mapping[str, Tensor], network: nn.Module, built: int) -> int:
    """The output channels that a state dict speaks of, by the shapes that differ from a network of `built` ones."""
    counts = {
        len(state[key])
        for key, own in _core(network, state).state_dict().items()
        if own.ndim and len(own) == built and key in state and state[key].shape[1:] == own.shape[1:]
        if state[key].shape != own.shape
    }
    return counts.pop() if len(counts) == 1 else built


def _probe_size(
    network: nn.Module, input_size: tuple[int, int] | None, limits: InputLimits, multiple: int
) -> tuple[int, int]:
    """A size that pictures will have. Raises InputError for sizes that do not go with each other."""
    sides = (limits.height, limits.width)
    if input_size is not None:
        if any(side not in limit for side, limit in zip(input_size, sides, strict=True)):
            raise InputError(
                "the network does not take this input size",
                found=f"{input_size[0]}x{input_size[1]}",
                expected=f"{limits.height} x {limits.width} px",
            )
        padded = [-(-side // multiple) * multiple for side in input_size]
        check_size(network, padded)
        return padded[0], padded[1]
    if getattr(network, "square", False):
        raise InputError("the network takes square pictures only", todo="give --input-size H,W with H = W")
    height, width = (max(limit.clamp(_PROBE_PX // multiple * multiple or multiple), multiple) for limit in sides)
    if height % multiple or width % multiple:
        raise InputError(
            "--size-multiple does not go with the sizes that the network takes",
            found=multiple,
            expected=f"a divisor of {height} and {width}",
        )
    return height, width


def _probe(network: nn.Module, batch: int, bands: int, size: tuple[int, int]) -> Tensor:
    """What the network gives for noise. Raises InputError where it cannot be run, or gives no logits."""
    x = torch.randn(batch, bands, *size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            logits: Tensor = network(x)
    except InputError:
        raise
    except Exception as error:  # whatever the network's code raises
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(
            "the network cannot be run",
            found=f"{type(error).__name__}: {reason}",
            where=f"{batch} x {bands} x {size[0]} x {size[1]}",
        ) from None
    if not bool(logits.isfinite().all()):
        raise InputError("the network gives logits that are no numbers", todo="are these the right weights?")
    return logits


def _are_probabilities(logits: Tensor) -> bool:
    sums = logits.sum(dim=1)
    return logits.shape[1] > 1 and bool(logits.min() >= 0) and bool(((sums - 1).abs() < 1e-3).all())


# ---- trying and writing ----------------------------------------------------------------------------------------------


def _tried(network: nn.Module, spec: ModelSpec, uri: str) -> tuple[bytes, str]:
    """One picture through the predictor: a PNG of it beside its classes, and their shares in words."""
    try:
        picture = decode(storage.read_bytes(uri))
    except (FileNotFoundError, IsADirectoryError):
        raise InputError("picture does not exist", where=uri) from None
    except DecodeError as error:
        raise InputError("picture cannot be read", where=uri, found=error) from None
    if spec.input_size is None:
        check_size(network, picture.shape[:2])
    (found,) = Predictor(network, spec).predict([picture])
    if not isinstance(found, Prediction):
        raise InputError("the network cannot take this picture", where=uri, found=f"{type(found).__name__}: {found}")
    network.to("cpu")
    order = np.argsort(-found.class_pixels, kind="stable")
    shares = [(int(k), found.class_pixels[k] / found.class_map.size) for k in order if found.class_pixels[k]]
    words = [f"{spec.label_set.names[k]} {100 * share:.1f} %" for k, share in shares]
    return beside(picture, found.class_map, spec.label_set), ", ".join(words) or "no prediction"


def _already_there(config: ImportConfig, network: nn.Module, spec: ModelSpec) -> bool:
    """Whether the output folder holds this very network. Raises InputError where it holds anything else."""
    names = folders.list_names(config.output)
    if not names and not storage.exists(config.output):
        return False
    if DESCRIPTION not in names:
        if not names and folders.is_folder(config.output):
            return False
        raise InputError("output is not empty, and no checkpoint", where=config.output)
    if not read_spec(config.output).imported_from:
        raise InputError("output holds a checkpoint that was not imported", where=config.output)
    if weights_fingerprint(config.output) == network_fingerprint(network, spec):
        return True
    if not config.overwrite:
        raise InputError(
            "output holds another imported network",
            where=config.output,
            found=read_spec(config.output).imported_from,
            todo="give --overwrite to replace it",
        )
    return False


def _told(spec: ModelSpec) -> str:
    labels, size = spec.label_set, spec.input_size
    parts = [f"{spec.model}, {spec.num_channels} channels for the {labels.num_classes} classes of {labels.name}"]
    mean, std = (",".join(f"{value:g}" for value in values) for values in (spec.mean, spec.std))
    parts.append(f"{spec.channel_order} pixels (p / {spec.scale:g} - {mean}) / {std}")
    parts.append("pictures as they are" if size is None else f"pictures resized to {size[0]}x{size[1]}")
    if spec.size_multiple > 1:
        parts.append(f"padded to multiples of {spec.size_multiple}")
    return "; ".join(parts)
