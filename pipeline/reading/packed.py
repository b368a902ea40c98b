"""What was read of a region as one value of an Arrow column, on its way between processes of a cluster.

Bytes, for shapes and types differ from row to row, and a tensor column would change type with them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.reading.pixels import Pixels, Place

PIXELS = pa.struct(
    [
        ("values", pa.large_binary()),  # H x W x B, row-major
        ("dtype", pa.string()),
        ("shape", pa.list_(pa.int32())),
        ("valid", pa.large_binary()),  # a bit for each of H x W; null where all are valid
        ("core", pa.list_(pa.int32())),  # first and last row, first and last column; null where all is core
    ]
)
PLACE = pa.struct([("crs", pa.string()), ("transform", pa.list_(pa.float64())), ("georeference", pa.string())])


def pack_pixels(pixels: Pixels | None) -> dict[str, Any] | None:
    """A value of type `PIXELS`."""
    if pixels is None:
        return None
    return {
        "values": pixels.values.tobytes(),
        "dtype": pixels.values.dtype.str,
        "shape": pixels.shape,
        "valid": None if pixels.valid is None else np.packbits(pixels.valid).tobytes(),
        "core": None if pixels.core is None else [edge for part in pixels.core for edge in (part.start, part.stop)],
    }


def unpack_pixels(packed: dict[str, Any] | None) -> Pixels | None:
    """The inverse of `pack_pixels`; the values are read-only views of the packed bytes."""
    if packed is None:
        return None
    shape = tuple(packed["shape"])
    values = np.frombuffer(packed["values"], packed["dtype"]).reshape(shape)
    valid, core = None, None
    if packed["valid"] is not None:
        bits = np.unpackbits(np.frombuffer(packed["valid"], np.uint8), count=shape[0] * shape[1])
        valid = bits.reshape(shape[:2]).view(bool)
    if packed["core"] is not None:
        top, bottom, left, right = packed["core"]
        core = slice(top, bottom), slice(left, right)
    return Pixels(values, valid, core)


def unpack_place(packed: dict[str, Any] | None) -> Place | None:
    """The place in a value of type `PLACE`, whose keys are `Place`'s fields."""
    if packed is None:
        return None
    transform = None if packed["transform"] is None else tuple(packed["transform"])
    return Place(packed["crs"], transform, packed["georeference"])
