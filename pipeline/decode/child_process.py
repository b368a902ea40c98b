"""The running child: started, asked in lines of JSON, ended; nothing here knows what it decodes."""

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
from typing import IO, Any

START_DEADLINE_S = 120.0
SERVE = "pipeline.decode.serve"


class Died(Exception):
    """How the child ended."""


class ChildProcess:
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
        except (TimeoutError, Died) as error:
            self.end()
            raise RuntimeError(f"the decoding process cannot be started: {error}") from None

    def send(self, request: dict[str, Any]) -> None:
        try:
            self._to.write(json.dumps(request).encode() + b"\n")
        except OSError:
            raise Died(self._last_words()) from None

    def receive(self, deadline_s: float) -> dict[str, Any]:
        """The child's next line. Raises TimeoutError, or Died."""
        end_s = time.monotonic() + deadline_s
        line = b""
        while not line.endswith(b"\n"):
            left_s = end_s - time.monotonic()
            if not self._poll.poll(max(0.0, left_s) * 1000):
                raise TimeoutError(f"no answer in {deadline_s:g} s")
            part = os.read(self._from.fileno(), 65536)
            if not part:
                raise Died(self._last_words())
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
