"""How a network is stepped: its parameters in groups for AdamW, and the precision of its forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_BACKBONES = ("encoder.", "backbone.", "network.backbone.", "network.encoder.", "network.network.backbone.")


def parameter_groups(
    model: nn.Module, learning_rate: float, backbone_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Backbone (`learning_rate` times `backbone_rate`) and the rest, each with and without weight decay.

    Norms and biases have none. `base_rate` is what a schedule's factor multiplies. A network whose backbone is called
    otherwise says so in `backbone_prefixes`.
    """
    backbones = (*_BACKBONES, *getattr(model, "backbone_prefixes", ()))
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        groups.setdefault((name.startswith(backbones), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "base_rate": learning_rate * (backbone_rate if backbone else 1.0),
            "lr": 0.0,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for (backbone, decays), parameters in groups.items()
    ]


def autocast_dtype(precision: str, device_type: str) -> torch.dtype | None:
    """What `precision` means on a device; None = float32.

    `auto` is bfloat16 where the device has it in hardware (elsewhere a CPU would only emulate it, slowly).
    """
    if precision == "float32":
        return None
    if precision == "auto":
        if device_type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            native = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
        return torch.bfloat16 if native else None
    return torch.bfloat16
