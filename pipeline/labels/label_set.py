"""Label sets: the names, ids and colours of the classes, and what the raw values of label files mean.

A label file holds raw values; a class map holds class ids 0..K-1 and one ignore value (255, or 65535 above 254
classes). `remap` leads from raw values to class ids, `ignore` lists the raw values that are void; every other value
is unknown, which is bad input: it is counted, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.errors import InputError, nearest

IGNORE = 255
IGNORE_WIDE = 65535

Color = tuple[int, int, int]


@dataclass(frozen=True)
class LabelSet:
    """The K classes of a data set, in class-id order.

    `remap` is empty where raw values are the class ids themselves.
    """

    name: str
    names: tuple[str, ...]
    colors: tuple[Color, ...]
    remap: dict[int, int] = field(default_factory=dict)
    ignore: tuple[int, ...] = (IGNORE,)

    def __post_init__(self) -> None:
        if not self.names:
            raise InputError("label set has no classes", where=self.name)
        if len(set(self.names)) != len(self.names):
            raise InputError("label set names a class twice", where=self.name, found=list(self.names))
        if len(self.colors) != len(self.names):
            raise InputError(
                "label set needs one colour per class",
                where=self.name,
                found=f"{len(self.colors)} colours",
                expected=f"{len(self.names)}",
            )
        wrong = {raw: to for raw, to in self.remap.items() if not 0 <= to < len(self.names)}
        if wrong:
            raise InputError(
                "label set remaps to a class that does not exist",
                where=self.name,
                found=wrong,
                expected=f"class ids 0..{len(self.names) - 1}",
            )

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def mask_dtype(self) -> str:
        """dtype of class maps and stored masks: uint8 up to 254 classes, uint16 above."""
        return "uint8" if self.num_classes <= 254 else "uint16"

    @property
    def ignore_value(self) -> int:
        """The value of a class map that means "no truth" or, in a mask, "no prediction"."""
        return IGNORE if self.mask_dtype == "uint8" else IGNORE_WIDE

    def encode(self, raw: np.ndarray) -> tuple[np.ndarray, dict[int, int]]:
        """Raw label values -> class ids.

        `raw` is H x W of integers, or H x W x 3 of colours of this label set (a colour of no class reads as the
        value 0xRRGGBB and is unknown). Returns the class map (H x W of `mask_dtype`, `ignore_value` where a pixel is
        void or unknown) and the unknown values with their pixel counts.
        """
        values = _pack_colors(raw) if raw.ndim == 3 else raw
        known = self._color_ids() if raw.ndim == 3 else self._raw_ids()
        present, inverse = _unique(values)
        to_class = np.full(len(present), self.ignore_value, dtype=self.mask_dtype)
        unknown: dict[int, int] = {}
        for position, (value, pixels) in enumerate(zip(*present.T, strict=True) if len(present) else ()):
            if int(value) in known:
                to_class[position] = known[int(value)]
            elif raw.ndim == 3 or int(value) not in self.ignore:
                unknown[int(value)] = int(pixels)
        return to_class[inverse].reshape(values.shape), unknown

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "classes": [
                {"id": i, "name": name, "color": list(color)}
                for i, (name, color) in enumerate(zip(self.names, self.colors, strict=True))
            ],
            "remap": {str(raw): to for raw, to in self.remap.items()},
            "ignore": list(self.ignore),
        }

    @classmethod
    def from_json(cls, text: dict[str, Any], where: object = "label set") -> LabelSet:
        """The inverse of `to_json`; a YAML file has the same shape (`color`, `remap` and `ignore` may be missing).

        Raises InputError where something is missing or of the wrong kind.
        """
        if not isinstance(text, dict) or not isinstance(text.get("classes"), list):
            raise InputError("not a label set", where=where, expected="a mapping with `name` and a list `classes`")
        unknown = set(text) - {"name", "classes", "remap", "ignore"}
        if unknown:
            key = sorted(map(str, unknown))[0]
            raise InputError(
                f"label set has no key {key!r}",
                where=where,
                todo=nearest(key, ["name", "classes", "remap", "ignore"]),
            )
        try:
            names, colors = [], []
            for i, entry in enumerate(text["classes"]):
                entry = {"name": entry} if isinstance(entry, str) else entry
                if entry.get("id", i) != i:
                    raise InputError(
                        "class ids must be 0..K-1 in order",
                        where=where,
                        found=f"{entry['name']} with id {entry['id']} at place {i}",
                        todo="keep the file's own values under `remap`",
                    )
                names.append(str(entry["name"]))
                red, green, blue = entry.get("color") or voc_color(i)
                colors.append((int(red), int(green), int(blue)))
            remap = {int(raw): int(to) for raw, to in (text.get("remap") or {}).items()}
            ignore = text.get("ignore", [IGNORE])
            ignore = tuple(int(v) for v in (ignore if isinstance(ignore, (list, tuple)) else [ignore]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError("not a label set", where=where, found=f"{type(error).__name__}: {error}") from None
        return cls(str(text.get("name", "unnamed")), tuple(names), tuple(colors), remap, ignore)

    def _raw_ids(self) -> dict[int, int]:
        if self.remap:
            return self.remap
        return {i: i for i in range(self.num_classes)}

    def _color_ids(self) -> dict[int, int]:
        return {(r << 16) | (g << 8) | b: i for i, (r, g, b) in enumerate(self.colors)}


def _unique(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n x 2: value, pixels) and the index of each pixel's value among them; a lookup table for small values."""
    if values.dtype.kind in "ub" and values.dtype.itemsize <= 2:
        pixels = np.bincount(values.ravel(), minlength=1)
        present = np.flatnonzero(pixels)
        place = np.zeros(len(pixels), dtype=np.int64)
        place[present] = np.arange(len(present))
        return np.stack([present, pixels[present]], axis=1), place[values.ravel()]
    present, inverse, pixels = np.unique(values, return_inverse=True, return_counts=True)
    return np.stack([present, pixels], axis=1), inverse.ravel()


def _pack_colors(raw: np.ndarray) -> np.ndarray:
    red, green, blue = (raw[..., band].astype(np.int32) for band in range(3))
    return (red << 16) | (green << 8) | blue


def voc_color(i: int) -> Color:
    """The PASCAL VOC colour of id i: bits of the id spread over the three channels, distinct for 256 ids."""
    color = [0, 0, 0]
    for bit in range(8):
        for band in range(3):
            color[band] |= ((i >> (3 * bit + band)) & 1) << (7 - bit)
    return (color[0], color[1], color[2])
