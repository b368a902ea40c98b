"""What a process of ours asks of the system for itself."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.abc
import os
import signal
import sys

MIB = 2**20
_PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>


def end_with_parent(parent: int) -> None:
    """End this process when its parent ends, however that happens, and leave Ctrl-C to the parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def keep_freed_memory(most_bytes: int = 1024 * MIB) -> None:
    """Let this process keep what it frees, up to `most_bytes`, for what it allocates next.

    glibc gives blocks from 32 MiB on (at first from 128 KiB) back to the system at once and takes fresh pages for the
    next: of pictures of 2048 x 1024 that is a third of the time of a light network on a CPU. Where there is no glibc
    nothing happens.
    """
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, most_bytes)
        if not libc.mallopt(_MMAP_THRESHOLD, most_bytes):  # refused above 32 MiB by older versions
            libc.mallopt(_MMAP_THRESHOLD, 32 * MIB)


def keep_pandas_out() -> None:
    """Keep pyarrow from loading pandas in this process, which takes 0.2 s.

    Otherwise pyarrow loads it before it makes any array. A later `to_pandas()` still loads it.
    """
    import pyarrow as pa

    class Refusal(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "pandas":
                raise ImportError("not needed here")

    refusal = Refusal()
    sys.meta_path.insert(0, refusal)
    try:
        pa.array([None])
    finally:
        sys.meta_path.remove(refusal)
