"""A trained network as a folder that needs nothing else: saved and loaded.

`model.json` (model_spec.py) is written last, so replacing a checkpoint is one atomic put: a reader sees the old network
or the new one, and anything half-written has no `model.json` that fits it. No pickle is read.
"""

from __future__ import annotations

import hashlib

import safetensors.torch
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipeline import storage
from pipeline.models.backbones import load_weights
from pipeline.models.spec import CHECKPOINT_VERSION, DESCRIPTION, ModelSpec, fingerprint_of, read_checkpoint
from pipeline.storage import folders

_PREFIXES = ("weights-", "program-")


def save_checkpoint(uri: str, model: nn.Module, spec: ModelSpec) -> None:
    """Write or replace the checkpoint folder `uri`; a checkpoint that stands there is never seen half-replaced."""
    data, exported = _file_of(model), _program_of(model) is not None
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"program-{sha256[:8]}.pt2" if exported else f"weights-{sha256[:8]}.safetensors"
    storage.write_bytes(storage.join(uri, name), data)
    later = exported or spec.input_size is not None or spec.class_map is not None
    description = {
        "checkpoint_version": CHECKPOINT_VERSION if later else 1,
        **spec.to_json(),
        "files": {name: {"size_bytes": len(data), "sha256": sha256}},
    }
    storage.write_json(storage.join(uri, DESCRIPTION), description)
    for other in folders.list_names(uri):
        if other.startswith(_PREFIXES) and other != name:
            storage.remove(storage.join(uri, other))


def load_checkpoint(uri: str) -> tuple[nn.Module, ModelSpec]:
    """The network in eval mode with its weights, and its description. Raises InputError like `read_checkpoint`."""
    spec, name, data = read_checkpoint(uri)
    if name.startswith("program-"):
        return spec.build(program=data).eval(), spec
    with torch.random.fork_rng(devices=[]):  # the random weights below are overwritten: nobody's seed should feel it
        model = spec.build()
    load_weights(model, safetensors.torch.load(data), where=storage.join(uri, name))
    return model.eval(), spec


def network_fingerprint(model: nn.Module, spec: ModelSpec) -> str:
    """The `weights_fingerprint` of the checkpoint that `save_checkpoint` would write."""
    return fingerprint_of(spec, [hashlib.sha256(_file_of(model)).hexdigest()])


def _file_of(model: nn.Module) -> bytes:
    program = _program_of(model)
    return safetensors.torch.save(_plain_state(model)) if program is None else program


def _program_of(model: nn.Module) -> bytes | None:
    """The file of an exported network (models.exported_model), None for any other."""
    program: bytes | None = getattr(model, "program", None)
    return program


def _plain_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of the network itself on the CPU, whatever wraps it; copies, so that tied weights may be saved."""
    while True:
        inner = model.module if isinstance(model, DistributedDataParallel) else getattr(model, "_orig_mod", None)
        if inner is None:
            break
        model = inner
    return {
        key: value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for key, value in model.state_dict().items()
    }
