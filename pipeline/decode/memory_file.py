"""The memory file (memfd) between a decoder's two sides."""

from __future__ import annotations

import os

import numpy as np

from pipeline.decode.header import DecodeError


def write(memory: int, data: memoryview, offset: int = 0) -> None:
    """Write all of `data` into a memory file, from `offset` on."""
    at = 0
    while at < len(data):
        at += os.pwrite(memory, data[at:], offset + at)


def read_into(memory: int, pixels: np.ndarray, offset: int = 0) -> None:
    """Fill an array from a memory file, from `offset` on. Raises DecodeError where that holds less."""
    view = pixels.reshape(-1).view(np.uint8).data
    at = 0
    while at < len(view):
        got = os.preadv(memory, [view[at:]], offset + at)
        if got == 0:
            raise DecodeError("the decoding process answered with fewer pixels than it named")
        at += got
