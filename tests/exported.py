"""Small networks, and the program that torch.export makes of one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

ANY = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}  # so many pictures of any size


class Small(nn.Module):
    """Two layers and logits at half the size."""

    def __init__(self, classes: int = 4, bands: int = 3) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.first = nn.Conv2d(bands, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        return self.second(self.norm(self.first(x)).relu())


class Given(Small):
    """The same with its output as `shape` makes it."""

    def __init__(self, shape: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Any:
        return self.shape(super().forward(x))


class Fine(nn.Conv2d):
    """Sees one pixel around each: its tiles are exactly the whole."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        super().__init__(3, 4, 3, padding=1)


def export(network: nn.Module, path: Path, *inputs: Tensor, dynamic: dict[int, Any] | None = None) -> str:
    program = torch.export.export(network.eval(), inputs, dynamic_shapes=dynamic and (dynamic,))
    torch.export.save(program, path)
    return f"export:{path}"
