"""One strided convolution as a checkpoint: with next to no network, what is left of a job is its overhead."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.labels import CAMVID
from pipeline.prediction.import_config import ImportConfig
from pipeline.prediction.import_model import import_model


class Tiny(nn.Module):
    """N x 3 x H x W -> logits of CamVid's classes, in blocks of 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, CAMVID.num_classes, 8, stride=8)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.interpolate(self.convolution(x), size=x.shape[-2:], mode="nearest")


def make_tiny(folder: Path) -> str:
    """Write the checkpoint; its path."""
    torch.manual_seed(0)
    sizes = {side: torch.export.Dim(name, min=16, max=8192) for side, name in ((2, "height"), (3, "width"))}
    program = torch.export.export(Tiny().eval(), (torch.rand(1, 3, 96, 128),), dynamic_shapes=(sizes,))
    with tempfile.TemporaryDirectory() as scratch:
        torch.export.save(program, Path(scratch, "tiny.pt2"))
        program_uri = f"export:{scratch}/tiny.pt2"
        import_model(
            ImportConfig(program_uri, "camvid", str(folder), mean="0.485,0.456,0.406", std="0.229,0.224,0.225")
        )
    return str(folder)
