"""A decoder in a process of its own: what crashes, hangs or exhausts it costs one picture.

Requests and replies are single short lines of JSON on two pipes; bytes and pixels go through one memory file (memfd)
that both sides read and write at offset 0, so no pipe ever holds more than a line and neither side can block the other.
The child (`serve`) limits its own address space, is killed at the deadline, dies with its parent, and is started again
when it is next needed. It imports neither torch nor Ray and starts in a fifth of a second.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from pipeline.decode.header import DecodeError, DecoderDied, DecodeTimeout, Header, TooLarge
from pipeline.decode.memory_file import read_into, write
from pipeline.decode.picture import MAX_PIXELS

GIB = 1 << 30
START_DEADLINE_S = 120.0
SERVE = "pipeline.decode.serve"
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
        self._process: _Process | None = None

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

    def close(self) -> None:
        """End the process; a later call starts another."""
        with self._lock:
            self._stop()

    def __enter__(self) -> DecodeChild:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(
        self, data: bytes, kind: str, max_pixels: int | None, deadline_s: float
    ) -> tuple[_Process, dict[str, Any]]:
        process = self._running()
        try:
            write(process.memory, memoryview(data))
            request = {"kind": kind, "size_bytes": len(data), "max_pixels": max_pixels}
            process.send(request)
            reply = process.receive(deadline_s)
        except _Died as death:
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

    def _running(self) -> _Process:
        process = self._process
        # A process that died between two pictures is nobody's fault; one inherited by fork belongs to the parent.
        if process is not None and (process.owner != os.getpid() or process.popen.poll() is not None):
            self._stop()
        for left in reversed(range(_STARTS)):
            if self._process is not None:
                break
            try:
                self._process = _Process(self.memory_limit_bytes)
            except RuntimeError:  # killed before it was ready, where memory was short
                if not left:
                    raise
        assert self._process is not None
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()


class _Died(Exception):
    """How the child ended."""


class _Process:
    """The running child and the three descriptors that lead to it."""

    def __init__(self, memory_limit_bytes: int) -> None:
        self.owner = os.getpid()
        self.memory = os.memfd_create("decode")
        # stderr never blocks the child: what does not fit into the pipe is lost
        self._stderr, stderr = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        command = [sys.executable, "-m", SERVE, str(os.getpid()), str(self.memory), str(memory_limit_bytes)]
        try:
            self.popen = _spawn(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                pass_fds=(self.memory,),
                bufsize=0,
                env=os.environ
                | {
                    "PYTHONPATH": os.pathsep.join(str(Path(p).resolve()) for p in sys.path),
                    "OPENBLAS_NUM_THREADS": "1",  # its threads would take address space from the limit
                },
            )
        except BaseException:
            os.close(self._stderr)
            os.close(self.memory)
            raise
        finally:
            os.close(stderr)
        self._to: IO[bytes] = self.popen.stdin  # type: ignore[assignment]
        self._from: IO[bytes] = self.popen.stdout  # type: ignore[assignment]
        self._poll = select.poll()
        self._poll.register(self._from, select.POLLIN)
        self.end = weakref.finalize(self, _end, self.popen, self.memory, self._stderr, self.owner)
        try:
            self.receive(START_DEADLINE_S)
        except (TimeoutError, _Died) as error:
            self.end()
            raise RuntimeError(f"the decoding process cannot be started: {error}") from None

    def send(self, request: dict[str, Any]) -> None:
        try:
            self._to.write(json.dumps(request).encode() + b"\n")
        except OSError:
            raise _Died(self._last_words()) from None

    def receive(self, deadline_s: float) -> dict[str, Any]:
        """The child's next line. Raises TimeoutError, or _Died."""
        end_s = time.monotonic() + deadline_s
        line = b""
        while not line.endswith(b"\n"):
            left_s = end_s - time.monotonic()
            if not self._poll.poll(max(0.0, left_s) * 1000):
                raise TimeoutError(f"no answer in {deadline_s:g} s")
            part = os.read(self._from.fileno(), 65536)
            if not part:
                raise _Died(self._last_words())
            line += part
        reply: dict[str, Any] = json.loads(line)
        return reply

    def drain(self) -> bytes:
        """What the child has written to stderr (decoders warn there) since the last call."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self._stderr, 1 << 20)
        return b""

    def _last_words(self) -> str:
        try:
            code = self.popen.wait(5)
        except subprocess.TimeoutExpired:
            return "it closed its pipe"
        words = self.drain().decode(errors="replace").split("\n")
        said = "; ".join(line.strip() for line in words[-5:] if line.strip())
        if code >= 0:
            how = f"exit code {code}"
        else:
            how = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"{how}: {said}" if said else how


def _end(popen: subprocess.Popen[bytes], memory: int, stderr: int, owner: int) -> None:
    """Kill the child and close what leads to it (in a forked copy of the owner: only close)."""
    if owner == os.getpid():
        popen.kill()
        popen.wait()
    for stream in (popen.stdin, popen.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
    os.close(memory)
    os.close(stderr)


_orders: queue.SimpleQueue[tuple[tuple[Any, ...], dict[str, Any], queue.SimpleQueue[Any]]] = queue.SimpleQueue()
_spawner: tuple[int, threading.Thread] | None = None
_spawner_lock = threading.Lock()


def _spawn(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
    """subprocess.Popen in a thread that lives as long as this process.

    The kernel's "die with your parent" means the parent's *thread*; a child started by a short-lived worker thread
    would be killed when that thread ends.
    """
    global _spawner
    with _spawner_lock:
        if _spawner is None or _spawner[0] != os.getpid():
            thread = threading.Thread(target=_spawn_orders, name="decode-spawner", daemon=True)
            _spawner = (os.getpid(), thread)
            thread.start()
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
    _orders.put((args, kwargs, answer))
    result = answer.get()
    if isinstance(result, BaseException):
        raise result
    popen: subprocess.Popen[bytes] = result
    return popen


def _spawn_orders() -> None:
    while True:
        args, kwargs, answer = _orders.get()
        try:
            answer.put(subprocess.Popen(*args, **kwargs))
        except BaseException as error:
            answer.put(error)
