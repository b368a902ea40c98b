"""Where a training run stands, told by its first worker and printed by the driver; and the way back: please stop.

Workers of a cluster cannot print to the driver's terminal, so both meet at a small Ray actor.
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
    """The meeting place; runs as an actor on the driver's node (`start_monitor`)."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}
        self._notes: list[str] = []
        self._stop = False

    def post(self, state: dict[str, Any], notes: list[str]) -> bool:
        """A worker's news; True asks it to save and stop."""
        self._state = state
        self._notes += notes
        return self._stop

    def add(self, notes: list[str]) -> None:
        """Notes of the other workers."""
        self._notes += notes

    def take(self) -> tuple[dict[str, Any], list[str]]:
        """The latest state, and the notes that nobody has taken yet."""
        notes, self._notes = self._notes, []
        return self._state, notes

    def stop(self) -> None:
        self._stop = True


def start_monitor() -> Any:
    """A handle of a new `Monitor` that lives as long as the driver."""
    return beside_driver(Monitor)


def watch(work: Callable[[], object], monitor: Any) -> dict[str, Any]:
    """Run `work` in a thread, print what the monitor says, pass a request to stop on. Returns the last news.

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
    news: dict[str, Any] = {}

    def look() -> None:
        nonlocal news
        news, notes = ray.get(monitor.take.remote())
        for note in notes:
            line.note(note)
        if news:
            line.show(news["text"])

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
        step = f" at step {news['step']}" if news else ""
        raise Stopped(f"stopped on request{step}; resume with the same command") from None
    finally:
        line.end()
    if failure:
        raise failure[0]
    return news
