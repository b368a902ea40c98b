"""The training job beside a bare loop of the same steps over tensors in memory: share of its rate, waiting, idle CPU.

    python benchmarks/training.py --source CAMVID --backbone-weights mobilenet_v2.pth

Interleaved, on the same cores: the bare loop, the job in one process, the job on a local Ray, and again. The job is run
as a command and stopped; its rate is that of its own steps, from the first report after a warm-up to the last. `waited`
is the job's own measurement (TensorBoard's train/wait_share), `beside` the CPU time of all processes of the job but the
training one, in cores, and `busiest` the process among them that took most.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil

PROJECT = Path(__file__).resolve().parent.parent
WARM_UP_S = 25.0
STEP = re.compile(r"step (\d+)/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="CamVid, or another labelled collection")
    parser.add_argument("--config", default=str(PROJECT / "configs" / "camvid.yaml"))
    parser.add_argument("--backbone-weights")
    parser.add_argument("--seconds", type=float, default=90.0, help="of each measurement, after its warm-up")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--runners", default="processes,ray")
    parser.add_argument("--bare", help=argparse.SUPPRESS)  # this process is the bare loop
    options = parser.parse_args()
    if options.bare:
        print(json.dumps(bare_loop(options)))
        return
    rows: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.rounds):
        rows.setdefault("bare loop", []).append(run_bare(options))
        for runner in options.runners.split(","):
            rows.setdefault(f"job, {runner}", []).append(run_job(options, runner))
    print(
        f"\n{os.cpu_count()} cores, {platform.processor() or platform.machine()}, {options.config}, batch "
        f"{batch_size(options)}, median of {options.rounds} rounds\n"
    )
    print("| | pictures/s | of the bare loop | waited | CPU beside (cores) | busiest beside |")
    print("|--|--:|--:|--:|--:|--|")
    bare = median(row["rate"] for row in rows["bare loop"])
    for name, found in rows.items():
        rate = median(row["rate"] for row in found)
        share = median(row["rate"] / b["rate"] for row, b in zip(found, rows["bare loop"], strict=True))
        waited = "" if found[0].get("waited") is None else f"{100 * median(row['waited'] for row in found):.1f} %"
        beside = "" if "beside" not in found[0] else f"{median(row['beside'] for row in found):.2f}"
        print(f"| {name} | {rate:.2f} | {share:.2f} | {waited} | {beside} | {found[0].get('busiest', '')} |")
    print(f"\nrounds: {json.dumps(rows)}\nbare loop {bare:.2f} pictures/s")


# ---- the bare loop ---------------------------------------------------------------------------------------------------


def run_bare(options: argparse.Namespace) -> dict[str, Any]:
    """In a process of its own, as the job is."""
    command = [sys.executable, __file__, *sys.argv[1:], "--bare", "yes"]
    passive = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # as the job sets it for itself: faster for both
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=passive)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"bare loop: {found['rate']:.2f} pictures/s", file=sys.stderr, flush=True)
    return found


def bare_loop(options: argparse.Namespace) -> dict[str, Any]:
    """Steps of the job's own network, loss, optimizer and average over 16 batches of its own samples in memory."""
    import numpy as np
    import torch

    from pipeline.labels import load_label_set
    from pipeline.models import build_model
    from pipeline.models.normalization import Normalization
    from pipeline.models.spec import ModelSpec
    from pipeline.reading.regions import RegionReader
    from pipeline.training.config import check, model_name, model_options
    from pipeline.training.optimization.ema import EMA
    from pipeline.training.optimization.losses import LOSSES, with_auxiliary
    from pipeline.training.optimization.parameter_groups import autocast_dtype, parameter_groups
    from pipeline.training.samples.augmentation import Augmentation
    from pipeline.training.samples.loader import SampleLoader
    from pipeline.training.samples.plan import COLUMNS, SamplePlan

    config = job_config(options)
    label_set, crop = load_label_set(config.label_set), check(config)
    table = labelled_rows(config).select(COLUMNS)
    plan = SamplePlan(table.num_rows, config.batch_size, 1, 16, config.seed)
    augmentation = Augmentation(crop, (config.scale_min, config.scale_max), jitter=config.jitter, flip=config.flip)
    loader = SampleLoader(plan, augmentation, label_set, config.read_options)
    with_reader = RegionReader(config.read_options, label_set)
    size = config.batch_size
    batches = [loader.load(table, range(n * size, (n + 1) * size), with_reader) for n in range(16)]
    with_reader.close()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(config.seed)
    model = build_model(model_name(config), num_classes=label_set.num_classes, **model_options(config))
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config.learning_rate, config.backbone_rate, config.weight_decay), fused=True
    )
    ema, dtype = EMA(model, config.ema_decay), autocast_dtype(config.precision, "cpu")
    weights = torch.ones(label_set.num_classes)
    normalize = Normalization(ModelSpec("", {}, label_set), "cpu")
    model.train()
    begin_s, steps = time.monotonic(), 0
    warm = False
    while not warm or time.monotonic() - begin_s < options.seconds:
        if not warm and time.monotonic() - begin_s > 10:
            warm, begin_s, steps = True, time.monotonic(), 0
        batch = batches[steps % 16]
        pixels, truth = torch.tensor(batch["pixels"]), torch.tensor(batch["truth"].astype(np.int64))
        inputs = normalize(pixels)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            logits = model(inputs)
        loss = with_auxiliary(
            LOSSES[config.loss], logits, truth, weights, label_set.ignore_value, weight=config.auxiliary_weight
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        ema.update(steps)
        steps += 1
    return {"rate": steps * size / (time.monotonic() - begin_s)}


def labelled_rows(config: Any) -> Any:
    """The training rows, as the job selects them."""
    from pipeline.catalog.manifest_writer import build_manifest
    from pipeline.training.selection import select_rows

    with tempfile.TemporaryDirectory() as scratch:
        return select_rows(build_manifest(config.source, scratch), config)[0]


# ---- the job ---------------------------------------------------------------------------------------------------------


def run_job(options: argparse.Namespace, runner: str) -> dict[str, Any]:
    """jobs/train.py for a while; what its reports, its event file and its processes say of the time after warm-up."""
    output = tempfile.mkdtemp(prefix="training-")
    shutil.rmtree(output)
    command = [sys.executable, "-u", str(PROJECT / "jobs" / "train.py"), *job_arguments(options), "--output", output]
    began_s = time.monotonic()
    job = subprocess.Popen([*command, "--runner", runner], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    reports: list[tuple[float, int]] = []

    def read() -> None:
        assert job.stderr is not None
        for line in job.stderr:
            if found := STEP.search(line):
                reports.append((time.monotonic(), int(found[1])))

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    try:
        while not any(step for _, step in reports):
            if job.poll() is not None:
                raise SystemExit(f"the job ended with {job.returncode}")
            time.sleep(0.1)
        time.sleep(WARM_UP_S)
        first, before = reports[-1], cpu_times(job.pid)
        time.sleep(options.seconds)
        last, after = reports[-1], cpu_times(job.pid)
        measured_s = time.monotonic() - first[0]
    finally:
        job.send_signal(signal.SIGTERM)
        job.wait(timeout=120)
    used = {key: (after[key] - before.get(key, 0.0)) / measured_s for key in after}
    trainer = max(used, key=lambda key: used[key])
    others = {key: cores for key, cores in used.items() if key != trainer}
    busiest = max(others, key=lambda key: others[key])
    found = {
        "rate": (last[1] - first[1]) * batch_size(options) / (last[0] - first[0]),
        "waited": wait_share(output),
        "beside": sum(others.values()),
        "busiest": f"{busiest[1]} {others[busiest]:.2f}",
        "trainer": used[trainer],
        "first_report_s": round(next(at for at, step in reports if step) - began_s, 1),
    }
    shutil.rmtree(output, ignore_errors=True)
    print(f"job, {runner}: {found}", file=sys.stderr, flush=True)
    return found


def cpu_times(pid: int) -> dict[tuple[int, str], float]:
    """CPU seconds of a process and all below it, by (pid, what it is)."""
    times = {}
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        try:
            line = process.cmdline()
            spent = process.cpu_times()
        except psutil.Error:
            continue
        times[process.pid, what_is(line)] = spent.user + spent.system
    return times


def what_is(line: list[str]) -> str:
    text = " ".join(line)
    for mark, name in (
        ("decode.serve", "decoder"),
        ("spawn_main", "reader"),
        ("jobs/train.py", "job"),
        ("raylet/raylet", "raylet"),
        ("gcs_server", "gcs"),
    ):
        if mark in text:
            return name
    return line[0].split("/")[-1][:40] if line else "?"


def wait_share(output: str) -> float | None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(output, "tensorboard")))
    events.Reload()
    return events.Scalars("train/wait_share")[-1].value if "train/wait_share" in events.Tags()["scalars"] else None


# ---- what both train -------------------------------------------------------------------------------------------------


def job_arguments(options: argparse.Namespace) -> list[str]:
    weights = ["--backbone-weights", options.backbone_weights] if options.backbone_weights else []
    return ["--config", options.config, "--source", options.source, *weights, "--epochs", "1000"]


def job_config(options: argparse.Namespace) -> Any:
    from pipeline.runtime.options import parse
    from pipeline.training.config import TrainConfig

    return parse(TrainConfig, [*job_arguments(options), "--output", "unused"])


def batch_size(options: argparse.Namespace) -> int:
    return int(job_config(options).batch_size)


if __name__ == "__main__":
    main()
