"""Which regions kill or hang the process that predicts them: each costs its own row, not the job.

Ray restarts a dead actor and gives it the same block again, for ever. So each block is announced before it is begun.
One that was begun before and not ended is gone through with care: each region alone, announced before it is
predicted. A region that was announced so and found again is guilty: it becomes a row with its reason. A block that
nothing befalls costs one short call.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from pipeline.runtime.cluster import beside_driver

MOST_DEVICE_FAILURES = 10


class Quarantine:
    """The register; one actor on the driver's node (`start_quarantine`)."""

    def __init__(self) -> None:
        self._blocks: dict[int, int] = {}  # first region id -> times begun and not ended
        self._guilty: dict[int, str] = {}  # region id -> how its process ended
        self._device_failures = 0
        self._done = [0, 0]
        self._not_started: Exception | None = None

    def cannot_start(self, error: Exception) -> None:
        """A predictor cannot be made at all, such as of a network that is not known."""
        self._not_started = error

    def why_not_started(self) -> Exception | None:
        return self._not_started

    def begin_block(self, block: int) -> bool:
        """True where this block was begun before: go through it with care."""
        self._blocks[block] = self._blocks.get(block, 0) + 1
        return self._blocks[block] > 1

    def end_block(self, block: int, regions: int = 0, failed: int = 0) -> None:
        self._blocks.pop(block, None)
        self._done = [self._done[0] + regions, self._done[1] + failed]

    def done(self) -> list[int]:
        """Regions of the blocks that were ended so far, and how many of them failed; for showing."""
        return self._done

    def begin_region(self, region: int) -> str | None:
        """How the process that predicted this region before ended; None for one that was not begun."""
        before = self._guilty.get(region)
        self._guilty.setdefault(region, "its process died while predicting it")
        return before

    def end_region(self, region: int) -> None:
        self._guilty.pop(region, None)

    def hung(self, region: int, deadline_s: float) -> None:
        self._guilty[region] = f"timeout: not predicted within {deadline_s:.0f} s"

    def device_failed(self, region: int | None) -> bool:
        """The device failed, not the region. False when that has happened too often to go on."""
        if region is not None:
            self._guilty.pop(region, None)
        self._device_failures += 1
        return self._device_failures <= MOST_DEVICE_FAILURES


def start_quarantine() -> Any:
    """A handle of a new register that lives as long as the driver."""
    return beside_driver(Quarantine)


class Watchdog:
    """Ends this process when what it watches takes longer than it may: a forward pass cannot be interrupted."""

    def __init__(self) -> None:
        self._until_s: float | None = None
        self._last_words: Any = None
        self._changed = threading.Condition()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def start(self, deadline_s: float, last_words: Any) -> None:
        """Call `last_words()` and end the process unless `stop` is called within `deadline_s`."""
        with self._changed:
            self._until_s, self._last_words = time.monotonic() + deadline_s, last_words
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._until_s = None

    def _watch(self) -> None:
        while True:
            with self._changed:
                left_s = None if self._until_s is None else self._until_s - time.monotonic()
                if left_s is None or left_s > 0:
                    self._changed.wait(left_s)
                    continue
            print("a prediction hangs: ending this process", file=sys.stderr, flush=True)
            try:
                self._last_words()
            finally:
                os._exit(1)
