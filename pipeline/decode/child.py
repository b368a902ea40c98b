"""A decoder in a process of its own: what crashes, hangs or exhausts it costs one picture.

Requests and replies are single short lines of JSON on two pipes; bytes and pixels go through one memory file (memfd)
that both sides read and write at offset 0, so no pipe ever holds more than a line and neither side can block the other.
The child (`serve`) limits its own address space, is killed at the deadline, dies with its parent, and is started again
when it is next needed. It imports neither torch nor Ray and starts in a fifth of a second.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any, Literal

import numpy as np

from pipeline.decode.child_process import ChildProcess, Died
from pipeline.decode.header import DecodeError, DecoderDied, DecodeTimeout, Header, TooLarge
from pipeline.decode.memory_file import read_into, write
from pipeline.decode.picture import MAX_PIXELS
from pipeline.decode.raster import RasterWindow, Window
from pipeline.decode.raster_header import Asset, RasterHeader, header_of

GIB = 1 << 30
_STARTS = 3  # tries
KEEP_BYTES = 32 << 20  # a memory file that grew beyond this is emptied after use
_ERRORS = {"TooLarge": TooLarge, "DecodeError": DecodeError}


class DecodeChild:
    """One decoding process; calls from several threads take turns.

    `memory_limit_bytes` bounds its address space. Raises RuntimeError where the process cannot be started at all.
    """

    def __init__(self, memory_limit_bytes: int = 4 * GIB) -> None:
        self.memory_limit_bytes = memory_limit_bytes
        self.busy_s = 0.0  # spent on pictures so far
        self._lock = threading.Lock()
        self._process: ChildProcess | None = None

    @property
    def pid(self) -> int | None:
        """The process id while one is running."""
        return self._process.popen.pid if self._process else None

    def decode(
        self,
        data: bytes,
        kind: Literal["picture", "label"] = "picture",
        *,
        max_pixels: int = MAX_PIXELS,
        deadline_s: float = 30.0,
    ) -> np.ndarray:
        """As `picture.decode` (uint8 H x W x 3) or `picture.decode_label` (raw values), in the child.

        Raises DecodeError with the reason (also where the process died of it), TooLarge, DecodeTimeout.
        """
        with self._lock:
            begin_s = time.monotonic()
            try:
                process, reply = self._ask(data, kind, max_pixels, deadline_s)
                pixels = np.empty(reply["shape"], dtype=reply["dtype"])
                read_into(process.memory, pixels)
                if pixels.nbytes > KEEP_BYTES:
                    os.ftruncate(process.memory, 0)
                return pixels
            finally:
                self.busy_s += time.monotonic() - begin_s

    def header(self, data: bytes, *, max_pixels: int | None = None, deadline_s: float = 30.0) -> Header:
        """As `header.read_header`, in the child: some formats decode a good deal to find their own size."""
        with self._lock:
            return Header(**self._ask(data, "header", max_pixels, deadline_s)[1]["header"])

    def scene_header(
        self, assets: Sequence[Asset], *, resampling: str = "bilinear", deadline_s: float = 30.0
    ) -> RasterHeader:
        """As `raster.Scenes.header`, in the child."""
        files = [astuple(asset) for asset in assets]
        with self._lock:
            how = {"resampling": resampling}
            _, reply = self._ask(b"", "scene header", None, deadline_s, {"assets": files, "scene": how})
            return header_of(reply["header"])

    def scene(
        self,
        assets: Sequence[Asset],
        window: Window | None,
        *,
        max_pixels: int = MAX_PIXELS,
        deadline_s: float = 30.0,
        **how: Any,
    ) -> RasterWindow:
        """As `raster.Scenes.read`, in the child; what it has open stays open. `how` are its further arguments."""
        files = [astuple(asset) for asset in assets]
        with self._lock:
            begin_s = time.monotonic()
            try:
                if how.get("onto") is not None:
                    how["onto"] = astuple(how["onto"])
                request = {"assets": files, "scene": {"window": window, **how}}
                process, reply = self._ask(b"", "scene", max_pixels, deadline_s, request)
                values = np.empty(reply["shape"], dtype=reply["dtype"])
                read_into(process.memory, values)
                valid = None
                if reply["has_mask"]:
                    packed = np.empty(-(-values.shape[0] * values.shape[1] // 8), np.uint8)
                    read_into(process.memory, packed, values.nbytes)
                    valid = np.unpackbits(packed, count=values.shape[0] * values.shape[1])
                    valid = valid.reshape(values.shape[:2]).view(bool)
                if values.nbytes > KEEP_BYTES:
                    os.ftruncate(process.memory, 0)
                return RasterWindow(values, valid, header_of(reply["header"]))
            finally:
                self.busy_s += time.monotonic() - begin_s

    def close(self) -> None:
        """End the process; a later call starts another."""
        with self._lock:
            self._stop()

    def __enter__(self) -> DecodeChild:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(
        self, data: bytes, kind: str, max_pixels: int | None, deadline_s: float, more: dict[str, Any] | None = None
    ) -> tuple[ChildProcess, dict[str, Any]]:
        process = self._running()
        try:
            write(process.memory, memoryview(data))
            request = {"kind": kind, "size_bytes": len(data), "max_pixels": max_pixels, **(more or {})}
            process.send(request)
            reply = process.receive(deadline_s)
        except Died as death:
            self._stop()
            raise DecoderDied(f"the decoding process died: {death}") from None
        except TimeoutError:
            self._stop()
            raise DecodeTimeout(f"not decoded in {deadline_s:g} s") from None
        except BaseException:  # interrupted: a reply still to come would answer the next request
            self._stop()
            raise
        process.drain()
        if len(data) > KEEP_BYTES and "error" in reply:
            os.ftruncate(process.memory, 0)
        if "error" in reply:
            raise _ERRORS.get(reply["error"], DecodeError)(reply["text"])
        return process, reply

    def _running(self) -> ChildProcess:
        process = self._process
        # A process that died between two pictures is nobody's fault; one inherited by fork belongs to the parent.
        if process is not None and (process.owner != os.getpid() or process.popen.poll() is not None):
            self._stop()
        for left in reversed(range(_STARTS)):
            if self._process is not None:
                break
            try:
                self._process = ChildProcess(self.memory_limit_bytes)
            except RuntimeError:  # killed before it was ready, where memory was short
                if not left:
                    raise
        assert self._process is not None
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()
