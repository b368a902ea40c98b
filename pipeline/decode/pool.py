"""A pool of decoding processes that grows while readers wait for it."""

from __future__ import annotations

import queue
import threading
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pipeline.decode.child import DecodeChild
from pipeline.decode.raster import RasterWindow, Window
from pipeline.decode.raster_header import Asset, RasterHeader

_LOOKED_AT_EVERY_S = 1.0
_WAITING, _BUSY = 0.2, 0.75  # shares of the time from which on one more pays


class DecodePool:
    """At most `most` decoders; begins with one. Calls from several threads share them."""

    def __init__(self, most: int = 1) -> None:
        self.most = max(1, most)
        self.children = [DecodeChild()]
        self._idle: queue.LifoQueue[DecodeChild] = queue.LifoQueue()
        self._idle.put(self.children[0])
        self._growing = threading.Lock()
        self._looked_s = 0.0
        self._waited_s = 0.0
        self._seen_busy_s = 0.0
        self._taken_s = 0.0

    def decode(self, data: bytes, kind: Literal["picture", "label"] = "picture", **limits: Any) -> np.ndarray:
        """As `DecodeChild.decode`, in whichever is free."""
        child = self._idle.get()
        try:
            return child.decode(data, kind, **limits)
        finally:
            self._idle.put(child)

    def scene(self, assets: Sequence[Asset], window: Window | None, **how: Any) -> RasterWindow:
        """As `DecodeChild.scene`, always in the same one for the same scene: it has its files and blocks already."""
        child = self.children[zlib.crc32(assets[0].uri.encode()) % len(self.children)]
        return child.scene(assets, window, **how)

    def scene_header(self, assets: Sequence[Asset], **how: Any) -> RasterHeader:
        """As `DecodeChild.scene_header`, in the one that reads this scene."""
        child = self.children[zlib.crc32(assets[0].uri.encode()) % len(self.children)]
        return child.scene_header(assets, **how)

    def note_wait(self, seconds: float, now_s: float) -> None:
        """A reader waited for pixels for `seconds`, until `now_s` (monotonic). Adds a decoder where readers wait for a
        good part of the time and the decoders are busy."""
        self._waited_s += seconds
        if not self._looked_s:
            self._look(now_s)
        elapsed_s = now_s - self._looked_s
        if elapsed_s < _LOOKED_AT_EVERY_S:
            return
        busy_s = self._busy_s() - self._seen_busy_s
        if self._waited_s > _WAITING * elapsed_s and busy_s > _BUSY * elapsed_s * len(self.children):
            self._grow()
        self._look(now_s)

    def take_busy(self) -> float:
        """Seconds of decoding since the last call, of all decoders together."""
        busy_s = self._busy_s()
        taken_s, self._taken_s = self._taken_s, busy_s
        return busy_s - taken_s

    def close(self) -> None:
        for child in self.children:
            child.close()

    def _busy_s(self) -> float:
        return sum(child.busy_s for child in self.children)

    def _look(self, now_s: float) -> None:
        self._looked_s, self._waited_s, self._seen_busy_s = now_s, 0.0, self._busy_s()

    def _grow(self) -> None:
        with self._growing:
            if len(self.children) < self.most:
                self.children.append(DecodeChild())
                self._idle.put(self.children[-1])
