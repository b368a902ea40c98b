"""COCO's run-length encoding of class maps, byte for byte what pycocotools reads and writes.

A class's mask is read column by column as runs of pixels outside and inside it, in turns, beginning outside. The counts
are written as text: six bits a character, and from the third count on as the difference to the last but one.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np


def encode_coco(class_map: np.ndarray) -> bytes:
    """JSON of one annotation per class that occurs: `{"category_id": k, "segmentation": {"size": .., "counts": ..}}`.

    `size` is [H, W]. Pixels without a prediction (the largest value of the dtype) are in no mask.
    """
    height, width = class_map.shape
    columns = class_map.ravel(order="F")
    values = np.unique(columns)
    annotations = [
        {
            "category_id": int(k),
            "segmentation": {"size": [height, width], "counts": _text(_runs(columns == k))},
        }
        for k in values
        if k != np.iinfo(class_map.dtype).max
    ]
    return json.dumps(annotations, separators=(",", ":")).encode()


def decode_coco(data: bytes, height: int, width: int, dtype: str) -> np.ndarray:
    """The class map H x W. Raises ValueError where the sizes do not agree."""
    columns = np.full(height * width, np.iinfo(dtype).max, dtype=dtype)
    for annotation in json.loads(data):
        segmentation: dict[str, Any] = annotation["segmentation"]
        counts = _counts(segmentation["counts"])
        if segmentation["size"] != [height, width] or sum(counts) != height * width:
            raise ValueError(f"mask of {segmentation['size']} is no {height} x {width}")
        inside = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        columns[inside] = annotation["category_id"]
    return columns.reshape((height, width), order="F")


def _runs(inside: np.ndarray) -> list[int]:
    edges = np.flatnonzero(np.diff(inside, prepend=False)) if inside.size else np.zeros(0, np.int64)
    counts: list[int] = np.diff(edges, prepend=0, append=inside.size).tolist()
    return counts


def _text(counts: list[int]) -> str:
    characters = bytearray()
    for i, count in enumerate(counts):
        x = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits = x & 0x1F
            x >>= 5
            more = x != (-1 if bits & 0x10 else 0)
            characters.append((bits | 0x20 if more else bits) + 48)
    return characters.decode("ascii")


def _counts(text: str) -> list[int]:
    counts: list[int] = []
    x = shift = 0
    for character in text.encode("ascii"):
        bits = character - 48
        x |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                x |= -1 << shift
            counts.append(x + counts[-2] if len(counts) > 2 else x)
            x = shift = 0
    return counts
