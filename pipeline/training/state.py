"""What a resumed training run goes on from: OUTPUT/_train/state.pt, replaced whole.

The first worker writes it, every worker of a resumed run reads it, on Ray as on one machine. `position.json` beside it
holds the step alone, so that samples can be planned without loading tensors; it is written last, so it is never ahead.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline import storage

STATE, POSITION = "_train/state.pt", "_train/position.json"


@dataclass
class State:
    """The step that comes next, and what was found so far. `best` is the best mIoU, None before there is one."""

    step: int = 0
    best: float | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    failed_samples: int = 0


def save_state(output: str, state: State, tensors: dict[str, Any]) -> None:
    """Replace the saved state; `tensors` are state dicts by name."""
    data = io.BytesIO()
    torch.save({**vars(state), **tensors}, data)
    storage.write_bytes(storage.join(output, STATE), data.getvalue())
    storage.write_json(storage.join(output, POSITION), {"step": state.step})


def load_state(output: str, device: torch.device) -> tuple[State, dict[str, Any]] | None:
    """The saved state and its state dicts on `device`; None where there is none."""
    try:
        return unpack_state(storage.read_bytes(storage.join(output, STATE)), device)
    except FileNotFoundError:
        return None


def unpack_state(data: bytes, device: torch.device) -> tuple[State, dict[str, Any]]:
    """The inverse of what `save_state` wrote, or of what version 0.1 left in Ray Train's own checkpoints."""
    saved = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    state = State(**{name: saved.pop(name) for name in list(saved) if name in State.__dataclass_fields__})
    if state.best is not None and state.best < 0:  # version 0.1's "none yet"
        state.best = None
    return state, saved
