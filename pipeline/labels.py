"""Label sets: the names, ids and colours of the classes, and what the raw values of label files mean.

A label file holds raw values; a class map holds class ids 0..K-1 and one ignore value (255, or 65535 above 254
classes). `remap` leads from raw values to class ids, `ignore` lists the raw values that are void; every other value
is unknown, which is bad input: it is counted, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml

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
                red, green, blue = entry.get("color") or _wheel(i)
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


def load_label_set(name_or_uri: str) -> LabelSet:
    """A built-in label set by name, or one from a YAML file (any URI that ends in .yaml, .yml or .json).

    Raises InputError for a name that is none (the nearest is suggested) and for a file that is no label set.
    """
    if not name_or_uri.lower().endswith((".yaml", ".yml", ".json")):
        if name_or_uri in LABEL_SETS:
            return LABEL_SETS[name_or_uri]
        raise InputError(
            f"no label set {name_or_uri!r}",
            expected=f"one of {', '.join(sorted(LABEL_SETS))}, or a YAML file",
            todo=nearest(name_or_uri, LABEL_SETS) or None,
        )
    import fsspec

    try:
        with fsspec.open(name_or_uri, "rb") as file:
            text = yaml.safe_load(file.read())
    except FileNotFoundError:
        raise InputError("label set file does not exist", where=name_or_uri) from None
    except yaml.YAMLError as error:
        raise InputError("label set file is not YAML", where=name_or_uri, found=str(error)) from None
    return LabelSet.from_json(text, where=name_or_uri)


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


def _wheel(i: int) -> Color:
    """The PASCAL VOC colour of id i: bits of the id spread over the three channels, distinct for 256 ids."""
    color = [0, 0, 0]
    for bit in range(8):
        for band in range(3):
            color[band] |= ((i >> (3 * bit + band)) & 1) << (7 - bit)
    return (color[0], color[1], color[2])


def _named(name: str, table: str, **kwargs: Any) -> LabelSet:
    """One `name r g b` a line."""
    rows = [line.rsplit(maxsplit=3) for line in table.strip().splitlines()]
    return LabelSet(
        name,
        tuple(row[0].strip() for row in rows),
        tuple((int(row[1]), int(row[2]), int(row[3])) for row in rows),
        **kwargs,
    )


CAMVID = _named(
    "camvid",  # SegNet's 11 classes; raw value 11 is void
    """
    Sky          128 128 128
    Building     128   0   0
    Pole         192 192 128
    Road         128  64 128
    Pavement      60  40 222
    Tree         128 128   0
    SignSymbol   192 128 128
    Fence         64  64 128
    Car           64   0 128
    Pedestrian    64  64   0
    Bicyclist      0 128 192
    """,
    ignore=(11, 255),
)

VOC = LabelSet(
    "voc",  # Pascal VOC 2012; 255 is the drawn border
    tuple(
        "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person"
        " pottedplant sheep sofa train tvmonitor".split()
    ),
    tuple(_wheel(i) for i in range(21)),
)

CITYSCAPES = _named(
    "cityscapes",  # the 19 evaluated classes, from the labelIds files
    """
    road          128  64 128
    sidewalk      244  35 232
    building       70  70  70
    wall          102 102 156
    fence         190 153 153
    pole          153 153 153
    traffic light 250 170  30
    traffic sign  220 220   0
    vegetation    107 142  35
    terrain       152 251 152
    sky            70 130 180
    person        220  20  60
    rider         255   0   0
    car             0   0 142
    truck           0   0  70
    bus             0  60 100
    train           0  80 100
    motorcycle      0   0 230
    bicycle       119  11  32
    """,
    remap=dict(zip((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), range(19), strict=True)),
    ignore=(*range(7), 9, 10, 14, 15, 16, 18, 29, 30, 255),
)

ROADS = _named("roads", "background 0 0 0\nroad 255 255 255", ignore=(255,))

SCENES = _named(
    "scenes",  # the drawn streets of scenes.py
    """
    sky          120 170 220
    building     150  90  70
    road          90  80 100
    pavement     200 180 170
    tree          80 150  70
    car          200  50  60
    person       250 170  40
    sign         240 230  80
    """,
)

LABEL_SETS: dict[str, LabelSet] = {s.name: s for s in (CAMVID, VOC, CITYSCAPES, ROADS, SCENES)}
