"""Training steps of `lightweight`: pictures a second, the share of time waited for samples, a kill and a resume."""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_parts.commands import PROJECT, environment, job, labelled


def measure(options: argparse.Namespace, keep: Callable[[dict[str, Any]], None], deadline_s: float) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source, label_set = labelled(options, Path(scratch))
        steps, crop, batch = (6, "32,32", 2) if options.small else (200, "288,384", 16)
        arguments: list[object] = ["--source", source, "--label-set", label_set, "--crop", crop, "--batch-size", batch]
        arguments += ["--max-steps", steps, "--epochs", 1000, "--validate-every", 1000, "--device", options.device]
        arguments += ["--model", "unet?width=0.1"] if options.small else []
        output = Path(scratch, "whole")
        begin_s = time.monotonic()
        job("train", *arguments, "--output", output)
        history = json.loads((output / "history.json").read_text())
        took = {"what": f"{steps} steps of {batch}", "seconds in all": time.monotonic() - begin_s}
        keep({**took, **_steady(output, batch), "waited": history[-1].get("wait_share")})
        sides = [int(side) for side in crop.split(",")]
        keep(_bare(options.device, (sides[0], sides[1]), batch, 5 if options.small else 150))
        output = Path(scratch, "killed")
        more = ["--output", output, "--checkpoint-minutes", 0.02]
        killed_at = _kill_at_first_checkpoint([*arguments, *more], output)
        done = job("train", *arguments, *more)
        resumed_at = [int(step) for step in re.findall(r"resuming at step (\d+)", done.stderr)]
        last = json.loads((output / "history.json").read_text())[-1]["step"]
        steps_seen = {"killed at step": killed_at, "resumed at step": (resumed_at or [0])[0], "ended at": last}
        keep({"what": "killed and resumed", **steps_seen})


def _steady(output: Path, batch: int) -> dict[str, Any]:
    """The rate between the reports of the second half of the run, by TensorBoard's own times."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    reports = events.Scalars("train/loss")
    later = reports[len(reports) // 2 :]
    if len(later) < 2 or later[-1].wall_time == later[0].wall_time:
        return {"pictures/s": None}
    return {"pictures/s": (later[-1].step - later[0].step) * batch / (later[-1].wall_time - later[0].wall_time)}


def _kill_at_first_checkpoint(arguments: list[object], output: Path) -> int:
    command = [sys.executable, str(PROJECT / "jobs" / "train.py"), *map(str, arguments)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    position = output / "_train" / "position.json"
    while not position.exists() and running.poll() is None:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    return int(json.loads(position.read_text())["step"])


def _bare(device: str, crop: tuple[int, int], batch: int, steps: int) -> dict[str, Any]:
    """The same network, loss and optimizer on one batch that lies on the device: what a step costs by itself."""
    import torch

    from pipeline.models import build_model
    from pipeline.training.optimization.ema import EMA
    from pipeline.training.optimization.losses import LOSSES, with_auxiliary
    from pipeline.training.optimization.parameter_groups import autocast_dtype, parameter_groups

    torch.manual_seed(0)
    model = build_model("lightweight", num_classes=11).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-3, 1.0, 1e-2), fused=True)
    ema, dtype = EMA(model, 0.999), autocast_dtype("auto", device)
    x = torch.rand(batch, 3, *crop, device=device).to(memory_format=torch.channels_last)
    truth = torch.randint(0, 11, (batch, *crop), device=device)
    weights = torch.ones(11, device=device)
    begin_s = time.monotonic()
    for step in range(-10, steps):
        if step == 0:
            if device == "cuda":
                torch.cuda.synchronize()
            begin_s = time.monotonic()
        with torch.autocast(device, dtype, enabled=dtype is not None):
            logits = model(x)
        loss = with_auxiliary(LOSSES["cross_entropy"], logits, truth, weights, 255, weight=0.4)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        ema.update(max(step, 0))
    if device == "cuda":
        torch.cuda.synchronize()
    return {"what": "bare loop", "pictures/s": steps * batch / (time.monotonic() - begin_s)}
