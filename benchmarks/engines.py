"""The predictor alone, step by step: what each step gains, and whether the class maps stay as they were.

    python benchmarks/engines.py --pictures CAMVID/val --networks light,heavy,runs/camvid/best

From the plain definition (float pixels in planes, network, softmax, argmax, counts) to what the predictor does, and
its engines. Every step answers the same: class map, counts, confidence. The steps take turns, one picture each a round,
so that whatever else the machine does falls on all alike; ratios are medians of the rounds' own ratios. Pixels are
compared over all pictures seen.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from networks import processor
from torch import nn

from pipeline.decode.picture import decode
from pipeline.errors import InputError
from pipeline.labels import CAMVID
from pipeline.models import build_model
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.spec import ModelSpec
from pipeline.prediction.folding import fold_batch_norm
from pipeline.prediction.packing import pack_convolutions
from pipeline.prediction.predictor import Prediction, Predictor
from pipeline.prediction.resizing import resize_pixels
from pipeline.runtime.cli import main
from pipeline.runtime.options import MEASUREMENT, option

NETWORKS = {
    "light": "torchvision:lraspp_mobilenet_v3_large",
    "heavy": "torchvision:deeplabv3_resnet50",
}
Step = Callable[[np.ndarray], np.ndarray]  # H x W x 3 uint8 -> class map H x W


@dataclass
class EnginesConfig:
    """Time the predictor's steps and engines, in turns."""

    pictures: str = option(help="A folder of pictures.", group=MEASUREMENT)
    networks: str = option(
        "light,heavy",
        "light (LR-ASPP) and heavy (DeepLabv3 ResNet-50), both of random weights, and checkpoint folders.",
        group=MEASUREMENT,
    )
    size: str = option("360,480", "Height,width in px.", group=MEASUREMENT)
    repeats: int = option(5, "Rounds, each on a picture of its own.", group=MEASUREMENT)
    threads: int = option(1, "Threads on the CPU.", group=MEASUREMENT)
    engines: str = option("eager,compiled,onnx", "Of eager, compiled and onnx, with commas between.", group=MEASUREMENT)


@dataclass
class Row:
    """What is known of one step."""

    name: str
    step: Step
    prepare_s: float  # to build it and to answer once
    times_s: list[float] = field(default_factory=list)
    same_pixels: int = 0


class Plain:
    """The definition in so many words, in the memory layout that is asked for."""

    def __init__(self, network: nn.Module, spec: ModelSpec, memory_format: torch.memory_format) -> None:
        self.network = network.to(memory_format=memory_format)
        self.memory_format, self.classes = memory_format, spec.label_set.num_classes
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (spec.mean, spec.std))

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous(memory_format=self.memory_format)
        softmax = self.network((x / 255 - self.mean) / self.std).softmax(1)[0]
        confidence, class_map = softmax.max(0)
        torch.bincount(class_map.flatten(), minlength=self.classes)
        torch.bincount(class_map.flatten(), confidence.flatten().double(), minlength=self.classes)
        (confidence < 0.5).sum()
        return class_map.to(torch.uint8).numpy()


def run(config: EnginesConfig) -> str:
    """Measure, print the tables."""
    torch.set_num_threads(config.threads)
    height, width = (int(part) for part in config.size.split(","))
    pictures = _pictures(Path(config.pictures), (height, width), config.repeats)
    where = f"{processor()}, {config.threads} thread(s), torch {torch.__version__}"
    print(f"{height} x {width}, {len(pictures)} pictures, float32, {where}")
    for name in config.networks.split(","):
        rows = _rows(name, config, pictures[0])
        for picture in pictures:
            maps = [_timed(row, picture) for row in rows]
            for row, class_map in zip(rows, maps, strict=True):
                row.same_pixels += int((class_map == maps[0]).sum())
        print(f"\n### {name}\n\n{_table(rows, len(pictures) * height * width)}", flush=True)
    return ""


def _pictures(folder: Path, size: tuple[int, int], count: int) -> list[np.ndarray]:
    if count < 1:
        raise InputError("--repeats must be 1 or more", found=count)
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise InputError("no pictures to measure with", where=folder, expected="a folder of JPEGs or PNGs")
    return [np.ascontiguousarray(resize_pixels(decode(files[i % len(files)].read_bytes()), size)) for i in range(count)]


def _rows(name: str, config: EnginesConfig, picture: np.ndarray) -> list[Row]:
    planes, pixels = torch.contiguous_format, torch.channels_last

    def network() -> tuple[nn.Module, ModelSpec]:
        if name not in NETWORKS:
            return load_checkpoint(name)
        torch.manual_seed(3)  # a seed whose classes vary over a picture
        model = build_model(NETWORKS[name], num_classes=CAMVID.num_classes).eval()
        return model, ModelSpec(NETWORKS[name], {}, CAMVID)

    def folded() -> tuple[nn.Module, ModelSpec]:
        model, spec = network()
        return fold_batch_norm(model, torch.rand(1, spec.bands, 128, 128)), spec

    def packed() -> tuple[nn.Module, ModelSpec]:
        model, spec = folded()
        return pack_convolutions(model.to(memory_format=pixels), torch.rand(1, spec.bands, 128, 128)), spec

    def predictor(engine: str) -> Step:
        built = Predictor(*network(), device="cpu", threads=config.threads, engine=engine)

        def step(picture: np.ndarray) -> np.ndarray:
            (found,) = built.predict([picture])
            if not isinstance(found, Prediction):
                raise found
            return found.class_map

        return step

    made: dict[str, Callable[[], Step]] = {
        "plain": lambda: Plain(*network(), planes),
        "channels last": lambda: Plain(*network(), pixels),
        "and batch norm folded": lambda: Plain(*folded(), pixels),
        "and convolutions packed": lambda: Plain(*packed(), pixels),
        "and argmax, confidence, counts in one pass (`eager`)": lambda: predictor("eager"),
        "`compiled`": lambda: predictor("compiled"),
        "`onnx`": lambda: predictor("onnx"),
    }
    wanted = [f"`{engine}`" for engine in config.engines.split(",")]
    rows = []
    for title, make in made.items():
        if "`" in title and not any(engine in title for engine in wanted):
            continue
        begin_s = time.perf_counter()
        step = make()
        step(picture)
        rows.append(Row(title, step, time.perf_counter() - begin_s))
    return rows


def _timed(row: Row, picture: np.ndarray) -> np.ndarray:
    begin_s = time.perf_counter()
    class_map = row.step(picture)
    row.times_s.append(time.perf_counter() - begin_s)
    return class_map


def _table(rows: list[Row], num_pixels: int) -> str:
    lines = [
        "| step | a picture (ms) | least to most (ms) | x the step before | x plain | pixels as plain's "
        "| until the first answer (s) |",
        "| -- | --: | --: | --: | --: | --: | --: |",
    ]
    eager = next((row for row in rows if "eager" in row.name), rows[-1])
    for i, row in enumerate(rows):
        before = eager if row.name in ("`compiled`", "`onnx`") else rows[max(i - 1, 0)]
        cells = [
            row.name,
            f"{1000 * statistics.median(row.times_s):.1f}",
            f"{1000 * min(row.times_s):.1f} to {1000 * max(row.times_s):.1f}",
            _ratio(before, row),
            _ratio(rows[0], row),
            "all" if row.same_pixels == num_pixels else f"all but {num_pixels - row.same_pixels} of {num_pixels}",
            f"{row.prepare_s:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "`compiled` and `onnx` are compared with `eager` as the step before."])


def _ratio(slower: Row, faster: Row) -> str:
    return f"{statistics.median(a / b for a, b in zip(slower.times_s, faster.times_s, strict=True)):.2f}"


if __name__ == "__main__":
    main(run, EnginesConfig)
