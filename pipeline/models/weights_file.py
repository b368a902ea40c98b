"""Weights as people find them: a state dict, or one among other entries of a training script's file.

torchvision's reference scripts, Lightning, mmsegmentation and timm save the state dict under `model`, `state_dict` or
such, beside the epoch and the optimizer, with prefixes such as `module.` on every key. Files are read with
`weights_only`: nothing in them is run, and objects other than tensors, numbers, strings, lists and dicts are refused.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import InputError, nearest
from pipeline.runtime.progress import say
from pipeline.storage import read_bytes

_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "encoder.", "backbone.")


def read_state_dict(uri: str, *, key: str | None = None) -> dict[str, Tensor]:
    """Tensors by name from a .pth file or a .safetensors file; `key` names the entry that holds them.

    Without `key` the one entry that is a state dict is taken, and that is said. Raises InputError where the file does
    not exist, holds no state dict or several, or holds other objects beside the tensors.
    """
    try:
        data = read_bytes(uri)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError("weights file does not exist", where=uri) from None
    found = _read(uri, data)
    if _is_state_dict(found) and key is None:
        return dict(found)
    candidates = dict(_candidates(found))
    if key is not None:
        if key not in candidates:
            known = ", ".join(candidates) or "none"
            hint = nearest(key, candidates) or None
            raise InputError(f"weights file has no state dict {key!r}", where=uri, found=known, todo=hint)
        return dict(candidates[key])
    if not candidates:
        kinds = ", ".join(f"{name}: {type(value).__name__}" for name, value in list(_items(found))[:6])
        raise InputError(
            "weights file holds no state dict",
            where=uri,
            found=f"{type(found).__name__} of {kinds}" if kinds else type(found).__name__,
            expected="tensors by name, or an entry that holds them (model, state_dict, ...)",
        )
    if len(candidates) > 1:
        raise InputError(
            "weights file holds several state dicts",
            where=uri,
            found=", ".join(candidates),
            todo=f"choose one with --weights-key, such as --weights-key {next(iter(candidates))}",
        )
    ((name, state),) = candidates.items()
    say(f"weights: the entry {name!r} of {uri} ({len(state)} tensors)")
    return dict(state)


def unprefixed(weights: Mapping[str, Tensor], own: Iterable[str]) -> dict[str, Tensor]:
    """The weights without prefixes that all their keys share, where the keys `own` of a network are met better so."""
    keys, state = set(own), dict(weights)
    best, taken, removed = state, "", ""
    while prefix := next((p for p in _PREFIXES if state and all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        taken += prefix
        if len(keys & set(state)) > len(keys & set(best)):
            best, removed = state, taken
    if removed:
        say(f"weights: every name without its prefix {removed!r}")
    return best


def _read(uri: str, data: bytes) -> Any:
    if uri.endswith(".safetensors"):
        from safetensors.torch import load

        try:
            return load(data)
        except Exception as error:  # a dozen kinds, for a file that is none
            raise _unreadable(uri, error) from None
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        objects = _objects(data)
        if "TorchScript" in str(error):
            raise InputError(
                "weights file is a TorchScript program",
                where=uri,
                expected="a state dict",
                todo="save one where its class is known: torch.save(torch.jit.load(FILE).state_dict(), 'plain.pth')",
            ) from None
        if objects:
            raise _refused(uri, objects) from None
        raise _unreadable(uri, error) from None


def _unreadable(uri: str, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else ""
    return InputError("cannot read weights file", where=uri, found=f"{type(error).__name__}: {reason}")


def _refused(uri: str, objects: list[str]) -> InputError:
    """The error for a file with objects beside its tensors, and the line that turns it into a plain one."""
    load = f"torch.load({os.path.basename(uri)!r}, map_location='cpu', weights_only=False)"
    if any(name.startswith(("torch.nn.modules.", "torchvision.models.")) for name in objects):
        what, save = "weights file is a whole pickled network", f"{load}.state_dict()"
    else:
        what = "weights file holds other objects beside the tensors"
        save = f"{{k: v for k, v in {load}.items() if hasattr(v, 'keys')}}"
    more = f" and {len(objects) - 5} more" if len(objects) > 5 else ""
    return InputError(
        what,
        where=uri,
        found=", ".join(objects[:5]) + more,
        todo="such a file can run code when it is opened, so it is not; where you trust it, make a plain one:"
        f" python -c \"import torch; torch.save({save}, 'plain.pth')\"",
    )


def _objects(data: bytes) -> list[str]:
    """The classes and functions that opening a file would call, by name; empty where it cannot be told."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data)))
    except Exception:  # a file of the format before torch 1.6, or none
        return []


def _candidates(found: Any) -> Iterable[tuple[str, Mapping[str, Tensor]]]:
    """The entries that are state dicts, and those one level further down, as `model_ema.module`."""
    for name, value in _items(found):
        if _is_state_dict(value):
            yield name, value
        elif not name.startswith("optim"):
            yield from ((f"{name}.{inner}", state) for inner, state in _items(value) if _is_state_dict(state))


def _items(found: Any) -> Iterable[tuple[str, Any]]:
    return (
        [(name, value) for name, value in found.items() if isinstance(name, str)] if isinstance(found, Mapping) else []
    )


def _is_state_dict(found: Any) -> bool:
    return (
        isinstance(found, Mapping)
        and len(found) > 0
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items())
    )
