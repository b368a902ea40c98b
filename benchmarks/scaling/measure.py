"""One line of a table: a piece of work in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from pipeline import storage


def header(of: str) -> None:
    """The table's head."""
    print(f"{of:<56} {'wall s':>7} {'CPU s':>7} {'peak MiB':>9}")


def measure(what: str, work: Callable[..., str], *args: Any) -> None:
    """One line: `work(*args)` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        wall_s, cpu_s, most_mib, told = pool.submit(_timed, work, args).result()
    print(f"{what:<56} {wall_s:>7.1f} {cpu_s:>7.1f} {most_mib:>9.0f}  {told}", flush=True)


def _timed(work: Callable[..., str], args: tuple[Any, ...]) -> tuple[float, float, float, str]:
    begin_s, cpu_s = time.monotonic(), time.process_time()
    told = work(*args)
    return time.monotonic() - begin_s, time.process_time() - cpu_s, peak_mib(os.getpid()), told


def peak_mib(pid: int) -> float:
    """The most resident memory that a process had so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0  # a process that has just ended has no memory


@contextlib.contextmanager
def folder_for(given: str | None) -> Iterator[str]:
    """The folder that was named, or a temporary one."""
    if given is not None:
        yield storage.absolute(given)
        return
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        yield folder
