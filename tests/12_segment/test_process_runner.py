"""One machine: without Ray, and with it once a process dies."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import Finished, end, start_job, wait_until
from PIL import Image

from pipeline import read_predictions
from pipeline.prediction.predictor import Predictor


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("pictures")
    drawn = {}
    for i in range(24):
        drawn[f"{i:02d}.png"] = np.random.default_rng(i).integers(0, 256, (256, 320, 3), np.uint8)
        Image.fromarray(drawn[f"{i:02d}.png"]).save(folder / f"{i:02d}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return {"": folder, **drawn}  # type: ignore[dict-item]


def arguments(pictures: dict[str, Any], untrained: str, output: Path) -> list[object]:
    args = ["--source", pictures[""], "--checkpoint", untrained, "--output", output, "--num-predictors", "2"]
    return [*args, "--threads", "1", "--max-failure-rate", "1"]


def test_a_machine_alone_does_not_start_ray(
    untrained: str, pictures: dict[str, Any], tmp_path: Path, run_job: Callable[..., Finished]
) -> None:
    # a Ray that cannot be imported: what needs it would fail
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise ImportError('Ray was wanted')")
    output = tmp_path / "out"
    done = run_job("segment", *arguments(pictures, untrained, output), env={"PYTHONPATH": str(tmp_path)})
    assert done.code == 0, done.stderr
    assert "24 of 25 regions ok, 1 failed (1 decode_error)" in done.stdout and "start-up: " in done.stderr
    rows = {row["path"]: row for row in read_predictions(str(output))}
    assert rows.keys() == pictures.keys() - {""} | {"broken.png"}
    from pipeline.models.checkpoint import load_checkpoint

    predictor = Predictor(*load_checkpoint(untrained), device="cpu", threads=1)
    for name in list(pictures)[1::6]:
        (alone,) = predictor.predict([pictures[name]])
        assert not isinstance(alone, Exception) and np.array_equal(rows[name]["mask"], alone.class_map)
    again = run_job("segment", *arguments(pictures, untrained, output), env={"PYTHONPATH": str(tmp_path)})
    assert again.code == 0 and again.stdout.startswith("complete: 24 of 25")


def test_ray_takes_over_where_a_process_dies(untrained: str, pictures: dict[str, Any], tmp_path: Path) -> None:
    job = start_job("segment", *arguments(pictures, untrained, tmp_path / "out"), "--rows-per-file", 1)
    try:
        driver = psutil.Process(job.pid)

        def predictors() -> list[psutil.Process]:
            return [child for child in driver.children() if "spawn_main" in " ".join(child.cmdline())]

        wait_until(lambda: bool(predictors()), seconds=60, what="a process that predicts", process=job)
        os.kill(predictors()[0].pid, signal.SIGKILL)
        stdout, stderr = job.communicate(timeout=200)
    finally:
        end(job, group=True)
    assert job.returncode == 0, stderr
    assert "going on with Ray" in stderr and "24 of 25 regions ok, 1 failed" in stdout
    assert len(list(read_predictions(str(tmp_path / "out")))) == 25


def test_no_process_outlives_a_killed_driver(untrained: str, pictures: dict[str, Any], tmp_path: Path) -> None:
    job = start_job("segment", *arguments(pictures, untrained, tmp_path / "out"))
    try:
        driver = psutil.Process(job.pid)
        wait_until(lambda: len(driver.children()) >= 2, seconds=60, what="processes that predict", process=job)
        family = driver.children(recursive=True)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
        psutil.wait_procs(family, timeout=20)
        assert not [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    finally:
        end(job, group=True)


@pytest.mark.parametrize("runner", ["processes", "ray"])
def test_a_network_that_cannot_be_built_is_bad_input(
    runner: str, untrained: str, pictures: dict[str, Any], tmp_path: Path, run_job: Callable[..., Finished]
) -> None:
    copy = tmp_path / "checkpoint"
    copy.mkdir()
    for file in Path(untrained).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    description = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(description | {"model": "lightwait"}))
    args = [*arguments(pictures, str(copy), tmp_path / "out"), "--runner", runner]
    done = run_job("segment", *args, timeout_s=200)
    assert done.code == 2 and "did you mean 'lightweight'" in done.stderr.splitlines()[-1], done.stderr
    assert not (tmp_path / "out").exists()
