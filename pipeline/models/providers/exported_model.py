"""`export:PATH.pt2`: a network as a program of torch.export, whose source is not needed.

The program takes one N x B x H x W float tensor and gives N x K x h x w logits, or a dict with them under `out` or
`logits`, or a tuple that begins with them. The file itself is what a checkpoint keeps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import storage
from pipeline.errors import InputError
from pipeline.models.blocks import resize
from pipeline.models.limits import InputLimits, Range
from pipeline.models.providers.program_file import read_program

_LOGITS = ("out", "logits")
_SMALLEST_BOUND = 2  # torch.export writes 2 for "any": it never traces sizes of 0 and 1


class ExportedModel(nn.Module):
    """N x B x H x W float -> logits N x K x H x W; what the program gives smaller is brought up bilinearly.

    `limits` says which batches and sizes the program takes, `size_multiple` what the sizes must be a multiple of,
    `square` whether height and width must agree. `program` are the bytes of the file (default: those at `name`, path
    or URI). With `probabilities` the program gives these instead of logits, and their logarithm is taken. It cannot be
    trained. Raises InputError for a file that is no such program.
    """

    memory_format = torch.contiguous_format  # a traced view holds for the memory it was traced with

    def __init__(
        self,
        name: str,
        num_classes: int,
        in_channels: int = 3,
        *,
        program: bytes | None = None,
        probabilities: bool = False,
    ) -> None:
        super().__init__()
        if program is None:
            try:
                program = storage.read_bytes(name)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise InputError("exported program does not exist", where=name) from None
        self.program = program
        self.probabilities = probabilities
        self._exported = read_program(program, where=name)
        shape = _input_shape(self._exported, where=name)
        if shape[1] != in_channels:
            raise InputError(
                "exported program for other pictures", where=name, found=f"{shape[1]} bands", expected=in_channels
            )
        ranges = [_range(side, self._exported.range_constraints) for side in (shape[0], *shape[2:])]
        self.limits = InputLimits(*ranges)
        self.size_multiple = math.lcm(*(_multiple(side) for side in shape[2:]))
        self.square = not isinstance(shape[2], int) and str(shape[2]) == str(shape[3])
        self.network = self._exported.module(check_guards=False)  # `forward` looks at the size itself
        self._device = torch.device("cpu")

    def forward(self, x: Tensor) -> Tensor:
        limits = self.limits
        if not (x.shape[0] in limits.batch and x.shape[2] in limits.height and x.shape[3] in limits.width):
            raise ValueError(
                f"the program takes {limits.batch} pictures of {limits.height} x {limits.width} px, "
                f"not {x.shape[0]} of {x.shape[2]} x {x.shape[3]}"
            )
        found = _logits(self.network(x.contiguous()))
        if self.probabilities:
            return resize(found.float(), x).clamp_min(1e-12).log()
        return resize(found, x)

    def to(self, *args: Any, **kwargs: Any) -> ExportedModel:
        """Only to another device: the graph names devices of its own, which move as well."""
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        if device is not None and device != self._device:
            from torch.export.passes import move_to_device_pass

            self._exported = move_to_device_pass(self._exported, device)
            self.network = self._exported.module(check_guards=False)
            self._device = device
        return self

    def train(self, mode: bool = True) -> ExportedModel:
        """What was traced stays as it was traced."""
        self.training = False
        return self

    @staticmethod
    def portable(name: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        kept = {key: value for key, value in options.items() if key != "program"}
        return f"export:{name.rstrip('/').rpartition('/')[2]}", kept


def _input_shape(program: Any, *, where: str) -> tuple[Any, ...]:
    """N, B, H, W of the one input: whole numbers, or symbols where the program takes several."""
    names = program.graph_signature.user_inputs
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [values.get(name, name) for name in names]
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].ndim != 4:
        given = [f"{i.ndim}-d tensor" if isinstance(i, Tensor) else type(i).__name__ for i in inputs]
        raise InputError(
            "exported program takes other inputs",
            where=where,
            found=", ".join(given) or "none",
            expected="one N x B x H x W",
        )
    if inputs[0].dtype != torch.float32:
        raise InputError(
            "exported program takes other pixels", where=where, found=inputs[0].dtype, expected="torch.float32"
        )
    return tuple(side if isinstance(side, int) else side.node.expr for side in inputs[0].shape)


def _range(side: Any, constraints: Mapping[Any, Any]) -> Range:
    if isinstance(side, int):
        return Range(side, side)
    bounds = constraints.get(side)
    if bounds is None:
        return Range()
    finite = bool(getattr(bounds.upper, "is_Integer", False))
    return Range(1 if bounds.lower <= _SMALLEST_BOUND else int(bounds.lower), int(bounds.upper) if finite else None)


def _multiple(side: Any) -> int:
    """32 for a size that was exported as 32 * h."""
    return 1 if isinstance(side, int) else max(1, int(side.as_coeff_Mul()[0]))


def _logits(found: Any) -> Tensor:
    """Raises InputError where the program's output holds no N x K x h x w floats."""
    if isinstance(found, Mapping):
        for key in _LOGITS:
            if key in found:
                found = found[key]
                break
        else:
            raise InputError("exported program gives no logits", found=", ".join(map(str, found)), expected=_either())
    elif isinstance(found, (tuple, list)) and found:
        found = found[0]
    if not isinstance(found, Tensor) or found.ndim != 4 or not found.is_floating_point():
        kind = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise InputError("exported program gives no logits", found=kind, expected=_either())
    return found


def _either() -> str:
    return f"N x K x H x W floats, a dict with {' or '.join(map(repr, _LOGITS))}, or a tuple that begins with them"
