"""Progress of a training run from its workers to the driver, and a request to stop the other way.

Workers of a cluster cannot print to the driver's terminal, so both talk to a small Ray actor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from pipeline.errors import Stopped
from pipeline.runtime.cluster import beside_driver
from pipeline.runtime.progress import ProgressLine

STOP_WAIT_S = 100.0  # what a stopped run may take for its last checkpoint (`ray job stop` waits 120 s)


class Monitor:
    """Holds the latest status and notes; runs as an actor on the driver's node (`start_monitor`)."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}
        self._notes: list[str] = []
        self._stop = False

    def post(self, state: dict[str, Any], notes: list[str]) -> bool:
        """Keep a worker's status and notes. True asks it to save and stop."""
        self._state = state
        self._notes += notes
        return self._stop

    def add(self, notes: list[str]) -> None:
        """Keep notes of another worker."""
        self._notes += notes

    def take(self) -> tuple[dict[str, Any], list[str]]:
        """The latest status, and the notes since the last call."""
        notes, self._notes = self._notes, []
        return self._state, notes

    def stop(self) -> None:
        self._stop = True


def start_monitor() -> Any:
    """A handle of a new `Monitor` that lives as long as the driver."""
    return beside_driver(Monitor)


def watch(work: Callable[[], object], monitor: Any) -> dict[str, Any]:
    """Run `work` in a thread, print what the monitor holds, and pass on a request to stop. Returns the last status.

    Raises what `work` raises, and Stopped once the workers have saved what they had.
    """
    import ray

    failure: list[BaseException] = []
    done = threading.Event()  # not join: a join that a signal's exception interrupts takes the thread for ended

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failure.append(error)
        finally:
            done.set()

    line = ProgressLine()
    status: dict[str, Any] = {}

    def look() -> None:
        nonlocal status
        status, notes = ray.get(monitor.take.remote())
        for note in notes:
            line.note(note)
        if status:
            line.show(status["text"])

    threading.Thread(target=run, name="work", daemon=True).start()
    try:
        while not done.wait(timeout=1.0):
            look()
        look()
    except (Stopped, KeyboardInterrupt):
        line.note("stopping: saving a checkpoint first")
        ray.get(monitor.stop.remote())
        saved = done.wait(timeout=STOP_WAIT_S)
        look()
        if failure or not saved:
            late = f"nothing was saved within {STOP_WAIT_S:.0f} s"
            why = f"{type(failure[0]).__name__}: {failure[0]}" if failure else late
            line.note(f"no checkpoint at the stop, an earlier one stands: {why}")
        step = f" at step {status['step']}" if status else ""
        raise Stopped(f"stopped on request{step}; resume with the same command") from None
    finally:
        line.end()
    if failure:
        raise failure[0]
    return status
