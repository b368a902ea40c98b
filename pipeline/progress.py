"""Long work shows itself: one moving line on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time

LINE_EVERY_S = 10.0  # where no terminal redraws the line


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


def listed(names: list[str], most: int = 20) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def say(text: str) -> None:
    """One line for the person who waits."""
    print(text, file=sys.stderr, flush=True)
