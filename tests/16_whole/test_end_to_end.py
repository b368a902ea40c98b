"""The whole path on real frames: train, segment, evaluate; once as commands on local folders, once on S3."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Finished
from PIL import Image

from pipeline import read_predictions, storage
from pipeline.catalog.job import ManifestConfig, make_manifest
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.job import evaluate
from pipeline.labels import CAMVID
from pipeline.models.spec import read_spec
from pipeline.segment.config import SegmentConfig
from pipeline.segment.job import segment
from pipeline.storage import folders
from pipeline.training.job import TrainConfig, train

CONFIG = Path(__file__).parent.parent.parent / "configs" / "camvid.yaml"
QUICK = "--epochs 6 --validate-every 6 --batch-size 4 --crop 96,128 --warmup-steps 0 --ema-decay 0".split()


@pytest.mark.timeout(600)
def test_the_three_jobs_on_camvid_frames(
    ray_session: None,
    camvid_subset: Callable[..., Path],
    backbone_weights: Path,
    tmp_path: Path,
    run_job: Callable[..., Finished],
) -> None:
    root = camvid_subset(train=8, val=3)

    def succeeds(name: str, *args: object) -> Finished:
        done = run_job(name, *args, timeout_s=400)
        assert done.code == 0, done.stderr
        return done

    trained, segmented, evaluated = (tmp_path / name for name in ("train", "segment", "evaluate"))
    weights = ("--backbone-weights", backbone_weights)
    succeeds("train", "--config", CONFIG, "--source", root, "--output", trained, *weights, *QUICK)
    assert read_spec(str(trained / "best")).label_set == read_spec(str(trained / "last")).label_set == CAMVID
    assert list((trained / "tensorboard").rglob("events.out.tfevents.*"))
    succeeds("segment", "--source", root, "--split", "val", "--checkpoint", trained / "best", "--output", segmented)
    done = succeeds("evaluate", "--predictions", segmented, "--labels", root, "--split", "val", "--output", evaluated)
    assert "report.html" in done.stdout.strip().splitlines()[-1]

    matrix = np.zeros((11, 11), np.int64)
    for row in read_predictions(str(segmented)):
        truth = np.asarray(Image.open(root / "valannot" / f"{Path(row['path']).stem}.png"))
        np.add.at(matrix, (truth[truth < 11], row["mask"][truth < 11]), 1)
    metrics = json.loads((evaluated / "metrics.json").read_text())
    assert metrics["confusion_matrix"] == matrix.tolist() and metrics["unpredicted"] == [0] * 11
    assert metrics["pixel_accuracy"] == pytest.approx(np.trace(matrix) / matrix.sum(), abs=1e-12)
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    assert metrics["miou"] == pytest.approx(np.mean(np.diag(matrix)[union > 0] / union[union > 0]), abs=1e-12)
    assert metrics["pixel_accuracy"] > 0.3, "twelve steps from ImageNet weights tell the road from the sky"

    # a folder of label files is joined by path without suffix
    segment(SegmentConfig(str(root / "val"), str(trained / "best"), str(tmp_path / "val"), num_predictors=1))
    evaluate(EvaluateConfig(str(tmp_path / "val" / "predictions"), str(root / "valannot"), str(tmp_path / "by-stem")))
    assert json.loads((tmp_path / "by-stem" / "metrics.json").read_text())["confusion_matrix"] == matrix.tolist()


@pytest.mark.timeout(600)
def test_the_four_jobs_on_s3(ray_session: None, s3: Any, camvid_subset: Callable[..., Path]) -> None:
    root = camvid_subset(train=4, val=2)
    for file in root.rglob("*.*"):
        storage.write_bytes(s3.uri("camvid", *file.relative_to(root).parts), file.read_bytes())
    make_manifest(ManifestConfig(s3.uri("camvid"), s3.uri("manifest")))
    train(
        TrainConfig(
            s3.uri("manifest"),
            s3.uri("train"),
            model="torchvision:lraspp_mobilenet_v3_large",
            label_set="camvid",
            max_steps=2,
            batch_size=2,
            crop="64,64",
        )
    )
    told = segment(SegmentConfig(s3.uri("manifest"), s3.uri("train", "last"), s3.uri("segment"), num_predictors=1))
    assert "6 of 6 regions ok" in told
    evaluate(EvaluateConfig(s3.uri("segment"), s3.uri("manifest"), s3.uri("evaluate")))
    metrics = storage.read_json(s3.uri("evaluate", "metrics.json"))
    pixels = 6 * 360 * 480
    assert np.sum(metrics["confusion_matrix"]) + np.sum(metrics["unpredicted"]) + metrics["ignored"] == pixels
    assert b"<html" in storage.read_bytes(s3.uri("evaluate", "report.html"))
    assert folders.list_names(s3.uri("train")).count("_SUCCESS") == 1
