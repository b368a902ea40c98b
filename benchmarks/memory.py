"""What a predictor on a CPU gains from keeping freed memory (pipeline/runtime/process.py): with and without it.

    python benchmarks/memory.py

A network of random weights, one thread, pictures of noise. Each measurement is a process of its own; they take turns.
Fresh pages are those that the kernel had to provide for a picture.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from pipeline.labels import CAMVID
from pipeline.models import build_model
from pipeline.models.spec import ModelSpec
from pipeline.prediction import predictor
from pipeline.runtime.cli import main
from pipeline.runtime.options import MEASUREMENT, option


@dataclass
class MemoryConfig:
    """Time a network on a CPU that keeps its freed memory, and one that gives it back."""

    models: str = option(
        "torchvision:lraspp_mobilenet_v3_large,lightweight",
        "Names of networks, with commas between.",
        group=MEASUREMENT,
    )
    sizes: str = option("480x360,2048x1024", "Sizes of the pictures, WIDTHxHEIGHT in px.", group=MEASUREMENT)
    pictures: int = option(8, "Pictures timed in each process.", group=MEASUREMENT)
    repeats: int = option(3, "Rounds.", group=MEASUREMENT)


def run(config: MemoryConfig) -> str:
    """Measure, print the table."""
    names = "network, pictures, given back (ms), kept (ms), x, fresh pages given back, kept, peak MiB given back, kept"
    print(f"| {' | '.join(names.split(', '))} |\n|{' -- |' * 2}{' --: |' * 7}")
    for model in config.models.split(","):
        for size in config.sizes.split(","):
            found: dict[bool, list[tuple[float, int, int]]] = {False: [], True: []}
            for _ in range(config.repeats):
                for keep in found:
                    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                        found[keep].append(pool.submit(_timed, keep, model, size, config.pictures).result())
            without, with_ = (
                [statistics.median(column) for column in zip(*found[keep], strict=True)] for keep in found
            )
            pairs = zip(found[False], found[True], strict=True)
            ratio = statistics.median(a[0] / b[0] for a, b in pairs)
            cells = [model, size, f"{without[0]:.1f}", f"{with_[0]:.1f}", f"{ratio:.2f}"]
            cells += [f"{without[i]:.0f} | {with_[i]:.0f}" for i in (1, 2)]
            print(f"| {' | '.join(cells)} |", flush=True)
    return ""


def _timed(keep: bool, model: str, size: str, pictures: int) -> tuple[float, int, int]:
    """Milliseconds and fresh pages a picture, and the peak resident memory (MiB)."""
    if not keep:
        predictor.keep_freed_memory = lambda: None  # type: ignore[assignment,misc]
    torch.manual_seed(0)
    spec = ModelSpec(model, {}, CAMVID)
    built = predictor.Predictor(build_model(model, num_classes=11).eval(), spec, device="cpu", threads=1)
    width, height = (int(side) for side in size.split("x"))
    drawn = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    for picture in drawn:
        built.predict([picture])
    before, begin_s = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    for i in range(pictures):
        built.predict([drawn[i % 2]])
    each_ms = 1000 * (time.perf_counter() - begin_s) / pictures
    after = resource.getrusage(resource.RUSAGE_SELF)
    return each_ms, (after.ru_minflt - before.ru_minflt) // pictures, after.ru_maxrss // 1024


if __name__ == "__main__":
    main(run, MemoryConfig)
