"""The segment job beside its peers: the same pictures, network, batch size and cores, in turns, in one run.

    python benchmarks/throughput.py --pictures CAMVID/train --output runs/throughput

Peers: the predictor alone on pixels in memory (the limit), this job as it runs on one machine and on Ray, a
hand-written PyTorch DataLoader loop, Ray Data's documented `read_images` recipe as documented and at its best, Daft.
All use this project's predictor, so that what is compared is what stands around it; one more runs the recipe with plain
torch, as its page does. Each peer first tries its layouts of processes x threads and keeps the faster one; then they
take turns, `repeats` times.

Every prediction is noted with the machine's clock (peers/trace). *Steady* is the rate between the moment when every
process has predicted `_WARM` times and the moment when the first of them has no more to do; *first row* and *whole*
count from the start of the command. Ratios are medians over the rounds of each round's own ratio. All measurements are
kept in OUTPUT/measured.jsonl; a second call adds rounds to them.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from PIL import Image
from tiny import make_tiny

from pipeline.errors import InputError
from pipeline.labels import CAMVID
from pipeline.models import build_model
from pipeline.models.checkpoint import save_checkpoint
from pipeline.models.spec import ModelSpec
from pipeline.runtime.cli import main
from pipeline.runtime.options import MEASUREMENT, option

PROJECT = Path(__file__).resolve().parent.parent
_WARM = 3  # predictions of each process that count as starting up
_SIZES = {"480x360": (480, 360), "2048x1024": (2048, 1024)}
_PEERS_FOLDER = PROJECT / "benchmarks" / "peers"
PEERS = {  # name -> script and what it changes in the environment; None: the job itself
    "predictor alone": ("predictor_alone.py", {}),
    "this job": (None, {}),
    "this job (on Ray)": (None, {}),
    "DataLoader": ("with_dataloader.py", {}),
    "read_images recipe (plain torch)": ("with_read_images.py", {"THROUGHPUT_RECIPE": "own"}),
    "read_images recipe": ("with_read_images.py", {}),
    "read_images recipe (best)": ("with_read_images.py", {"THROUGHPUT_RECIPE": "best"}),
    "Daft": ("with_daft.py", {"DAFT_PROGRESS_BAR": "0", "DO_NOT_TRACK": "true"}),
}
FEW = "few"  # the light network on so many pictures that starting up is most of it
_PICTURES = {  # how many make a dozen seconds of steady state on two cores
    ("heavy", "480x360"): 24, ("light", "480x360"): 420, ("tiny", "480x360"): 1800, (FEW, "480x360"): 233,
    ("heavy", "2048x1024"): 6, ("light", "2048x1024"): 48, ("tiny", "2048x1024"): 288,
}  # fmt: skip


@dataclass
class ThroughputConfig:
    """Measure the segment job beside its peers, in turns."""

    pictures: str = option(help="Folder of pictures to make the collections from (JPEG or PNG).", group=MEASUREMENT)
    output: str = option(help="Folder of the measurements.", group=MEASUREMENT)
    networks: str = option(
        "heavy,light,tiny,few",
        "heavy (DeepLabv3 ResNet-50), light (LR-ASPP), tiny (one convolution), few (233 pictures, light).",
        group=MEASUREMENT,
    )
    sizes: str = option("480x360,2048x1024", "Of 480x360 and 2048x1024.", group=MEASUREMENT)
    peers: str | None = option(None, "Names of peers, with commas between (default: all).", group=MEASUREMENT)
    repeats: int = option(5, "Rounds.", group=MEASUREMENT)
    batch: int = option(1, "Pictures a forward.", group=MEASUREMENT)
    report_only: bool = option(False, "Print the tables of what was measured before.", group=MEASUREMENT)


def run(config: ThroughputConfig) -> str:
    """Measure, print the tables."""
    output = Path(config.output).absolute()
    peers = config.peers.split(",") if config.peers else list(PEERS)
    asked = [(network, size) for network in config.networks.split(",") for size in config.sizes.split(",")]
    cells = [cell for cell in asked if cell in _PICTURES or cell[0] != FEW]
    for name, known in [*((peer, PEERS) for peer in peers), *((f"{n} {s}", _cell_names()) for n, s in cells)]:
        if name not in known:
            raise InputError(f"nothing here is called {name!r}", expected=", ".join(known))
    if not config.report_only:
        for network, size in cells:
            pictures = _collection(Path(config.pictures), output, network, size)
            checkpoint = _checkpoint(output, network)
            # the tiny network is a program that takes one picture at a time
            able = [peer for peer in peers if network != "tiny" or "plain" not in peer]
            layouts = {peer: _best_layout(peer, pictures, checkpoint, config, output, network, size) for peer in able}
            for _ in range(config.repeats):
                round_ = time.time()
                for peer in able:
                    try:
                        measured = _measure(peer, pictures, checkpoint, layouts[peer], config.batch, output)
                    except RuntimeError as error:  # a peer that fails in a round has no figures of it
                        print(f"{network} {size} {error}", file=sys.stderr, flush=True)
                        continue
                    _keep(output, {"network": network, "size": size, "peer": peer, "round": round_, **measured})
    for network, size in cells:
        print(f"\n## {network}, {size}\n\n{_table(_measured(output, network, size))}", flush=True)
    return f"\nmeasurements in {output / 'measured.jsonl'}"


# ---- the work --------------------------------------------------------------------------------------------------------


def _cell_names() -> list[str]:
    return [f"{network} {size}" for network, size in _PICTURES]


def _collection(source: Path, output: Path, network: str, size: str) -> Path:
    """So many JPEGs of the size, drawn from the source's pictures in turns."""
    folder = output / "pictures" / f"{network}-{size}"
    count = _PICTURES[network, size]
    if folder.is_dir() and len(list(folder.iterdir())) == count:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = sorted(path for path in source.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise InputError("no pictures to measure with", where=source, expected="a folder of JPEGs or PNGs")
    made: dict[Path, bytes] = {}
    for i in range(count):
        file = files[i % len(files)]
        if file not in made:
            Image.open(file).convert("RGB").resize(_SIZES[size]).save(folder / f"{i:06d}.jpg", quality=92)
            made[file] = (folder / f"{i:06d}.jpg").read_bytes()
        else:
            (folder / f"{i:06d}.jpg").write_bytes(made[file])
    return folder


def _checkpoint(output: Path, network: str) -> str:
    folder = output / "networks" / network
    if not folder.is_dir():
        torch.manual_seed(0)
        if network == "tiny":
            return make_tiny(folder)
        name = {
            "heavy": "torchvision:deeplabv3_resnet50",
            "light": "torchvision:lraspp_mobilenet_v3_large",
            FEW: "torchvision:lraspp_mobilenet_v3_large",
        }[network]
        save_checkpoint(str(folder), build_model(name, num_classes=CAMVID.num_classes), ModelSpec(name, {}, CAMVID))
    return str(folder)


# ---- one run of one peer ---------------------------------------------------------------------------------------------


def _best_layout(
    peer: str, pictures: Path, checkpoint: str, config: ThroughputConfig, output: Path, network: str, size: str
) -> tuple[int, int]:
    """Processes x threads that this peer is fastest with; what was found before stands."""
    for entry in _entries(output / "layouts.jsonl"):
        if (entry["peer"], entry["network"], entry["size"]) == (peer, network, size):
            return tuple(entry["layout"])
    cores = len(os.sched_getaffinity(0))
    if network == FEW:
        return cores, 1
    rates = {}
    for layout in dict.fromkeys([(cores, 1), (1, cores)]):
        rates[layout] = _measure(peer, pictures, checkpoint, layout, config.batch, output)["steady"]
    best = max(rates, key=lambda layout: rates[layout])
    entry = {"peer": peer, "network": network, "size": size, "layout": best, "rates": list(rates.values())}
    with open(output / "layouts.jsonl", "a") as file:
        file.write(json.dumps(entry) + "\n")
    return best


def _measure(
    peer: str, pictures: Path, checkpoint: str, layout: tuple[int, int], batch: int, output: Path
) -> dict[str, Any]:
    """Run a peer once in processes of its own. Returns steady (pictures/s), first_s, whole_s and the layout."""
    trace, result = output / "trace", output / "result"
    for folder in (trace, result):
        shutil.rmtree(folder, ignore_errors=True)
    trace.mkdir(parents=True)
    processes, threads = layout
    num_pictures = len(list(pictures.iterdir()))
    script, changes = PEERS[peer]
    if script is None:
        command = [
            PROJECT / "jobs" / "segment.py",
            "--source",
            pictures,
            "--checkpoint",
            checkpoint,
            "--output",
            result,
        ]
        command += ["--num-predictors", processes, "--threads", threads, "--batch-size", batch]
        command += ["--device", "cpu"]
        command += ["--runner", "ray" if "Ray" in peer else "auto"]
    else:
        command = [_PEERS_FOLDER / script, pictures, checkpoint, result, processes, threads, batch]
    environment = {
        **os.environ,
        **changes,
        "PYTHONPATH": os.pathsep.join([str(_PEERS_FOLDER / "trace"), str(_PEERS_FOLDER), str(PROJECT)]),
        "THROUGHPUT_TRACE": str(trace),
        "THROUGHPUT_ROWS": str(min(16, max(1, num_pictures // 16))),
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(2**30),
    }
    started_s = time.monotonic()
    done = subprocess.run([sys.executable, *map(str, command)], env=environment, capture_output=True, text=True)
    whole_s = time.monotonic() - started_s
    if done.returncode:
        raise RuntimeError(f"{peer} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    notes = [_notes(file) for file in sorted(trace.iterdir()) if file.stat().st_size]
    count = sum(n for of_process in notes for _, n in of_process)
    if count < num_pictures:
        raise RuntimeError(f"{peer} predicted {count} of {num_pictures} pictures:\n{done.stderr[-3000:]}")
    first_s = min(of_process[0][0] for of_process in notes) - started_s
    return {
        "layout": list(layout),
        "steady": _steady(notes),
        "first_s": first_s,
        "whole_s": whole_s,
        "pictures": count,
    }


def _notes(file: Path) -> list[tuple[float, int]]:
    """(when, how many pictures) of each prediction of a process."""
    lines = [line.split() for line in file.read_text().splitlines()]
    return [(float(at_s), int(count)) for at_s, count, _ in lines]


def _steady(notes: list[list[tuple[float, int]]]) -> float:
    """Pictures a second while all processes predict."""
    begin_s = max(of_process[min(_WARM, len(of_process)) - 1][0] for of_process in notes)
    end_s = min(of_process[-1][0] for of_process in notes)
    within = [n for of_process in notes for at_s, n in of_process if begin_s < at_s <= end_s]
    return sum(within) / (end_s - begin_s) if end_s > begin_s else 0.0


# ---- what was measured -----------------------------------------------------------------------------------------------


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text().splitlines():
            yield json.loads(line)


def _keep(output: Path, entry: dict[str, Any]) -> None:
    with open(output / "measured.jsonl", "a") as file:
        file.write(json.dumps(entry) + "\n")
    print(
        f"{entry['network']} {entry['size']} {entry['peer']}: {entry['steady']:.2f} pictures/s, "
        f"first after {entry['first_s']:.1f} s, all after {entry['whole_s']:.1f} s",
        file=sys.stderr,
        flush=True,
    )


def _measured(output: Path, network: str, size: str) -> dict[str, dict[float, dict[str, Any]]]:
    """peer -> round -> what was measured."""
    found: dict[str, dict[float, dict[str, Any]]] = {}
    for entry in _entries(output / "measured.jsonl"):
        if (entry["network"], entry["size"]) == (network, size):
            found.setdefault(entry["peer"], {})[entry["round"]] = entry
    return found


def _table(found: dict[str, dict[float, dict[str, Any]]]) -> str:
    lines = [
        "| peer | processes x threads | pictures/s | least to most | of the predictor alone | this job / peer "
        "| first row (s) | whole (s) | rounds |",
        "| -- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for peer, rounds in found.items():
        rates = [entry["steady"] for entry in rounds.values()]
        layouts = {f"{p} x {t}" for p, t in (entry["layout"] for entry in rounds.values())}
        cells = [
            peer,
            ", ".join(sorted(layouts)),
            f"{statistics.median(rates):.2f}",
            f"{min(rates):.2f} to {max(rates):.2f}",
            _ratio(rounds, found.get("predictor alone", {})),
            _ratio(found.get("this job", {}), rounds),
            f"{statistics.median(entry['first_s'] for entry in rounds.values()):.1f}",
            f"{statistics.median(entry['whole_s'] for entry in rounds.values()):.1f}",
            str(len(rounds)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(above: dict[float, dict[str, Any]], below: dict[float, dict[str, Any]]) -> str:
    """The median of the rounds' own ratios: both of a round met the same machine."""
    ratios = [above[r]["steady"] / below[r]["steady"] for r in above if r in below and below[r]["steady"]]
    return f"{statistics.median(ratios):.2f}" if ratios else ""


if __name__ == "__main__":
    main(run, ThroughputConfig)
