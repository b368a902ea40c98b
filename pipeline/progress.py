"""Where a training run stands, told by its first worker and printed by the driver; and the way back: please stop.

Workers of a cluster cannot print to the driver's terminal, so both meet at a small Ray actor.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from pipeline.errors import Stopped

STOP_WAIT_S = 100.0  # what a stopped run may take for its last checkpoint (`ray job stop` waits 120 s)
LINE_EVERY_S = 10.0  # where no terminal redraws the line


class Board:
    """The meeting place; runs as an actor on the driver's node (`start_board`)."""

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


def start_board() -> Any:
    """A handle of a new `Board` that lives as long as the driver."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Board).options(num_cpus=0, scheduling_strategy=here).remote()


class ProgressLine:
    """Prints a line now and then, or redraws it where there is a terminal."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._printed_s = 0.0
        self._last = ""

    def show(self, text: str) -> None:
        now_s = time.monotonic()
        if text == self._last or (not self._terminal and now_s - self._printed_s < LINE_EVERY_S):
            return
        self._last, self._printed_s = text, now_s
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """A line that stays."""
        start = "\r\x1b[K" if self._terminal else ""
        print(f"{start}{text}", file=sys.stderr, flush=True)

    def end(self) -> None:
        if self._terminal and self._last:
            print(file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`1 h 05 min`, `12 min`, `40 s`."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    return f"{int(seconds // 60)} min" if seconds >= 90 else f"{max(0, int(seconds))} s"


class Progress:
    """Counts towards `total`: done, rate and time left. The rate is that of this run of the driver alone."""

    def __init__(self, what: str, total: int, done: int = 0, unit: str = "pictures") -> None:
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self._at_start = done
        self._started_s = time.monotonic()
        self._line = ProgressLine()

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        elapsed_s = time.monotonic() - self._started_s
        return (self.done - self._at_start) / elapsed_s if elapsed_s > 0 else 0.0

    def advance(self, by: int, note: str = "") -> None:
        """`by` more are done; `note` stands at the end of the line."""
        self.done += by
        left_s = (self.total - self.done) / self.rate if self.rate else 0.0
        self._line.show(f"{self._text()}, {duration(left_s)} left, {note}".rstrip(", "))

    def close(self, note: str = "") -> None:
        """The last line, which stays."""
        self._line.note(f"{self._text()}, {note}".rstrip(", "))

    def _text(self) -> str:
        share = f" ({100 * self.done / self.total:.0f} %)" if self.total else ""
        return f"{self.what}: {self.done}/{self.total} {self.unit}{share}, {self.rate:.1f}/s"


def watch(work: Callable[[], object], board: Any) -> dict[str, Any]:
    """Run `work` in a thread, print what the board says, pass a request to stop on. Returns the last news.

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
        news, notes = ray.get(board.take.remote())
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
        ray.get(board.stop.remote())
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


def listed(names: list[str], most: int = 20) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def say(text: str) -> None:
    """One line for the person who waits."""
    print(text, file=sys.stderr, flush=True)
