"""What the files on the segment job share as fixtures: a network, pictures, and one run that nothing disturbed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.labels import CAMVID
from pipeline.models import build_model
from pipeline.models.checkpoint import save_checkpoint
from pipeline.models.spec import ModelSpec
from pipeline.segment.config import SegmentConfig
from pipeline.segment.job import segment


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network with random weights whose classes vary over a picture."""
    torch.manual_seed(3)
    model = build_model("torchvision:lraspp_mobilenet_v3_large", num_classes=11)
    uri = str(tmp_path_factory.mktemp("checkpoint"))
    save_checkpoint(uri, model, ModelSpec("torchvision:lraspp_mobilenet_v3_large", {}, CAMVID))
    return uri


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 small pictures of four sizes; drawn noise, so that masks differ."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    for i in range(60):
        height, width = [(64, 96), (65, 97), (96, 64), (40, 40)][i % 4]
        pixels = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(folder / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="session")
def undisturbed(ray_session: None, checkpoint: str, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "undisturbed"
    told = segment(SegmentConfig(str(pictures), checkpoint, str(output), rows_per_file=8, num_predictors=2))
    assert told == f"60 of 60 regions ok, 0 failed in {output}/predictions"
    return output
