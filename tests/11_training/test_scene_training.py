"""Training on scenes: random windows of any type and number of bands, and a checkpoint that says how it is fed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rasterio.transform import Affine
from scene_files import UTM, write_scene

from pipeline.errors import InputError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.job import evaluate
from pipeline.models.spec import read_spec
from pipeline.segment.config import SegmentConfig
from pipeline.segment.job import segment
from pipeline.training.job import TrainConfig, train


def scene(folder: Path, name: str, seed: int, *, size: int = 400, labels_moved: bool = False) -> None:
    """Four bands of 16 bits: the class is where the fourth is high; a strip of nodata, labelled all the same."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 2, (size // 40, size // 40)).repeat(40, 0).repeat(40, 1).astype(np.uint8)
    values = random.integers(400, 900, (size, size, 4)).astype(np.uint16)
    values[..., 3] = np.where(truth == 1, 2400, 700) + random.integers(0, 300, truth.shape)
    values[:30] = 0
    write_scene(folder / "images" / name, values, nodata=0)
    if labels_moved:  # another grid: twice as fine, of the inner part
        fine = truth[20:-20, 20:-20].repeat(2, 0).repeat(2, 1)
        write_scene(folder / "masks" / name, fine, transform=UTM * Affine.translation(20, 20) * Affine.scale(0.5))
    else:
        write_scene(folder / "masks" / name, truth)


def config(tmp_path: Path, **options: Any) -> TrainConfig:
    names = tmp_path / "labels.yaml"
    names.write_text(yaml.safe_dump({"name": "wet", "classes": [
        {"name": "dry", "color": [200, 180, 60]}, {"name": "wet", "color": [30, 60, 200]}]}))  # fmt: skip
    given = {
        "source": str(tmp_path / "c"), "output": str(tmp_path / "o"), "label_set": str(names), "model": "unet",
        "model_options": {"width": 0.1}, "crop": "96,96", "batch_size": 4, "epochs": 12, "learning_rate": 0.01,
        "runner": "processes", "window_px": 128, "halo_px": 32, "validate_every": 12,
    }  # fmt: skip
    return TrainConfig(**{**given, **options})


def test_what_is_learnt_holds_without_being_said_again(tmp_path: Path) -> None:
    for i in range(3):
        scene(tmp_path / "c", f"{i}.tif", i, labels_moved=i == 1)
    scene(tmp_path / "new", "n.tif", 9)
    train(config(tmp_path, bands="4,2,1", scaling="percentile:2,98", holdout=0.3))
    spec = read_spec(str(tmp_path / "o" / "best"))
    assert (spec.bands, spec.band_names, spec.dtype) == (3, ("4", "2", "1"), "wide")
    assert spec.scaling is not None and spec.scaling.kind == "percentile" and 1 / spec.scaling.scales[0] > 1000
    kept = json.loads((tmp_path / "o" / "scene_input.json").read_text())
    assert len(kept["fill"]) == 3 and 300 < kept["fill"][1] < 1000
    predictions = str(tmp_path / "p")
    segment(
        SegmentConfig(
            str(tmp_path / "new" / "images"), str(tmp_path / "o" / "best"), predictions, window_px=128, halo_px=32,
            runner="processes",
        )
    )  # fmt: skip
    evaluate(
        EvaluateConfig(predictions=predictions, labels=str(tmp_path / "new" / "masks"), output=str(tmp_path / "e"))
    )
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["miou"] > 0.8  # another band or another scaling gives half of that


def test_wide_scenes_need_a_scaling_and_bytes_need_none(tmp_path: Path) -> None:
    for i in range(2):
        scene(tmp_path / "c", f"{i}.tif", i)
    with pytest.raises(InputError, match="wider than bytes.*4 bands of uint16.*--scaling percentile:2,98"):
        train(config(tmp_path))
    for i in range(2):
        write_scene(tmp_path / "b" / "images" / f"{i}.tif", np.full((200, 200, 3), 90 + i, np.uint8))
        write_scene(tmp_path / "b" / "masks" / f"{i}.tif", (np.indices((200, 200))[0] // 100).astype(np.uint8))
    train(config(tmp_path, source=str(tmp_path / "b"), max_steps=2, output=str(tmp_path / "ob")))
    spec = read_spec(str(tmp_path / "ob" / "last"))
    assert spec.dtype == "uint8" and spec.scaling is None and spec.mean == (0.485, 0.456, 0.406)


def test_a_scene_is_not_held_out_from_itself(tmp_path: Path) -> None:
    scene(tmp_path / "c", "0.tif", 0)
    with pytest.raises(InputError, match="one scene alone cannot be held out"):
        train(config(tmp_path, scaling="fixed:0,3000"))
