"""Label sets: the names, ids and colours of the classes, and what the raw values of label files mean.

A label file holds raw values, or colours; a class map holds class ids 0..K-1 and one ignore value (255, or 65535 above
254 classes). `remap` leads from raw values to class ids, `ignore` lists the raw values that are void, `void_colors` the
colours that are. Every other value is unknown, which is bad input: it is counted, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import InputError, nearest
from pipeline.labels.void_colors import VOID_COLORS, Color

IGNORE = 255
IGNORE_WIDE = 65535
_KEYS = ("name", "classes", "remap", "ignore", "ignore_colors", "ignore_other_colors")


class Encoded(NamedTuple):
    """A label file by its label set: the class map (H x W), and the pixels of every raw value that is void or unknown.

    Where `are_colors`, a raw value is a colour as 0xRRGGBB.
    """

    class_map: np.ndarray
    unknown: dict[int, int]
    void: dict[int, int]
    are_colors: bool


@dataclass(frozen=True)
class LabelSet:
    """The K classes of a data set, in class-id order.

    `remap` is empty where raw values are the class ids themselves. `void_colors` are those of the data set of this name
    where they are not given; with `ignore_other_colors` every colour of no class is void.
    """

    name: str
    names: tuple[str, ...]
    colors: tuple[Color, ...]
    remap: dict[int, int] = field(default_factory=dict)
    ignore: tuple[int, ...] = (IGNORE,)
    void_colors: tuple[Color, ...] | None = None
    ignore_other_colors: bool = False

    def __post_init__(self) -> None:
        if self.void_colors is None:
            object.__setattr__(self, "void_colors", VOID_COLORS.get(self.name, ()))
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

    def encode(self, raw: np.ndarray) -> Encoded:
        """Raw label values -> class ids (H x W of `mask_dtype`, `ignore_value` where a pixel is void or unknown).

        `raw` is H x W of integers, or H x W x 3 of colours. Raises InputError for colours where two classes share one.
        """
        are_colors = raw.ndim == 3
        values = _pack_colors(raw) if are_colors else raw
        known = self._color_ids() if are_colors else self._raw_ids()
        voids = {_packed(color) for color in self.void_colors or ()} if are_colors else set(self.ignore)
        present, inverse = _unique(values)
        to_class = np.full(len(present), self.ignore_value, dtype=self.mask_dtype)
        unknown: dict[int, int] = {}
        void: dict[int, int] = {}
        for position, (value, pixels) in enumerate(zip(*present.T, strict=True) if len(present) else ()):
            if int(value) in known:
                to_class[position] = known[int(value)]
            elif int(value) in voids or (are_colors and self.ignore_other_colors):
                void[int(value)] = int(pixels)
            else:
                unknown[int(value)] = int(pixels)
        return Encoded(to_class[inverse].reshape(values.shape), unknown, void, are_colors)

    def unknown_value(self, value: int, pixels: int, are_colors: bool, where: object) -> InputError:
        """The error for a value of a label file that is neither a class nor void."""
        if are_colors:
            color = [value >> 16, (value >> 8) & 255, value & 255]
            return InputError(
                "label colour outside the label set",
                where=where,
                found=f"colour {color} in {pixels} pixels",
                expected=f"the colours of label set {self.name!r}",
                todo=f"give the right --label-set, or a YAML file of it in which {color} stands under `ignore_colors`"
                " (or with `ignore_other_colors: true`)",
            )
        return InputError(
            "label value outside the label set",
            where=where,
            found=f"value {value} in {pixels} pixels",
            expected=f"{self._expected()} ({self.name})",
            todo="give the right --label-set, or add the value to its `remap` or `ignore`",
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "classes": [
                {"id": i, "name": name, "color": list(color)}
                for i, (name, color) in enumerate(zip(self.names, self.colors, strict=True))
            ],
            "remap": {str(raw): to for raw, to in self.remap.items()},
            "ignore": list(self.ignore),
            # what the name says already is left out, as version 0.1 did: this text is part of fingerprints
            **({} if self._known_void else {"ignore_colors": [list(color) for color in self.void_colors or ()]}),
            **({"ignore_other_colors": True} if self.ignore_other_colors else {}),
        }

    @classmethod
    def from_json(cls, text: dict[str, Any], where: object = "label set") -> LabelSet:
        """The inverse of `to_json`; a YAML file has the same shape (all but `name` and `classes` may be missing).

        Raises InputError where something is missing or of the wrong kind.
        """
        if not isinstance(text, dict) or not isinstance(text.get("classes"), list):
            raise InputError("not a label set", where=where, expected="a mapping with `name` and a list `classes`")
        unknown = set(text) - set(_KEYS)
        if unknown:
            key = sorted(map(str, unknown))[0]
            raise InputError(
                f"label set has no key {key!r}",
                where=where,
                todo=nearest(key, _KEYS),
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
            void_colors = text.get("ignore_colors")
            if void_colors is not None:
                void_colors = tuple((int(red), int(green), int(blue)) for red, green, blue in void_colors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError("not a label set", where=where, found=f"{type(error).__name__}: {error}") from None
        name, others = str(text.get("name", "unnamed")), bool(text.get("ignore_other_colors", False))
        return cls(name, tuple(names), tuple(colors), remap, ignore, void_colors, others)

    def _raw_ids(self) -> dict[int, int]:
        if self.remap:
            return self.remap
        return {i: i for i in range(self.num_classes)}

    def _color_ids(self) -> dict[int, int]:
        ids = {_packed(color): i for i, color in enumerate(self.colors)}
        if len(ids) < len(self.colors):
            first, second = next(
                (self.names[i], self.names[j])
                for j in range(len(self.colors))
                for i in range(j)
                if self.colors[i] == self.colors[j]
            )
            raise InputError(
                "label files hold colours, and two classes share one",
                where=self.name,
                found=f"{first!r} and {second!r} of one colour",
                expected="a colour of its own for every class",
            )
        return ids

    @property
    def _known_void(self) -> bool:
        return self.void_colors == VOID_COLORS.get(self.name, ())

    def _expected(self) -> str:
        """The raw values that are known, as `0..10, 255`."""
        known = sorted({*(self.remap or range(self.num_classes)), *self.ignore})
        runs: list[list[int]] = []
        for value in known:
            if runs and value == runs[-1][1] + 1:
                runs[-1][1] = value
            else:
                runs.append([value, value])
        return ", ".join(str(low) if low == high else f"{low}..{high}" for low, high in runs)


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


def _packed(color: Color) -> int:
    """A colour as 0xRRGGBB."""
    return (color[0] << 16) | (color[1] << 8) | color[2]


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
