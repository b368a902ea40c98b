"""More and more small pictures through the whole job: does one cost the same in the end?"""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import InputError
from pipeline.runtime.options import MEASUREMENT, option
from scaling.measure import folder_for, peak_mib

PROJECT = Path(__file__).resolve().parents[2]


@dataclass
class PicturesConfig:
    """Segment more and more small pictures with a small network: does a picture cost the same in the end?"""

    steps: str = option("1000,10000,100000", "Numbers of pictures.", group=MEASUREMENT)
    height: int = option(32, "Of a picture in px.", group=MEASUREMENT)
    width: int = option(48, "Of a picture in px.", group=MEASUREMENT)
    checkpoint: str | None = option(None, "The network (default: one strided convolution).", group=MEASUREMENT)
    runners: str = option("processes,ray", "Of processes and ray.", group=MEASUREMENT)


def pictures(config: PicturesConfig) -> None:
    steps = [int(step) for step in config.steps.split(",")]
    from tiny import make_tiny

    with folder_for(None) as folder:
        checkpoint = config.checkpoint or make_tiny(Path(folder, "checkpoint"))
        print("   runner  pictures   wall s  start s  ms each  pictures/s  share  driver MiB")
        drawn = 0
        for step, runner in itertools.product(steps, config.runners.split(",")):
            _draw(f"{folder}/pictures", drawn, step, config.height, config.width)
            drawn = step
            output = f"{folder}/out-{step}"
            wall_s, driver_mib = _run_job(f"{folder}/pictures", checkpoint, output, runner)
            speed = json.loads(Path(output, "_SUCCESS").read_text())["speed"]
            each_ms = 1000 * (wall_s - speed["startup_s"]) / step
            print(
                f"{runner:>9} {step:>9,} {wall_s:>8.1f} {speed['startup_s']:>8.1f} {each_ms:>8.2f}"
                f" {speed['pictures_per_s']:>11.1f} {speed['predictor_share']:>6.2f} {driver_mib:>11.0f}",
                flush=True,
            )
            shutil.rmtree(output)
    print(
        "\nms each: wall time after the start-up; pictures/s and share (of the predictor's own rate) in steady state."
    )


def _draw(folder: str, begin: int, end: int, height: int, width: int) -> None:
    import simplejpeg

    rng = np.random.default_rng(begin)
    kinds = [simplejpeg.encode_jpeg(rng.integers(0, 256, (height, width, 3), np.uint8), quality=80) for _ in range(64)]
    for i in range(begin, end):
        target = Path(folder, f"{i // 1000:04d}")
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{i:07d}.jpg").write_bytes(kinds[i % len(kinds)])


def _run_job(source: str, checkpoint: str, output: str, runner: str) -> tuple[float, float]:
    """Wall seconds and the driver's peak resident memory (MiB), read while it runs."""
    command = [sys.executable, str(PROJECT / "jobs" / "segment.py"), "--source", source]
    command += ["--checkpoint", checkpoint, "--output", output, "--runner", runner]
    begin_s, most_mib = time.monotonic(), 0.0
    with tempfile.TemporaryFile() as log:
        job = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while job.poll() is None:
                with contextlib.suppress(OSError):
                    most_mib = max(most_mib, peak_mib(job.pid))
                time.sleep(0.2)
        finally:
            job.terminate()
            job.wait()
        wall_s = time.monotonic() - begin_s
        if job.returncode:
            log.seek(0)
            raise InputError("the job failed", found=log.read().decode(errors="replace")[-400:])
    return wall_s, most_mib
