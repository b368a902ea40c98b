"""The label sets of known data sets, and loading one by name or from a YAML file."""

from __future__ import annotations

from typing import Any

import yaml

from pipeline import storage
from pipeline.errors import InputError, nearest
from pipeline.labels.colors import voc_color
from pipeline.labels.label_set import LabelSet


def load_label_set(name_or_uri: str) -> LabelSet:
    """A built-in label set by name, or one from a YAML file (any URI that ends in .yaml, .yml or .json).

    A file with `like: camvid` in place of `classes` is that built-in set; its `remap`, `ignore` and `ignore_colors`
    are added to the set's own. Raises InputError for a name that is none (the nearest is suggested) and for a file
    that is no label set.
    """
    if not name_or_uri.lower().endswith((".yaml", ".yml", ".json")):
        return _built_in(name_or_uri, expected=", or a YAML file")
    try:
        with storage.reachable(name_or_uri):
            text = yaml.safe_load(storage.read_bytes(name_or_uri))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise InputError("label set file does not exist", where=name_or_uri) from None
    except yaml.YAMLError as error:
        raise InputError("label set file is not YAML", where=name_or_uri, found=str(error)) from None
    if isinstance(text, dict) and "like" in text:
        base = _built_in(str(text.pop("like")), where=name_or_uri)
        return base.like(text, where=name_or_uri)
    return LabelSet.from_json(text, where=name_or_uri)


def _built_in(name: str, *, expected: str = "", where: object = None) -> LabelSet:
    if name in LABEL_SETS:
        return LABEL_SETS[name]
    raise InputError(
        f"no label set {name!r}",
        where=where,
        expected=f"one of {', '.join(sorted(LABEL_SETS))}{expected}",
        todo=nearest(name, LABEL_SETS) or None,
    )


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
    tuple(voc_color(i) for i in range(21)),
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
