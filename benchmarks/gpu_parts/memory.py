"""What does not fit: a batch too large is halved, a picture too large is its own error, and the predictor goes on."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pipeline.labels import CAMVID
from pipeline.models import build_model
from pipeline.models.spec import ModelSpec
from pipeline.prediction.predictor import Prediction, Predictor


def measure(options: argparse.Namespace, keep: Callable[[dict[str, Any]], None], deadline_s: float) -> None:
    """On a GPU most of its memory is taken first, so that small pictures suffice; on a CPU the network says that it has
    run out, as torch would."""
    name = "torchvision:lraspp_mobilenet_v3_large" if options.small else "torchvision:deeplabv3_resnet50"
    torch.manual_seed(0)
    model = build_model(name, num_classes=11).eval()
    if options.device == "cpu":
        model = _OutOfMemory(model, most_px=4 * 64 * 96)
    size, batch = ((64, 96), 16) if options.small else ((768, 1024), 64)
    predictor = Predictor(model, ModelSpec(name, {}, CAMVID), device=options.device, batch_size=batch, tile_px=100_000)
    taken = _take_all_but(4 << 30) if options.device == "cuda" else None
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (*size, 3), np.uint8) for _ in range(batch)]
    begin_s = time.monotonic()
    predictions = predictor.predict(pictures)
    keep(
        {
            "what": "batch too large",
            "asked for": batch,
            "ran with": predictor.batch_size_of(pictures[0]),
            "predicted": sum(isinstance(one, Prediction) for one in predictions),
            "of": batch,
            "seconds": time.monotonic() - begin_s,
        }
    )
    large = np.zeros((size[0] * 12, size[1] * 12, 3), np.uint8)
    (found,) = predictor.predict([large])
    keep(
        {
            "what": "picture too large",
            "error": type(found).__name__,
            "predicted": int(isinstance(found, Prediction)),
            "of": 1,
        }
    )
    again = predictor.predict(pictures[:2])
    keep({"what": "afterwards", "predicted": sum(isinstance(one, Prediction) for one in again), "of": 2})
    del taken


def _take_all_but(left_bytes: int) -> torch.Tensor:
    free_bytes, _ = torch.cuda.mem_get_info()
    return torch.empty(max(0, free_bytes - left_bytes), dtype=torch.uint8, device="cuda")


class _OutOfMemory(torch.nn.Module):
    """A network that has no memory for more than so many pixels at once."""

    def __init__(self, network: torch.nn.Module, most_px: int) -> None:
        super().__init__()
        self.network, self.most_px = network, most_px

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] * x.shape[2] * x.shape[3] > max(self.most_px, 192 * 224):
            raise torch.OutOfMemoryError("no memory left")
        logits: torch.Tensor = self.network(x)
        return logits
