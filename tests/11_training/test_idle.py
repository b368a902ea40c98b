"""What runs beside a training on Ray that reads faster than it trains: next to nothing.

Ray Data's scheduling loop spins while a slower consumer holds it back, unless a pause is set in the very process that
makes the stream. It once was set where it had no effect, and took 0.86 of a core for as long as a training lasted.
"""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path

import psutil
from conftest import end, start_job, wait_until
from light_and_dark import LABELS, draw_collection

SETTLING_S, MEASURED_S = 20.0, 10.0


def cpu_seconds(pid: int) -> dict[tuple[int, str], float]:
    """Of a process and all below it, by (pid, its name as Ray shows it)."""
    found = {}
    root = psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        try:
            times, line = process.cpu_times(), process.cmdline()
        except psutil.Error:
            continue
        found[process.pid, line[0] if line else ""] = times.user + times.system
    return found


def test_no_process_spins_beside_a_training_that_reads_ahead(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(json.dumps(LABELS.to_json()))
    arguments = ["--source", draw_collection(tmp_path / "data"), "--output", tmp_path / "run", "--runner", "ray"]
    arguments += ["--label-set", tmp_path / "two.yaml", "--epochs", 100_000, "--validate-every", 100_000]
    arguments += ["--batch-size", 2, "--crop", "384,512", "--cpus-per-worker", 1, "--precision", "float32"]
    job = start_job("train", *arguments)
    reported: list[int] = []

    def read() -> None:
        assert job.stderr is not None
        for line in job.stderr:
            reported.extend(int(step) for step in re.findall(r"step (\d+)/", line))

    threading.Thread(target=read, daemon=True).start()
    try:
        wait_until(lambda: max(reported, default=0) > 0, seconds=150, what="a step", process=job)
        time.sleep(SETTLING_S)  # until as much is read ahead as may be
        before, steps = cpu_seconds(job.pid), max(reported)
        time.sleep(MEASURED_S)
        after = cpu_seconds(job.pid)
        wait_until(lambda: max(reported) > steps, seconds=60, what="a further step", process=job)
    finally:
        end(job, group=True)
    cores = {key: (spent - before.get(key, 0.0)) / MEASURED_S for key, spent in after.items()}
    trainer = max(cores, key=lambda key: cores[key])
    beside = {key: share for key, share in cores.items() if key != trainer}
    coordinators = [share for (_, name), share in beside.items() if "SplitCoordinator" in name]
    assert "Train" in trainer[1] and cores[trainer] > 0.5, cores  # it is the training that works
    assert coordinators and max(coordinators) < 0.25, cores
    assert max(beside.values()) < 0.4 and sum(beside.values()) < 0.8, cores
