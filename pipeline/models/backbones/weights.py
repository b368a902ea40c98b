"""Weights from a file into a network, and a first convolution for any number of bands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.models.weights_file import read_state_dict, unprefixed


def classifier(name: str, weights: str | None, in_channels: int, **options: Any) -> Any:
    """torchvision's classification network `name`, its weights loaded, its first convolution taking `in_channels`.

    `weights` is None (random), "imagenet" (the network's default weight enum, which downloads) or the path or URI of a
    state dict. Raises InputError where the file is none, or another network's.
    """
    from torchvision import models  # as long to load as torch itself, and most networks here do without

    network = models.get_model(name, weights="DEFAULT" if weights == "imagenet" else None, **options)
    if weights not in (None, "imagenet"):
        load_weights(network, read_state_dict(weights), where=weights)
    widen_first_convolution(network, in_channels)
    return network


def widen_first_convolution(network: nn.Module, in_channels: int) -> None:
    """Make the first convolution of `network` (3 bands) take `in_channels` bands, in place.

    From 3 bands up the RGB filters stay and the others begin as their mean, so a picture whose further bands are zero
    gives what it gave before. Below 3 every band begins as the mean times 3 / bands, so grey pictures act as they did
    when they were repeated three times.
    """
    if in_channels == 3:
        return
    name, first = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    if first.in_channels != 3 or first.groups != 1:
        raise InputError("cannot widen a first convolution", found=first, expected="3 input channels in one group")
    mean = first.weight.detach().mean(dim=1, keepdim=True)
    if in_channels > 3:
        weight = torch.cat([first.weight.detach(), mean.expand(-1, in_channels - 3, -1, -1)], dim=1)
    else:
        weight = (mean * (3 / in_channels)).expand(-1, in_channels, -1, -1)
    first.weight = nn.Parameter(weight.contiguous())
    first.in_channels = in_channels


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], *, where: object) -> None:
    """Load every key of `network` from `weights`, without a prefix that all of them share.

    Raises InputError that names the first missing, foreign or misshapen ones.
    """
    own = network.state_dict()
    weights = unprefixed(weights, own)
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    foreign = [key for key in weights if key not in own]
    wrong = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    for what, keys in (("lacks", missing), ("has foreign", foreign), ("has misshapen", wrong)):
        if keys:
            raise InputError(
                f"weights of another network: the file {what} {len(keys)} of {len(own)} keys",
                where=where,
                found=", ".join(keys[:3]) + (" ..." if len(keys) > 3 else ""),
                expected=f"a state dict of {type(network).__name__}",
            )
    network.load_state_dict(weights, strict=False)
