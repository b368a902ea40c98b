"""Long work shows itself: one moving line on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

LINE_EVERY_S = 10.0  # where no terminal redraws the line
_ASK_EVERY_S = 2.0


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
        """Print a line that is not overwritten."""
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


class RecentRate:
    """Units per second over the last `window_s` seconds.

    It counts from the moment at which the first units were done (more than `begun`): what starts up before says nothing
    about the time left. `clock` gives seconds.
    """

    def __init__(self, begun: int = 0, *, window_s: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._begun, self._window_s, self._clock = begun, window_s, clock
        self._seen: deque[tuple[float, int]] = deque()  # (time, units done), oldest first

    def update(self, done: int) -> None:
        """`done` units are done by now."""
        if done > self._begun:
            now_s = self._clock()
            self._seen.append((now_s, done))
            while len(self._seen) > 2 and now_s - self._seen[1][0] >= self._window_s:
                self._seen.popleft()

    @property
    def per_second(self) -> float | None:
        """None until units were done after the first ones; 0 after a window in which nothing was done."""
        if len(self._seen) < 2:
            return None
        (from_s, from_done), (_, done) = self._seen[0], self._seen[-1]
        elapsed_s = self._clock() - from_s
        return (done - from_done) / elapsed_s if elapsed_s > 0 else None

    def left_s(self, total: int) -> float | None:
        """Seconds until `total` units are done at this rate; None where there is no rate, or it is 0."""
        rate = self.per_second
        return (total - self._seen[-1][1]) / rate if rate else None


class Progress:
    """Counts towards `total` and shows units done, the rate of the last half minute and the time left at that rate."""

    def __init__(self, what: str, total: int, done: int = 0, unit: str = "pictures") -> None:
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self._rate = RecentRate(done)
        self._begun_s, self._begun_done = time.monotonic(), done
        self._line = ProgressLine()

    def advance(self, by: int, note: str = "") -> None:
        """`by` more are done; `note` stands at the end of the line."""
        self._reach(self.done + by, note)

    @contextlib.contextmanager
    def following(self, ask: Callable[[], tuple[int, str]]) -> Iterator[None]:
        """While the block runs, show every few seconds what `ask` says: how many more than at its beginning are done,
        and a note. What it raises is passed over: it only shows."""
        done, over = self.done, threading.Event()

        def follow() -> None:
            while not over.wait(_ASK_EVERY_S):
                with contextlib.suppress(Exception):
                    more, note = ask()
                    if not over.is_set():
                        self._reach(min(done + more, self.total), note)

        thread = threading.Thread(target=follow, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()

    def close(self, note: str = "", done: int | None = None) -> None:
        """Print the last line, with `done` as the final count."""
        self.done = self.done if done is None else done
        elapsed_s = max(1e-9, time.monotonic() - self._begun_s)
        whole = f"{(self.done - self._begun_done) / elapsed_s:.1f}/s in all"
        self._line.note(f"{self._text()}, {whole}, {note}".rstrip(", "))

    def _reach(self, done: int, note: str) -> None:
        self.done = done
        self._rate.update(done)
        self._line.show(f"{self._text()}, {speed_text(self._rate, self.total)}, {note}".rstrip(", "))

    def _text(self) -> str:
        share = f" ({100 * self.done / self.total:.0f} %)" if self.total else ""
        return f"{self.what}: {self.done}/{self.total} {self.unit}{share}"


def speed_text(rate: RecentRate, total: int, unit: str = "") -> str:
    """`12.3/s, 4 min left`, or `starting` before there is a rate."""
    per_second, left_s = rate.per_second, rate.left_s(total)
    if per_second is None:
        return "starting"
    left = f", {duration(left_s)} left" if left_s is not None else ""
    return f"{per_second:.1f}{unit}/s{left}"


def listed(names: list[str], most: int = 20) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def say(text: str) -> None:
    """Print one line to stderr."""
    print(text, file=sys.stderr, flush=True)
