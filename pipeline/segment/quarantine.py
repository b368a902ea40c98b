"""Regions that kill or hang the process that predicts them: each costs its own row, not the job.

Ray restarts a dead actor and gives it the same block again, for ever. So an actor registers each block before it begins
it. A block that was begun before and not ended is repeated region by region, each registered before it is predicted. A
region that is found registered then has ended its process: it becomes a row with the reason. A block without trouble
costs one short call.
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
    """The register of blocks and regions under way; one actor on the driver's node (`start_quarantine`)."""

    def __init__(self) -> None:
        self._blocks: dict[int, int] = {}  # first region id -> times begun and not ended
        self._suspected: dict[int, str] = {}  # region id -> how its process ended
        self._device_failures = 0
        self._done = [0, 0]
        self._not_started: Exception | None = None

    def cannot_start(self, error: Exception) -> None:
        """Keep why no predictor can be made at all, such as of an unknown network."""
        self._not_started = error

    def why_not_started(self) -> Exception | None:
        return self._not_started

    def begin_block(self, block: int) -> bool:
        """Register a block. True where it was begun before: to be repeated region by region."""
        self._blocks[block] = self._blocks.get(block, 0) + 1
        return self._blocks[block] > 1

    def end_block(self, block: int, regions: int = 0, failed: int = 0) -> None:
        self._blocks.pop(block, None)
        self._done = [self._done[0] + regions, self._done[1] + failed]

    def done(self) -> list[int]:
        """Regions of all ended blocks, and how many of them failed; for progress."""
        return self._done

    def begin_region(self, region: int) -> str | None:
        """Register a region. Returns how the process ended that predicted it before; None where there was none."""
        before = self._suspected.get(region)
        self._suspected.setdefault(region, "its process died while predicting it")
        return before

    def end_region(self, region: int) -> None:
        self._suspected.pop(region, None)

    def hung(self, region: int, deadline_s: float) -> None:
        self._suspected[region] = f"timeout: not predicted within {deadline_s:.0f} s"

    def device_failed(self, region: int | None) -> bool:
        """Count a failure of the device, which is not the region's. False when there were too many to go on."""
        if region is not None:
            self._suspected.pop(region, None)
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
