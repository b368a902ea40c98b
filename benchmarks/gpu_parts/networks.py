"""Does every network give the CPU's class map: the share of differing pixels in float32 (without TF32) and bfloat16."""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pipeline.labels import CAMVID
from pipeline.models import MODELS, build_model
from pipeline.models.spec import ModelSpec
from pipeline.prediction.predictor import Prediction, Predictor


def measure(options: argparse.Namespace, keep: Callable[[dict[str, Any]], None], deadline_s: float) -> None:
    size = (64, 96) if options.small else (256, 320)
    names = list(MODELS)[:1] if options.small else list(MODELS)
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (2, size[0] // 16, size[1] // 16, 3), np.uint8)
    pictures = list(coarse.repeat(16, axis=1).repeat(16, axis=2))  # squares: noise has no class that wins clearly
    for name in names:
        if time.monotonic() > deadline_s:
            return
        torch.manual_seed(0)
        model = build_model(name, num_classes=11).eval()
        spec = ModelSpec(name, {}, CAMVID)
        expected = _class_maps(copy.deepcopy(model), spec, pictures, "cpu", "float32")
        row: dict[str, Any] = {"network": name}
        for precision in ("float32", "bfloat16"):
            found = _class_maps(copy.deepcopy(model), spec, pictures, options.device, precision)
            row[f"differing in {precision}"] = float(np.mean(found != expected))
        keep(row)


def _class_maps(
    model: torch.nn.Module, spec: ModelSpec, pictures: list[np.ndarray], device: str, precision: str
) -> Any:
    predictions = Predictor(model, spec, device=device, precision=precision, batch_size=2).predict(pictures)
    for prediction in predictions:
        if not isinstance(prediction, Prediction):
            raise prediction
    return np.stack([prediction.class_map for prediction in predictions if isinstance(prediction, Prediction)])
