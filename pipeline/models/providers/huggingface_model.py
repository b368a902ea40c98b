"""`hf:PATH`: a semantic segmentation network from a Hugging Face folder (SegFormer, UPerNet, BEiT, DPT, ...).

The folder holds `config.json`, weights (safetensors, or a state dict) and, as published, `preprocessor_config.json`.
Networks are transformers' own (https://huggingface.co/docs/transformers); no code of the folder is run, nothing is
downloaded. A checkpoint carries the configuration as an option and is rebuilt without the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import storage
from pipeline.errors import InputError
from pipeline.models import optional_library
from pipeline.models.backbones import widen_first_convolution
from pipeline.models.blocks import resize
from pipeline.storage import folders

_CONFIG = "config.json"
_PIXELS = "preprocessor_config.json"
# Of a configuration: where it came from, what its classes are called, and what could bring in code or downloads.
_LEFT_OUT = (
    "_name_or_path architectures transformers_version dtype torch_dtype id2label label2id num_labels auto_map"
).split()
# A head that only training with their own loss uses: it would get no gradient here.
_SWITCHES = {"use_auxiliary_head": False, "use_pretrained_backbone": False}


class HuggingFaceModel(nn.Module):
    """N x B x H x W float -> logits N x K x H x W, brought up bilinearly from the network's own stride (SegFormer: 4).

    `name` is the folder (path or URI), whose weights are loaded; where the number of classes differs, the last layer
    begins at random. With the option `config` (a mapping, as in config.json) no folder is read and all weights are
    random.
    """

    memory_format = torch.contiguous_format  # some of them view what only lies so in memory

    def __init__(
        self, name: str, num_classes: int, in_channels: int = 3, *, config: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        transformers = optional_library("transformers", "huggingface")
        where = name if config is None else f"hf:{name}"
        text = dict(config) if config is not None else _read_config(name)
        with _quiet_and_offline(transformers), _named_errors(where):
            built = transformers.AutoConfig.for_model(**{k: v for k, v in text.items() if k not in _LEFT_OUT})
            for switch, value in _SWITCHES.items():
                if hasattr(built, switch):
                    setattr(built, switch, value)
            built.num_labels = num_classes
            if config is not None:
                network = transformers.AutoModelForSemanticSegmentation.from_config(built, trust_remote_code=False)
            else:
                network = _load(transformers, name, built, file_classes=_num_classes(text))
        bands = int(getattr(built, "num_channels", 3))
        if in_channels != bands:
            widen_first_convolution(network, in_channels)
            for module in network.modules():  # some count their input's bands
                if getattr(module, "num_channels", None) == bands:
                    module.num_channels = in_channels  # type: ignore[assignment]
        self.network = network.float()
        self.backbone_prefixes = (f"network.{network.base_model_prefix or 'backbone'}.", "network.backbone.")

    def forward(self, x: Tensor) -> Tensor:
        return resize(self.network(pixel_values=x.contiguous()).logits, x)

    @staticmethod
    def portable(name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        text = options.get("config") or _read_config(name)
        config = {key: value for key, value in text.items() if key not in _LEFT_OUT}
        return f"hf:{config['model_type']}", {**options, "config": config}

    @staticmethod
    def weights_sha256(name: str, options: Mapping[str, Any]) -> str | None:
        sha256 = hashlib.sha256()
        for file in folders.list_names(name) if "config" not in options else ():
            if file.endswith((".safetensors", ".bin")):
                sha256.update(hashlib.sha256(storage.read_bytes(storage.join(name, file))).digest())
        return sha256.hexdigest()

    @staticmethod
    def output_channels(name: str, options: Mapping[str, Any]) -> int:
        """The classes that the folder's weights know."""
        return _num_classes(_read_config(name))

    @staticmethod
    def preprocessing(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """`preprocessor_config.json` as fields of a `ModelSpec`; empty where there is none.

        `input_size` is as it stands there where it is no fixed height and width (a shortest edge, for one).
        """
        try:
            text = storage.read_json(storage.join(name, _PIXELS))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except ValueError as error:
            raise InputError(f"{_PIXELS} is not JSON", where=name, found=error) from None
        found: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "scale": 1.0}
        if text.get("do_normalize", True) and text.get("image_mean") and text.get("image_std"):
            found |= {"mean": tuple(text["image_mean"]), "std": tuple(text["image_std"])}
        if text.get("do_rescale", True):
            found["scale"] = round(1 / text.get("rescale_factor", 1 / 255), 6)
        found["channel_order"] = "bgr" if text.get("do_flip_channel_order") else "rgb"
        if text.get("do_resize", True) and text.get("size"):
            size = text["size"]
            fixed = isinstance(size, dict) and {"height", "width"} <= set(size)
            found["input_size"] = (int(size["height"]), int(size["width"])) if fixed else size
        return found


def _read_config(folder: str) -> dict[str, Any]:
    try:
        text = json.loads(storage.read_bytes(storage.join(folder, _CONFIG)))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            "no Hugging Face model",
            where=folder,
            expected=f"a local folder or URI with {_CONFIG} and weights",
            todo="download the model first; names of the hub are not looked up",
        ) from None
    except ValueError as error:
        raise InputError(f"{_CONFIG} is not JSON", where=folder, found=error) from None
    if not isinstance(text, dict) or not isinstance(text.get("model_type"), str):
        raise InputError(f"{_CONFIG} is no model's", where=folder, expected="a mapping with `model_type`")
    return text


def _num_classes(config: Mapping[str, Any]) -> int:
    return len(config["id2label"]) if config.get("id2label") else int(config.get("num_labels", 2))


def _load(transformers: Any, folder: str, config: Any, *, file_classes: int) -> Any:
    """The network of `folder`. Raises InputError where weights are missing, foreign or misshapen."""
    with _local(folder) as path:
        network, found = transformers.AutoModelForSemanticSegmentation.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    foreign = [key for key in found["unexpected_keys"] if not key.startswith("auxiliary_head.")]
    wrong = [
        f"{key} {tuple(theirs)} instead of {tuple(ours)}"
        for key, theirs, ours in found["mismatched_keys"]
        if theirs[1:] != ours[1:] or (theirs[0], ours[0]) != (file_classes, config.num_labels)
    ]
    for what, keys in (("lacks", found["missing_keys"]), ("has foreign", foreign), ("has misshapen", wrong)):
        if keys:
            raise InputError(
                f"weights of another network: the folder {what} {len(keys)} of {len(network.state_dict())} keys",
                where=folder,
                found=", ".join(sorted(keys)[:3]) + (" ..." if len(keys) > 3 else ""),
                expected=f"a state dict of {type(network).__name__}",
            )
    return network


@contextlib.contextmanager
def _local(folder: str) -> Iterator[str]:
    """A local folder with the model's files; those of a URI are fetched for as long as it is used."""
    if storage.is_local(folder):
        yield storage.local_path(folder)
        return
    with tempfile.TemporaryDirectory() as path:
        for name in folders.list_names(folder):
            if name.endswith((".json", ".safetensors", ".bin")):
                with open(os.path.join(path, name), "wb") as file:
                    file.write(storage.read_bytes(storage.join(folder, name)))
        yield path


@contextlib.contextmanager
def _quiet_and_offline(transformers: Any) -> Iterator[None]:
    """Neither progress bars nor a look at the hub, whatever the process has set before; restored afterwards."""
    from huggingface_hub import constants

    logging = transformers.utils.logging
    before = constants.HF_HUB_OFFLINE, logging.get_verbosity(), logging.is_progress_bar_enabled()
    constants.HF_HUB_OFFLINE = True
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before[0]
        logging.set_verbosity(before[1])
        if before[2]:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _named_errors(where: str) -> Iterator[None]:
    """transformers' own errors as ours: it raises half a dozen kinds for what does not fit."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise InputError(
            "transformers cannot build this network", where=where, found=f"{type(error).__name__}: {reason}"
        ) from None
