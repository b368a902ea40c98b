"""An evaluation on Ray and in processes: the same numbers, and what happens where a process dies or is to stop."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from conftest import Finished, end, start_job, wait_until
from drawn_collection import Drawn, metrics_of
from PIL import Image

from pipeline.evaluate.results import notes
from pipeline.metrics import ConfusionMatrix


def rows_of(output: Path) -> list[dict[str, Any]]:
    return sorted(pq.read_table(output / "pictures").to_pylist(), key=lambda row: row["region_key"])


def test_either_runner_counts_the_same(ray_session: None, tmp_path: Path) -> None:
    drawn = Drawn(tmp_path / "data", count=9)
    drawn.masks["scene 003"] = None
    predictions = drawn.predict(tmp_path / "run")
    found = {}
    for runner in ("ray", "processes"):
        found[runner] = metrics_of(predictions, tmp_path / "data", tmp_path / runner, runner=runner)
    assert found["ray"] == found["processes"]
    assert rows_of(tmp_path / "ray") == rows_of(tmp_path / "processes")
    assert found["ray"]["confusion_matrix"] == drawn.matrix.matrix.tolist()


@pytest.fixture
def many(tmp_path: Path) -> tuple[Drawn, list[object]]:
    """2,000 pictures, which are 32 units, and the arguments of the job."""
    drawn = Drawn(tmp_path / "data", count=2000)
    predictions = drawn.predict(tmp_path / "run")
    return drawn, ["--predictions", predictions, "--labels", tmp_path / "data", "--output", tmp_path / "evaluation"]


def scorers(pid: int) -> list[psutil.Process]:
    return [child for child in psutil.Process(pid).children() if "spawn_main" in " ".join(child.cmdline())]


def test_a_scoring_process_that_dies_costs_nothing(many: tuple[Drawn, list[object]], tmp_path: Path) -> None:
    drawn, arguments = many
    job = start_job("evaluate", *arguments)
    try:
        wait_until(
            lambda: any((tmp_path / "evaluation" / "pictures").glob("*")), seconds=60, what="a part", process=job
        )
        for process in scorers(job.pid)[:1]:
            process.kill()
        _, stderr = job.communicate(timeout=120)
    finally:
        end(job, group=True)
    assert job.returncode == 0 and "a process that scores has died" in stderr, stderr
    found = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert found["confusion_matrix"] == drawn.matrix.matrix.tolist() and found["pictures"]["ok"] == 2000
    assert len(rows_of(tmp_path / "evaluation")) == 2000


def test_stopped_and_resumed(
    many: tuple[Drawn, list[object]], tmp_path: Path, run_job: Callable[..., Finished]
) -> None:
    drawn, arguments = many
    pictures = tmp_path / "evaluation" / "pictures"
    job = start_job("evaluate", *arguments)
    try:
        wait_until(lambda: any(pictures.glob("*")), seconds=60, what="a part", process=job)
        children = scorers(job.pid)
        os.kill(job.pid, signal.SIGTERM)
        _, stderr = job.communicate(timeout=60)
    finally:
        end(job, group=True)
    assert job.returncode == 4 and stderr.strip().splitlines()[-1].startswith("error: stopped on request"), stderr
    assert not any(child.is_running() for child in children)
    before = {path: path.stat().st_mtime_ns for path in pictures.iterdir() if path.suffix == ".parquet"}
    assert 0 < len(before) < 32
    done = run_job("evaluate", *arguments)
    assert done.code == 0, done.stderr
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    found = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert found["confusion_matrix"] == drawn.matrix.matrix.tolist()


def arguments_of(predictions: Path, labels: Path, output: Path) -> list[object]:
    return ["--predictions", predictions, "--labels", labels, "--output", output]


def test_what_was_found_is_said(tmp_path: Path, run_job: Callable[..., Finished]) -> None:
    """A folder of label files is no set of pictures without labels."""
    drawn = Drawn(tmp_path / "data", count=3)
    predictions = drawn.predict(tmp_path / "run", root="")
    done = run_job(
        "evaluate", "--predictions", predictions, "--labels", tmp_path / "data" / "masks", "--output", tmp_path / "e"
    )
    assert done.code == 0, done.stderr
    assert "3 label files" in done.stderr and "pictures, 0 with labels" not in done.stderr
    done = run_job(
        "evaluate",
        "--predictions",
        drawn.predict(tmp_path / "r2"),
        "--labels",
        tmp_path / "data",
        "--output",
        tmp_path / "f",
    )
    assert "3 pictures, 3 with labels" in done.stderr


def test_figures_that_say_little_are_said_so(tmp_path: Path, run_job: Callable[..., Finished]) -> None:
    drawn = Drawn(tmp_path / "data", count=2)
    for name in drawn.truth:
        Image.fromarray(drawn.truth[name] * 0 + 1).save(tmp_path / "data" / "masks" / f"{name}.png")
    done = run_job(
        "evaluate",
        "--predictions",
        drawn.predict(tmp_path / "run"),
        "--labels",
        tmp_path / "data",
        "--output",
        tmp_path / "e",
    )
    assert done.code == 0, done.stderr
    sentence = "only 1 of 3 classes occurs in the labels: these figures say nothing of sky, car"
    assert sentence in done.stdout
    assert "O" + sentence[1:] in (tmp_path / "e" / "report.html").read_text()


def test_no_note_where_all_is_well() -> None:
    names = ["a", "b", "c"]
    whole = ConfusionMatrix.from_counts([[5, 0, 0], [0, 5, 1], [0, 0, 2]])  # type: ignore[arg-type]
    assert notes(whole.metrics(names)) == []
    void = ConfusionMatrix.from_counts([[1, 0, 0], [0, 1, 1], [0, 0, 2]], ignored=995)  # type: ignore[arg-type]
    assert notes(void.metrics(names)) == ["99.5 % of the label pixels are void and count nowhere"]
    empty = ConfusionMatrix(3)
    assert notes(empty.metrics(names)) == ["the labels hold no pixel of any class: there is nothing to compare with"]
