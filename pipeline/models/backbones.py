"""Backbones: torchvision's classification networks as a list of feature maps, never copies of their code.

C1..C5 are the stages at strides 2, 4, 8, 16, 32; beyond `output_stride` a stage keeps its resolution and its
convolutions are dilated instead, so that pretrained weights see the same neighbours as before. Weights are `None`
(random), `"imagenet"` (torchvision's weight enum, which downloads) or the path or URI of a state dict of torchvision's
class.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from pipeline.errors import InputError
from pipeline.storage import read_bytes


class MobileNetV2(nn.Module):
    """MobileNetV2 without pooling and classifier (Sandler et al. 2018): N x B x H x W -> [C1, C2, C3, C4, C5].

    Channels 16, 24, 32, 96, 320 (1280 for C5 with `last_conv`), `channels` lists them.
    """

    def __init__(
        self,
        in_channels: int = 3,
        *,
        output_stride: int = 16,
        weights: str | None = None,
        last_conv: bool = False,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise InputError("output_stride out of range", found=output_stride, expected="8, 16 or 32")
        network = models.mobilenet_v2(weights=models.MobileNet_V2_Weights.DEFAULT if weights == "imagenet" else None)
        if weights not in (None, "imagenet"):
            load_weights(network, read_state_dict(weights), where=weights)
        widen_first_convolution(network, in_channels)
        features = list(network.features)
        stem, blocks, last = features[:2], features[2:18], features[18:]
        # strides after each stage: 2 (stem, 16), 4 (24), 8 (32), 16 (64, 96), 32 (160, 320)
        stages = [stem, blocks[:2], blocks[2:5], blocks[5:12], blocks[12:]]
        if output_stride == 8:
            dilate(stages[3], 2)
            dilate(stages[4], 4)
        elif output_stride == 16:
            dilate(stages[4], 2)
        if last_conv:
            stages[4] = [*stages[4], *last]
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.channels = (16, 24, 32, 96, 1280 if last_conv else 320)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def dilate(blocks: list[nn.Module], dilation: int) -> None:
    """Trade the stride of a stage for dilation, in place.

    The convolution that had the stride reads the same neighbours as before (half the dilation); those after it stand on
    a grid twice as dense, so they reach `dilation` pixels.
    """
    reach = dilation // 2
    for block in blocks:
        for module in block.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
                strided = module.stride != (1, 1)
                module.stride = (1, 1)
                module.dilation = (reach, reach)
                module.padding = (reach * (module.kernel_size[0] // 2), reach * (module.kernel_size[1] // 2))
                if strided:
                    reach = dilation


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


def read_state_dict(uri: str) -> dict[str, Tensor]:
    """Tensors by name from a .pth file (a plain state dict, read with weights_only) or a .safetensors file.

    Raises InputError where the file does not exist or is neither.
    """
    try:
        data = read_bytes(uri)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError("weights file does not exist", where=uri) from None
    try:
        if uri.endswith(".safetensors"):
            from safetensors.torch import load

            return load(data)
        found: Any = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load and safetensors raise a dozen kinds for a file that is none
        reason = str(error).splitlines()[0] if str(error) else ""
        raise InputError("cannot read weights file", where=uri, found=f"{type(error).__name__}: {reason}") from None
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError("weights file holds no state dict", where=uri, found=type(found).__name__)
    return dict(found)


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], *, where: object) -> None:
    """Load every key of `network` from `weights`; InputError names the first missing, foreign or misshapen ones."""
    own = network.state_dict()
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
