"""Long work shows itself: one moving line on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
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
    """Counts towards `total`: done, rate and time left. The rate is that of this run of the driver alone, from the
    moment at which the first were done: what starts up before says nothing about the time left."""

    def __init__(self, what: str, total: int, done: int = 0, unit: str = "pictures") -> None:
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self._begun_s = time.monotonic()
        self._begun_done = done
        self._first: tuple[float, int] | None = None
        self._line = ProgressLine()

    @property
    def rate(self) -> float:
        """Units a second."""
        from_s, from_done = (
            self._first if self._first and self.done > self._first[1] else (self._begun_s, self._begun_done)
        )
        elapsed_s = time.monotonic() - from_s
        return (self.done - from_done) / elapsed_s if elapsed_s > 0 else 0.0

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
        """The last line, which stays; `done` is the last word on how many are."""
        self.done = self.done if done is None else done
        self._line.note(f"{self._text()}, {note}".rstrip(", "))

    def _reach(self, done: int, note: str) -> None:
        self.done = done
        if self._first is None and done > self._begun_done:
            self._first = (time.monotonic(), done)
        left = f", {duration((self.total - done) / self.rate)} left" if self.rate else ", starting"
        self._line.show(f"{self._text()}{left}, {note}".rstrip(", "))

    def _text(self) -> str:
        share = f" ({100 * self.done / self.total:.0f} %)" if self.total else ""
        return f"{self.what}: {self.done}/{self.total} {self.unit}{share}, {self.rate:.1f}/s"


def listed(names: list[str], most: int = 20) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def say(text: str) -> None:
    """One line for the person who waits."""
    print(text, file=sys.stderr, flush=True)
