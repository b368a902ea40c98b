"""Class maps as PNGs, and as COCO's JSON of run lengths."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.errors import InputError
from pipeline.export.scene import Scene
from pipeline.labels import LabelSet
from pipeline.tables.masks import to_png
from pipeline.tables.rle import encode_coco


def write_png(scene: Scene, output: str, grey: bool, max_pixels: int) -> list[str]:
    """`OUTPUT/<name>.png`, values being class ids, with the classes' palette unless `grey`; its URI."""
    uri = storage.join(output, f"{scene.name}.png")
    storage.write_bytes(uri, to_png(_whole(scene, max_pixels), scene.label_set, colored=not grey))
    return [uri]


def coco_of(scene: Scene, max_pixels: int) -> dict[str, Any]:
    """The image and its annotations, one a class that occurs, ids still to be given."""
    class_map = _whole(scene, max_pixels)
    annotations: list[dict[str, Any]] = json.loads(encode_coco(class_map))
    for annotation in annotations:
        here = class_map == annotation["category_id"]
        rows, columns = np.flatnonzero(here.any(axis=1)), np.flatnonzero(here.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        annotation["bbox"] = [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
        annotation["area"] = int(here.sum())
        annotation["iscrowd"] = 1  # as COCO marks what is given as run lengths
    image = {"file_name": scene.path, "width": scene.width, "height": scene.height}
    return {"image": image, "annotations": annotations}


def merge_coco(parts: list[dict[str, Any]], label_set: LabelSet) -> bytes:
    """The one JSON of all scenes, ids counted from 1 in the order of the paths."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, part in enumerate(parts, 1):
        images.append({"id": number, **part["image"]})
        for annotation in part["annotations"]:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
    categories = [{"id": k, "name": name, "supercategory": ""} for k, name in enumerate(label_set.names)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()


def _whole(scene: Scene, max_pixels: int) -> np.ndarray:
    if scene.width * scene.height > max_pixels:
        raise InputError(
            "scene too large for one picture",
            where=scene.path,
            found=f"{scene.width}x{scene.height}",
            expected=f"at most {max_pixels} pixels",
            todo="--format cog, or a larger --max-pixels",
        )
    return scene.whole()
