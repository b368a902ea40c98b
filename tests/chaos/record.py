"""Counts what was tried, survived, lost and duplicated, and writes the table of docs/reliability.md itself.

A row is replaced by each recorded run of its case and by nothing else, so the suite may be run in pieces. Nothing is
written without SEGMENTATION_RECORD=1, which `make chaos` sets.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest

from chaos.audit import Audit, Rows, audit

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- written by tests/chaos: begin -->", "<!-- written by tests/chaos: end -->"
COMMAND = "make chaos"
HEADER = "| what happens | tried | survived | regions checked | lost | duplicated | differing | wall s | date |"
SECTIONS = ("commit protocol", "lease", "processes", "object store", "disk", "pictures", "secrets")
PACKAGES = ("ray", "torch", "pyarrow", "s3fs", "moto")


class Case:
    """One row of the table. An attempt that fails is counted and told at the end; the others still run."""

    def __init__(self, section: str, name: str) -> None:
        assert section in SECTIONS, section
        self.section, self.name = section, name
        self.tried = self.survived = self.regions = self.lost = self.duplicated = self.differing = 0
        self.failures: list[str] = []

    @contextlib.contextmanager
    def attempt(self, what: object = "", *, times: Callable[[], int] = lambda: 1) -> Iterator[None]:
        """One try at it, or as many as `times()` says at its end; survived where nothing was raised."""
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:
            self.failures.append(f"{what}: {type(error).__name__}: {error}")
        else:
            self.survived += times()
        self.tried += times()

    def audit(self, output: str, expected: Rows, *, manifest: str | None = None, endpoint: str | None = None) -> Audit:
        """Audit an output folder, count what it shows, and fail the attempt where it is not clean."""
        found = audit(output, expected, manifest=manifest, endpoint=endpoint)
        self.regions += found.regions
        self.lost += found.missing
        self.duplicated += found.duplicated + found.foreign
        self.differing += found.differing
        assert found.clean, str(found)
        return found


@contextlib.contextmanager
def recorded(section: str, name: str) -> Iterator[Case]:
    """A case; its row is written when the block ends, also where it failed."""
    case = Case(section, name)
    started_s = time.monotonic()
    try:
        yield case
    finally:
        if case.tried and os.environ.get("SEGMENTATION_RECORD") == "1":
            _write(case, time.monotonic() - started_s)
    assert case.tried, "nothing was tried"
    assert not case.failures, f"{len(case.failures)} of {case.tried} failed:\n" + "\n".join(case.failures)


def _write(case: Case, wall_s: float) -> None:
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    rows = {}
    for line in table.splitlines():
        if line.startswith("| ") and line != HEADER:
            rows[line.split("|")[1].strip()] = line
    counts = (case.tried, case.survived, case.regions, case.lost, case.duplicated, case.differing)
    name = f"{case.section}: {case.name}"
    today = datetime.date.today().isoformat()
    rows[name] = f"| {name} | {' | '.join(map(str, counts))} | {wall_s:.0f} | {today} |"
    ordered = sorted(rows, key=lambda row: SECTIONS.index(row.partition(":")[0]))  # stable: as first recorded within
    lines = [BEGIN, f"`{COMMAND}`, {_machine()}:", "", HEADER, "|--|" + "--:|" * 8]
    DOCUMENT.write_text("\n".join([before + lines[0], *lines[1:], *(rows[name] for name in ordered), END]) + after)


def _machine() -> str:
    processor = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        processor = found.group(1) if found else processor
    memory_gb = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return (
        f"{os.cpu_count()} cores of {processor}, {memory_gb:.0f} GB, {platform.system()} {platform.release()};"
        f" Python {platform.python_version()}, {versions}"
    )
