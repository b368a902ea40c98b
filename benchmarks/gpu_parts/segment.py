"""The segment job on all cores and the GPU, JPEGs in: its rate, its share of the predictor's own, what held it back."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpu_parts.commands import job, jpegs
from pipeline.labels import CAMVID
from pipeline.models import build_model
from pipeline.models.checkpoint import save_checkpoint
from pipeline.models.spec import ModelSpec


def measure(options: argparse.Namespace, keep: Callable[[dict[str, Any]], None], deadline_s: float) -> None:
    name = "torchvision:lraspp_mobilenet_v3_large"
    runs = [((1024, 2048), 1000), ((360, 480), 8000)] if not options.small else [((48, 64), 40)]
    with tempfile.TemporaryDirectory() as scratch:
        torch.manual_seed(0)
        checkpoint = str(Path(scratch, "checkpoint"))
        save_checkpoint(checkpoint, build_model(name, num_classes=11), ModelSpec(name, {}, CAMVID))
        for size, count in runs:
            if time.monotonic() > deadline_s:
                return
            pictures, output = Path(scratch, f"{size[1]}"), Path(scratch, f"run-{size[1]}")
            jpegs(pictures, count, size)
            arguments = ["--device", options.device, "--precision", "bfloat16" if options.device == "cuda" else "auto"]
            arguments += ["--tile-px", "4096", "--batch-size", "16" if options.device == "cuda" else "1"]
            job("segment", "--source", pictures, "--checkpoint", checkpoint, "--output", output, *arguments)
            summary = json.loads((output / "_SUCCESS").read_text())
            speed = summary["speed"]
            keep(
                {
                    "size": f"{size[1]}x{size[0]}",
                    "pictures": summary["ok"],
                    "pictures/s": speed["pictures_per_s"],
                    "of the predictor's own": speed["predictor_share"],
                    "held back by": speed["held_back_by"],
                    "start-up s": speed["startup_s"],
                    "shares": json.dumps(speed["shares"]),
                }
            )
