"""The benchmarks run, and print what their documents copy; what they measure is asserted nowhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


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


@pytest.mark.parametrize(("name", "arguments"), [("networks.py", ["--only", "lightwieght"])])
def test_bad_input_is_one_line(name: str, arguments: list[str]) -> None:
    done = run(name, *arguments)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
