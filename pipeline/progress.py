"""Long work shows itself: one moving line on a terminal, a log line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time

LOG_EVERY_S = 5.0


class Progress:
    """Counts towards `total` and prints done, rate and time left to stderr. The rate is that of this run alone."""

    def __init__(self, what: str, total: int, done: int = 0, unit: str = "pictures") -> None:
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self._at_start = done
        self._started_s = time.monotonic()
        self._said_s = 0.0
        self._terminal = sys.stderr.isatty()

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        elapsed_s = time.monotonic() - self._started_s
        return (self.done - self._at_start) / elapsed_s if elapsed_s > 0 else 0.0

    def advance(self, by: int, note: str = "") -> None:
        """`by` more are done; `note` stands at the end of the line."""
        self.done += by
        every_s = 0.2 if self._terminal else LOG_EVERY_S
        if time.monotonic() - self._said_s >= every_s:
            self._say(note)

    def close(self, note: str = "") -> None:
        self._say(note, last=True)

    def _say(self, note: str, last: bool = False) -> None:
        self._said_s = time.monotonic()
        left = f", {_duration((self.total - self.done) / self.rate)} left" if self.rate and not last else ""
        share = f" ({100 * self.done / self.total:.0f} %)" if self.total else ""
        line = f"{self.what}: {self.done}/{self.total} {self.unit}{share}, {self.rate:.1f}/s{left}"
        line += f", {note}" if note else ""
        if self._terminal:
            sys.stderr.write(f"\r\033[K{line}" + ("\n" if last else ""))
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _duration(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {s:02d} s" if minutes else f"{s} s"
