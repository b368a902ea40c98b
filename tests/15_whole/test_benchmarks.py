"""The benchmarks run, and print what their documents copy; what they measure is asserted nowhere."""

from __future__ import annotations

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


@pytest.mark.parametrize(("name", "arguments"), [("networks.py", ["--only", "lightwieght"])])
def test_bad_input_is_one_line(name: str, arguments: list[str]) -> None:
    done = run(name, *arguments)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
