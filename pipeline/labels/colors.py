"""Colours: of classes, and of the pixels of a colour label file. Packed, a colour is the number 0xRRGGBB."""

from __future__ import annotations

from typing import Any

import numpy as np

Color = tuple[int, int, int]

TRANSPARENT = 1 << 24  # above the 24 bits of a packed colour


def pack(color: Color) -> int:
    red, green, blue = color
    return red << 16 | green << 8 | blue


def unpack(packed: int) -> Color:
    return (packed >> 16, packed >> 8 & 255, packed & 255)


def parse_color(value: Any) -> Color:
    """A colour written as [red, green, blue] or "#rrggbb". Raises ValueError or TypeError for anything else."""
    if isinstance(value, str):
        if len(value) != 7 or value[0] != "#":
            raise ValueError(f"{value!r} is no colour: expected [red, green, blue] or '#rrggbb'")
        return unpack(int(value[1:], 16))
    red, green, blue = map(int, value)
    if not all(0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError(f"{value} is no colour: red, green and blue are 0 to 255")
    return (red, green, blue)


def pack_pixels(pixels: np.ndarray) -> np.ndarray:
    """H x W x 3 or 4 (RGB, RGBA) -> int32, H x W: the packed colours, with `TRANSPARENT` where alpha is 0."""
    red, green, blue = (pixels[..., band].astype(np.int32) for band in range(3))
    packed: np.ndarray = (red << 16) | (green << 8) | blue
    if pixels.shape[2] > 3:
        packed |= np.where(pixels[..., 3] == 0, TRANSPARENT, 0).astype(np.int32)
    return packed


def voc_color(i: int) -> Color:
    """The PASCAL VOC colour of id i: bits of the id spread over the three channels, distinct for 256 ids."""
    color = [0, 0, 0]
    for bit in range(8):
        for band in range(3):
            color[band] |= ((i >> (3 * bit + band)) & 1) << (7 - bit)
    return (color[0], color[1], color[2])
