"""Label sets: the names, ids and colours of the classes, and what the raw values of label files mean.

A label file holds raw values, or colours; a class map holds class ids 0..K-1 and one ignore value (255, or 65535 above
254 classes). `remap` leads from raw values to class ids, `ignore` lists the raw values that are void, `void_colors` the
colours that are. Every other value is unknown, which is bad input: it is counted, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from pipeline.errors import InputError, nearest
from pipeline.labels.colors import TRANSPARENT, Color, pack, pack_pixels, parse_color, voc_color
from pipeline.labels.void_colors import VOID_COLORS

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

        both = [color for color in self.void_colors or () if color in self.colors and not self._known_void]
        if both:
            raise InputError(
                f"label set has {list(both[0])} among its `ignore_colors`, and it is a class's colour",
                where=self.name,
                found=f"class {self.names[self.colors.index(both[0])]!r}",
                todo="give each class its `color`, or take the colour out of `ignore_colors`",
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

    @property
    def raw_ids(self) -> dict[int, int]:
        """Raw value -> class id, of label files that hold numbers."""
        return self.remap or {i: i for i in range(self.num_classes)}

    def encode(self, raw: np.ndarray) -> Encoded:
        """Raw label values -> class ids (H x W of `mask_dtype`, `ignore_value` where a pixel is void or unknown).

        `raw` is H x W of integers, or H x W x 3 or 4 of colours. A transparent pixel (alpha 0) is void unless its
        colour is a class's. Raises InputError for colours where two classes share one.
        """
        are_colors = raw.ndim == 3
        values = pack_pixels(raw) if are_colors else raw
        known = self._color_ids() if are_colors else self.raw_ids
        voids = {pack(color) for color in self.void_colors or ()} if are_colors else set(self.ignore)
        present, inverse = _unique(values)
        to_class = np.full(len(present), self.ignore_value, dtype=self.mask_dtype)
        unknown: dict[int, int] = {}
        void: dict[int, int] = {}
        for position, (value, pixels) in enumerate(present.tolist()):
            seen = value & ~TRANSPARENT if are_colors else value
            if seen in known:
                to_class[position] = known[seen]
            elif seen != value or seen in voids or (are_colors and self.ignore_other_colors):
                void[seen] = void.get(seen, 0) + pixels
            else:
                unknown[seen] = pixels
        return Encoded(to_class[inverse].reshape(values.shape), unknown, void, are_colors)

    def like(self, changes: dict[str, Any], where: object = "label set") -> LabelSet:
        """This label set with more raw values known: `remap`, `ignore` and `ignore_colors` add to its own.

        A value that `changes` remaps is no longer void. Raises InputError as `from_json` does.
        """
        if "classes" in changes:
            raise InputError("a label set is `like` another one or has `classes` of its own", where=where)
        given = LabelSet.from_json({"ignore": [], **changes, "classes": self.to_json()["classes"]}, where)
        return replace(
            self,
            name=str(changes.get("name", self.name)),
            remap={**self.raw_ids, **given.remap} if given.remap else self.remap,
            ignore=tuple(v for v in dict.fromkeys((*self.ignore, *given.ignore)) if v not in given.remap),
            void_colors=tuple(dict.fromkeys((*(self.void_colors or ()), *(given.void_colors or ())))),
            ignore_other_colors=self.ignore_other_colors or given.ignore_other_colors,
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
                colors.append(parse_color(entry.get("color") or voc_color(i)))
            remap = {int(raw): int(to) for raw, to in (text.get("remap") or {}).items()}
            ignore = text.get("ignore", [IGNORE])
            ignore = tuple(int(v) for v in (ignore if isinstance(ignore, (list, tuple)) else [ignore]))
            void_colors = text.get("ignore_colors")
            if void_colors is not None:
                void_colors = tuple(map(parse_color, void_colors))
            others = text.get("ignore_other_colors", False)
            if not isinstance(others, bool):
                raise ValueError(f"ignore_other_colors is {others!r}, not true or false")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError("not a label set", where=where, found=f"{type(error).__name__}: {error}") from None
        name = str(text.get("name", "unnamed"))
        return cls(name, tuple(names), tuple(colors), remap, ignore, void_colors, others)

    def _color_ids(self) -> dict[int, int]:
        ids = {pack(color): i for i, color in enumerate(self.colors)}
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
