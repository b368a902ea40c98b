"""Every network on the same input in one run: forward time, peak memory, parameters, multiply-adds.

    python benchmarks/networks.py --size 512,512 --repeats 5

The networks take turns, one forward each a round, so that whatever else the machine does falls on all of them alike;
times are medians over the rounds, after one round that is thrown away. Each runs as the predictor runs it: batch norm
folded, channels last, convolutions packed (on a CPU), float32. The published ratios are those of Huo et al. 2023
(512 x 512 on a Quadro P4000: `lightweight` 45 ms, FCN-8s 160 ms, UNet 146 ms, PSPNet 120 ms) and of Shen and Sun 2022
(attention: 42 to 47 ms).
"""

from __future__ import annotations

import ctypes
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import InputError
from pipeline.models import MODELS, build_model
from pipeline.prediction.folding import fold_batch_norm
from pipeline.prediction.packing import pack_convolutions
from pipeline.runtime.cli import main
from pipeline.runtime.options import MEASUREMENT, option

NUM_CLASSES = 21  # VOC's, as in the papers' tables
PRESETS: dict[str, list[dict[str, Any]]] = {  # what a paper compared with, beside or instead of the defaults
    "fcn8s": [{}, {"slim_head": True}],
    "unet": [{}, {"encoder": "vgg16"}],
    "attention_fcn": [{}, {"attention": False}, {"width": "slim"}],
    "deeplabv3plus": [{}, {"backbone": "mobilenet_v2"}],
    "multilevel_deeplab": [{}, {"backbone": "mobilenet_v2"}],
}
RATIOS = [  # (slower, faster, how many times at least)
    ("fcn8s slim_head=True", "lightweight", 3.56),
    ("unet encoder=vgg16", "lightweight", 3.24),
    ("pspnet", "lightweight", 2.67),
]
ATTENTION = ("attention_fcn", "attention_fcn attention=False", 1.12)  # (with, without, how many times at most)


@dataclass
class NetworksConfig:
    """Time every network on the same input, in turns."""

    size: str = option("512,512", "Height,width of the input in px.", group=MEASUREMENT)
    repeats: int = option(5, "Timed forwards of each network.", group=MEASUREMENT)
    threads: int = option(1, "Threads on the CPU.", group=MEASUREMENT)
    device: str = option("auto", "auto, cpu or cuda.", group=MEASUREMENT)
    only: str | None = option(None, "Names of networks, with commas between (default: all).", group=MEASUREMENT)


@dataclass
class Row:
    """What is known of one network."""

    name: str
    network: nn.Module
    parameters: int
    multiply_adds: float
    memory_bytes: int
    times_s: list[float]

    @property
    def time_s(self) -> float:
        return statistics.median(self.times_s)


def run(config: NetworksConfig) -> str:
    """Measure, print the tables."""
    height, width = (int(part) for part in config.size.split(","))
    if config.repeats < 1 or config.threads < 1:
        raise InputError("--repeats and --threads must be 1 or more")
    torch.set_num_threads(config.threads)
    device = torch.device(
        ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    )
    wanted = config.only.split(",") if config.only else list(MODELS)
    x = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
    x = x.contiguous(memory_format=torch.channels_last)
    rows = [_row(name, options, x) for name in wanted for options in PRESETS.get(name, [{}])]
    for turn in range(config.repeats + 1):
        for row in rows:
            time_s = _timed(row.network, x)
            if turn:  # the first round warms up
                row.times_s.append(time_s)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{processor()}, {config.threads} thread(s)"
    print(f"{height} x {width}, {NUM_CLASSES} classes, float32, {where}, torch {torch.__version__}\n")
    print(_table(rows), flush=True)
    return _comparisons(rows)


def _row(name: str, options: dict[str, Any], x: Tensor) -> Row:
    torch.manual_seed(0)
    network = build_model(name, num_classes=NUM_CLASSES, **options).eval()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    with torch.device("meta"):
        shadow = build_model(name, num_classes=NUM_CLASSES, **options).eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        shadow(torch.empty(x.shape, device="meta"))
    example = x[..., :128, :128]
    network = fold_batch_norm(network.to(x.device), example).to(memory_format=torch.channels_last)
    if not x.is_cuda:
        network = pack_convolutions(network, example)
    full_name = " ".join([name, *(f"{key}={value}" for key, value in options.items())])
    return Row(full_name, network, parameters, counter.get_total_flops() / 2, _peak_bytes(network, x), [])


@torch.inference_mode()
def _timed(network: nn.Module, x: Tensor) -> float:
    started_s = time.perf_counter()
    network(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started_s


@torch.inference_mode()
def _peak_bytes(network: nn.Module, x: Tensor) -> int:
    """What a forward needs beyond weights and input, at its height."""
    if x.is_cuda:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        network(x)
        return torch.cuda.max_memory_allocated() - before
    network(x)  # thread pools and kernels' own caches are not what is asked for
    ctypes.CDLL(None).malloc_trim(0)  # give back what the allocator keeps, or the next forward needs nothing (glibc)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (Linux)
    before = _status_bytes("VmRSS")
    network(x)
    return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match
    return int(match[1]) * 1024


def _table(rows: list[Row]) -> str:
    fastest = min(row.time_s for row in rows)
    lines = [
        "| network | parameters (M) | float32 weights (MiB) | multiply-adds (G) | peak memory (MiB) | forward (ms) "
        "| least to most (ms) | x fastest |",
        "| -- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in sorted(rows, key=lambda row: row.time_s):
        cells: list[str] = [
            row.name,
            f"{row.parameters / 1e6:.2f}",
            f"{row.parameters * 4 / 2**20:.1f}",
            f"{row.multiply_adds / 1e9:.1f}",
            f"{row.memory_bytes / 2**20:.0f}",
            f"{1000 * row.time_s:.0f}",
            f"{1000 * min(row.times_s):.0f} to {1000 * max(row.times_s):.0f}",
            f"{row.time_s / fastest:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _comparisons(rows: list[Row]) -> str:
    """The papers' ratios beside ours: medians of the rounds' own ratios, since both of a round met the same machine."""
    found = {row.name: row for row in rows}
    lines = ["", "| ratio of forward times | paper | ours | met? |", "| -- | --: | --: | -- |"]

    def line(slower: str, faster: str, published: float, bound: str, met: Callable[[float], bool]) -> None:
        if slower in found and faster in found:
            pairs = zip(found[slower].times_s, found[faster].times_s, strict=True)
            ratio = statistics.median(a / b for a, b in pairs)
            lines.append(
                f"| {slower} / {faster} | {bound} {published} | {ratio:.2f} | {'yes' if met(ratio) else 'no'} |"
            )

    for slower, faster, published in RATIOS:
        line(slower, faster, published, ">=", lambda ratio, least=published: ratio >= least)  # type: ignore[misc]
    line(*ATTENTION, "<=", lambda ratio: ratio <= ATTENTION[2])
    return "\n".join(lines)


def processor() -> str:
    """What the machine says its processor is."""
    match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return match[1] if match else "CPU"


if __name__ == "__main__":
    main(run, NetworksConfig)
