"""The benchmarks run, and print what their documents copy; what they measure is asserted nowhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT
from PIL import Image


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "benchmarks" / name), *arguments]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=280)


@pytest.mark.slow
def test_networks_are_timed_beside_each_other() -> None:
    done = run("networks.py", "--only", "lightweight,pspnet", "--size", "64,64", "--repeats", "1", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"^\| (lightweight|pspnet) \| ([\d.]+) ", done.stdout, re.MULTILINE))
    assert rows.keys() == {"lightweight", "pspnet"} and float(rows["pspnet"]) > float(rows["lightweight"])
    assert re.search(r"\| pspnet / lightweight \| >= 2.67 \| [\d.]+ \| (yes|no) \|", done.stdout)


@pytest.mark.slow
def test_the_predictors_steps_are_timed_beside_each_other(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    options = ["--networks", "light", "--engines", "eager,onnx", "--size", "64,96", "--repeats", "1"]
    done = run("engines.py", "--pictures", str(tmp_path), *options)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| (.*?) \| [\d.]+ \| .* \| (all.*?) \| [\d.]+ \|$", done.stdout, re.MULTILINE)
    assert [name for name, _ in rows][:2] == ["plain", "channels last"] and rows[-1][0] == "`onnx`"
    assert all(same == "all" for _, same in rows[:2]), rows


ALONE = """
import sys


class Refusal:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("ray", "s3fs", "simplejpeg", "tensorboard"):
            raise ModuleNotFoundError(f"{name} is not here", name=name)


sys.meta_path.insert(0, Refusal())
"""


def test_the_gpu_run_needs_torch_alone_for_its_first_parts(tmp_path: Path) -> None:
    """On a CPU, tiny, where neither Ray nor S3 can be imported; a second run measures nothing again."""
    (tmp_path / "sitecustomize.py").write_text(ALONE)
    command = [sys.executable, str(PROJECT / "benchmarks" / "gpu.py"), "--device", "cpu", "--small"]
    command += ["--output", str(tmp_path / "out"), "--parts", "networks,memory,predictor"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=280, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert all(found[part]["state"] == "done" for part in ("networks", "memory", "predictor")), found
    assert found["networks"]["rows"][0]["differing in float32"] == 0  # the CPU beside itself
    too_large, alone, after = found["memory"]["rows"]
    assert too_large["ran with"] < too_large["asked for"] and too_large["predicted"] == too_large["of"]
    assert (alone["predicted"], alone["error"], after["predicted"]) == (0, "OutOfMemoryError", 2)
    assert all(row["pictures/s"] > 0 for row in found["predictor"]["rows"])
    before = (tmp_path / "out" / "gpu.json").stat().st_mtime_ns
    again = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=60, env=environment)
    assert again.stdout == done.stdout and (tmp_path / "out" / "gpu.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_the_gpu_run_as_a_whole(tmp_path: Path) -> None:
    done = run("gpu.py", "--device", "cpu", "--small", "--output", str(tmp_path), "--parts", "segment,training")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [found[part]["state"] for part in ("segment", "training")] == ["done", "done"], found
    killed = found["training"]["rows"][1]
    assert 0 < killed["killed at step"] <= killed["ended at"] == 6 and killed["resumed at step"] > 0


@pytest.mark.parametrize(
    ("name", "arguments"), [("networks.py", ["--only", "lightwieght"]), ("gpu.py", ["--parts", "netwroks"])]
)
def test_bad_input_is_one_line(name: str, arguments: list[str]) -> None:
    done = run(name, *arguments)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
