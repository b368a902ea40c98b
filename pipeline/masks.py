"""Class maps on their way out: bytes for the predictions table, pictures for people.

A class map is H x W of class ids, uint8 or (above 254 classes) uint16; the label set's ignore value means "no
prediction".
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from pipeline.labels import LabelSet


def encode_mask(class_map: np.ndarray) -> bytes:
    """The row-major bytes of a class map, little-endian; size and dtype travel in columns of their own."""
    return class_map.astype(class_map.dtype.newbyteorder("<"), copy=False).tobytes(order="C")


def decode_mask(data: bytes, height: int, width: int, dtype: str = "uint8") -> np.ndarray:
    """The inverse: H x W of `dtype`, a read-only view of `data`. Raises ValueError where the sizes do not agree."""
    kind = np.dtype(dtype).newbyteorder("<")
    if len(data) != height * width * kind.itemsize:
        raise ValueError(f"mask of {len(data)} bytes is no {height} x {width} of {dtype}")
    return np.frombuffer(data, dtype=kind).reshape(height, width)


def colorize(class_map: np.ndarray, label_set: LabelSet) -> np.ndarray:
    """H x W x 3 uint8: every class in its colour, black where there is no prediction."""
    table = np.zeros((label_set.ignore_value + 1, 3), dtype=np.uint8)
    table[: label_set.num_classes] = label_set.colors
    return table[class_map]


def overlay(picture: np.ndarray, class_map: np.ndarray, label_set: LabelSet, alpha: float = 0.5) -> np.ndarray:
    """H x W x 3 uint8: the picture (H x W x 3 uint8) with its classes' colours laid over it.

    `alpha` is the share of the colour (0 = the picture alone); pixels without a prediction stay as they are.
    """
    mixed = (1 - alpha) * picture.astype(np.float32) + alpha * colorize(class_map, label_set)
    known = class_map[..., None] < label_set.num_classes
    return np.where(known, np.rint(mixed).astype(np.uint8), picture)


def to_png(class_map: np.ndarray, label_set: LabelSet, colored: bool = True) -> bytes:
    """A PNG whose pixel values are the class ids: with the label set's palette, or plain grey.

    Above 254 classes a palette has no room: then `colored` gives RGB, and plain is 16-bit grey.
    """
    if class_map.dtype == np.uint8:
        picture = Image.fromarray(np.ascontiguousarray(class_map))
        if colored:
            palette = np.zeros((256, 3), dtype=np.uint8)
            palette[: label_set.num_classes] = label_set.colors
            picture.putpalette(palette.tobytes())
    elif colored:
        picture = Image.fromarray(colorize(class_map, label_set))
    else:
        picture = Image.fromarray(np.ascontiguousarray(class_map, dtype=np.uint16))
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
