"""The predictor alone, on pixels in memory: pictures a second by batch size and precision, and how busy the GPU is.

`network alone` rows are the same network by hand, without argmax, counts and the way back: eager, compiled and as a
CUDA graph, which is what the project's predictor does. The predictor gets as many pictures a call as it asks for.
"""

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

NETWORKS = ("torchvision:lraspp_mobilenet_v3_large", "lightweight", "torchvision:deeplabv3_resnet50")
SIZES = ((360, 480), (1024, 2048))
MEASURED_S = 1.5  # of each row


def measure(options: argparse.Namespace, keep: Callable[[dict[str, Any]], None], deadline_s: float) -> None:
    sizes = ((48, 64),) if options.small else SIZES
    batches = (1, 2) if options.small else (1, 4, 8, 16, 32)
    networks = NETWORKS[:1] if options.small else NETWORKS
    seconds = 0.2 if options.small else MEASURED_S
    for size in sizes:
        for name in networks:
            picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
            for precision in ("float32", "bfloat16"):
                best = 0.0
                for batch in batches:
                    if time.monotonic() > deadline_s:
                        return
                    row = _predictor_row(name, precision, picture, batch, options.device, seconds)
                    keep({"network": name, "size": f"{size[1]}x{size[0]}", **row})
                    if row["batch"] < batch or row["pictures/s"] < 1.03 * best:
                        break  # it did not fit, or gains nothing more
                    best = max(best, row["pictures/s"])
            for how in ("eager", "compiled", "CUDA graph") if options.device == "cuda" else ("eager",):
                if time.monotonic() > deadline_s:
                    return
                keep(
                    {
                        "network": name,
                        "size": f"{size[1]}x{size[0]}",
                        **_alone_row(name, size, how, options.device, seconds),
                    }
                )


def _predictor_row(
    name: str, precision: str, picture: np.ndarray, batch: int, device: str, seconds: float
) -> dict[str, Any]:
    torch.manual_seed(0)
    model = build_model(name, num_classes=11).eval()
    spec = ModelSpec(name, {}, CAMVID)
    predictor = Predictor(model, spec, device=device, precision=precision, batch_size=batch, tile_px=4096)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    pictures = [picture] * predictor.pictures_at_once
    rate = _rate(lambda: predictor.predict(pictures), len(pictures), seconds)
    return {
        "what": "predictor",
        "precision": precision,
        "batch": predictor.batch_size_of(picture),
        "pictures/s": rate,
        "same again": _same_again(predictor, pictures),
        "GPU busy": _busy(lambda: predictor.predict(pictures)) if device == "cuda" else None,
        "peak GiB": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
    }


def _same_again(predictor: Predictor, pictures: list[np.ndarray]) -> bool:
    """Whether a recorded forward gives the masks of the first, which ran kernel by kernel."""
    random = np.random.default_rng(1)
    given = [random.permutation(picture) for picture in pictures]
    found = [predictor.predict(given[: predictor.batch_size]) for _ in range(4)]
    maps = [np.stack([one.class_map for one in answer if isinstance(one, Prediction)]) for answer in found]
    return all(np.array_equal(maps[0], other) for other in maps[1:])


def _alone_row(name: str, size: tuple[int, int], how: str, device: str, seconds: float) -> dict[str, Any]:
    batch = 2 if device == "cpu" else 8
    torch.manual_seed(0)
    model = build_model(name, num_classes=11).eval().to(device).to(memory_format=torch.channels_last)
    x = torch.rand(batch, 3, *size, device=device).to(memory_format=torch.channels_last)
    dtype = torch.bfloat16 if device == "cuda" else None
    precision = "bfloat16" if dtype else "float32"
    row: dict[str, Any] = {"what": f"network alone, {how}", "precision": precision, "batch": batch}
    try:
        with torch.inference_mode(), torch.autocast(device, dtype, enabled=dtype is not None):
            network: Any = torch.compile(model) if how == "compiled" else model
            run: Callable[[], Any] = lambda: network(x)  # noqa: E731
            if how == "CUDA graph":
                run = _graph(run)
            row["pictures/s"] = _rate(run, batch, seconds)
    except Exception as error:  # a compiler that is missing costs its own row
        row["pictures/s"] = None
        row["what"] += f" ({type(error).__name__})"
    return row


def _graph(run: Callable[[], Any]) -> Callable[[], Any]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _rate(run: Callable[[], Any], batch: int, seconds: float) -> float:
    for _ in range(2):
        run()
    _wait()
    begin_s, done = time.monotonic(), 0
    while time.monotonic() - begin_s < seconds:
        run()
        _wait()
        done += batch
    return done / (time.monotonic() - begin_s)


def _busy(run: Callable[[], Any]) -> float:
    """The share of wall time in which a kernel or a copy ran on the GPU."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
        begin_s = time.monotonic()
        for _ in range(3):
            run()
        _wait()
        wall_s = time.monotonic() - begin_s
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiled.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    busy_us, end_us = 0.0, 0.0
    for start, end in spans:
        busy_us += max(0.0, end - max(start, end_us))
        end_us = max(end_us, end)
    return busy_us / 1e6 / wall_s


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
