"""Scenes through the segment job: no seams, no prediction without a picture, rows that say what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rasterio.transform import Affine
from scene_files import UTM, smooth, write_scene

from pipeline import storage
from pipeline.errors import InputError
from pipeline.labels import LabelSet
from pipeline.models import build_model
from pipeline.models.checkpoint import load_checkpoint, save_checkpoint
from pipeline.models.spec import ModelSpec
from pipeline.prediction.predictor import Prediction, Predictor
from pipeline.segment.config import SegmentConfig
from pipeline.segment.job import segment
from pipeline.tables.prediction_table import read_predictions

LABELS = LabelSet("land", ("field", "wood", "water"), ((200, 180, 60), (20, 90, 20), (30, 60, 200)))


def checkpoint(folder: Path, model: str, bands: int = 3, **options: Any) -> str:
    torch.manual_seed(1)
    network = build_model(model, num_classes=3, in_channels=bands, **options).eval()
    mean, std = (0.5,) * bands, (0.25,) * bands
    save_checkpoint(str(folder), network, ModelSpec(model, options, LABELS, bands=bands, mean=mean, std=std))
    return str(folder)


def small_unet(folder: Path, bands: int = 3) -> str:
    return checkpoint(folder, "unet", bands, width=0.1)


def config(tmp_path: Path, **options: Any) -> SegmentConfig:
    given = {"source": str(tmp_path / "c"), "checkpoint": str(tmp_path / "k"), "output": str(tmp_path / "o")}
    return SegmentConfig(**{**given, "runner": "processes", "num_predictors": 1, "max_failure_rate": 1.0, **options})


def stitched(output: Path, path: str, size: tuple[int, int]) -> np.ndarray:
    found = np.full(size, 77, np.uint8)
    for row in read_predictions(str(output)):
        if row["path"] == path and row["status"] == "ok":
            window = row["window"] or {"x": 0, "y": 0}
            mask = row["mask"]
            found[window["y"] : window["y"] + mask.shape[0], window["x"] : window["x"] + mask.shape[1]] = mask
    return found


def test_windows_meet_without_a_seam(tmp_path: Path) -> None:
    """A halo as wide as the network sees: the class map of the whole scene, pixel by pixel."""
    values = smooth(700, 840)
    write_scene(tmp_path / "c" / "s.tif", values)
    small_unet(tmp_path / "k")
    segment(config(tmp_path, window_px=256, halo_px=96))
    rows = list(read_predictions(str(tmp_path / "o"), ["window", "transform", "crs", "class_pixels", "class_area_m2"]))
    assert len(rows) == 12
    whole = Predictor(*load_checkpoint(str(tmp_path / "k")), tile_px=2000, threads=1).predict([values])[0]
    assert isinstance(whole, Prediction)
    found = stitched(tmp_path / "o", "s.tif", (700, 840))
    assert (found == whole.class_map).all()
    assert np.sum([row["class_pixels"] for row in rows], axis=0).tolist() == whole.class_pixels.tolist()
    for row in rows:
        moved = UTM * Affine.translation(row["window"]["x"], row["window"]["y"])
        assert row["crs"] == "EPSG:32618" and row["transform"] == list(moved)[:6]
        assert row["class_area_m2"] == [pixels * 100.0 for pixels in row["class_pixels"]]
    statistics = pq.read_table(tmp_path / "o" / "statistics" / "statistics.parquet").to_pylist()[0]
    assert statistics["class_area_m2"] == [pixels * 100.0 for pixels in whole.class_pixels.tolist()]


def test_no_prediction_where_there_is_no_picture(tmp_path: Path) -> None:
    values = smooth(256, 384, 4, "uint16", top=3000) + 1
    values[:, 256:] = 0
    values[:40, :50] = 0
    write_scene(tmp_path / "c" / "s.tif", values, nodata=0)
    small_unet(tmp_path / "k", bands=3)
    told = segment(config(tmp_path, window_px=128, halo_px=32, bands="4,1,2", scaling="fixed:0,3000"))
    assert told.startswith("6 of 6 regions ok")
    found = stitched(tmp_path / "o", "s.tif", (256, 384))
    assert (found[:, 256:] == 255).all() and (found[:40, :50] == 255).all() and (found[40:, :256] < 3).all()
    empty = [r for r in read_predictions(str(tmp_path / "o")) if r["window"]["x"] == 256]
    assert all(sum(row["class_pixels"]) == 0 and row["mean_confidence"] is None for row in empty) and len(empty) == 2
    # by hand: band 4, 1, 2 over 3000, what is missing filled with the mean
    network, spec = load_checkpoint(str(tmp_path / "k"))
    x = np.clip(values[..., [3, 0, 1]].astype(np.float32) / 3000, 0, 1)
    x = torch.from_numpy(((x - 0.5) / 0.25) * (values[..., :1] > 0)).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        by_hand = network(x[..., :256, :])[0].argmax(0).numpy()
    inside = (slice(64, 192), slice(64, 192))  # away from what windows see less of
    assert (found[inside] == by_hand[inside]).mean() > 0.99


def test_what_does_not_fit_is_said_on_the_header(tmp_path: Path) -> None:
    small_unet(tmp_path / "k")
    write_scene(tmp_path / "c" / "deep.tif", smooth(64, 64, 3, "uint16"))
    with pytest.raises(InputError, match="no scene fits the network: .*3 bands of uint16.*3 of uint8.*--scaling"):
        segment(config(tmp_path))
    assert not (tmp_path / "o").exists()
    write_scene(tmp_path / "c" / "five.tif", smooth(64, 64, 5))
    write_scene(tmp_path / "c" / "good.tif", smooth(64, 64))
    (tmp_path / "c" / "torn.tif").write_bytes(b"II*\0 nothing")
    assert segment(config(tmp_path)).startswith("1 of 4 regions ok, 3 failed")
    errors = {row["path"]: row["error"] for row in read_predictions(str(tmp_path / "o"), ["path", "error"])}
    assert "--bands 1,2,3" in errors["five.tif"] and errors["good.tif"] is None and "torn.tif" in errors["torn.tif"]


def test_scenes_on_s3_are_read_by_ranges(tmp_path: Path, s3: Any) -> None:
    path = write_scene(tmp_path / "s.tif", smooth(500, 500), nodata=0)
    storage.write_bytes(s3.uri("scenes", "s.tif"), path.read_bytes())
    small_unet(tmp_path / "k")
    told = segment(config(tmp_path, source=s3.uri("scenes"), window_px=256, halo_px=32))
    assert told.startswith("4 of 4 regions ok")


def test_a_scaling_that_was_said_takes_any_type(tmp_path: Path) -> None:
    small_unet(tmp_path / "k")
    write_scene(tmp_path / "c" / "bytes.tif", smooth(64, 64, top=60))
    write_scene(tmp_path / "c" / "deep.tif", smooth(64, 64, 3, "uint16", top=60))
    assert segment(config(tmp_path, scaling="fixed:0,60")).startswith("2 of 2 regions ok")
    found = [stitched(tmp_path / "o", name, (64, 64)) for name in ("bytes.tif", "deep.tif")]
    np.testing.assert_array_equal(*found)


def test_bands_and_scaling_that_make_no_sense(tmp_path: Path) -> None:
    small_unet(tmp_path / "k")
    write_scene(tmp_path / "c" / "s.tif", smooth(64, 64))
    for options, words in (
        ({"bands": "1,2"}, "--bands does not fit the network"),
        ({"bands": "1,1,2"}, "names a band twice"),
        ({"scaling": "percentile:2,98"}, "--scaling percentile is for training"),
        ({"scaling": "fixed:9,3"}, "--scaling has a wrong value"),
        ({"scaling": "fixed:0,1;0,2"}, "--scaling does not fit the bands"),
    ):
        with pytest.raises(InputError, match=words):
            segment(config(tmp_path, **options))


def test_windows_are_evaluated_with_truth_read_by_windows(tmp_path: Path) -> None:
    """Labels on another grid, of a part of the scene: what they do not cover is void."""
    from pipeline.evaluate.config import EvaluateConfig
    from pipeline.evaluate.job import evaluate

    values = smooth(300, 260)
    write_scene(tmp_path / "c" / "s.tif", values)
    small_unet(tmp_path / "k")
    segment(config(tmp_path, window_px=128, halo_px=32))
    found = stitched(tmp_path / "o", "s.tif", (300, 260))
    labels = found[20:220, 30:200].copy()
    labels[:5] = (labels[:5] + 1) % 3
    write_scene(tmp_path / "labels" / "s.tif", labels, transform=UTM * Affine.translation(30, 20))

    evaluate(
        EvaluateConfig(predictions=str(tmp_path / "o"), labels=str(tmp_path / "labels"), output=str(tmp_path / "e"))
    )
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["pixels"] == labels.size and metrics["ignored"] == found.size - labels.size
    assert metrics["pixel_accuracy"] == pytest.approx(1 - 5 / 200)
