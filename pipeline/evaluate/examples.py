"""One picture of the report: beside its truth, its prediction and what is wrong, as HTML that stands alone."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from pipeline.evaluate.charts import breakable, number
from pipeline.labels import LabelSet

THUMBNAIL_PX = 440  # width of an example: twice what the page shows, for sharp screens


@dataclass(frozen=True)
class Example:
    """One picture beside its truth and its prediction: `picture` uint8 H x W x 3 (None: could not be read again),
    `truth` and `prediction` class maps H x W."""

    path: str
    miou: float | None
    pixel_accuracy: float | None
    truth: np.ndarray
    prediction: np.ndarray
    picture: np.ndarray | None = None
    note: str = ""


def render_example(example: Example, label_set: LabelSet) -> str:
    height, width = example.truth.shape
    scale = min(1.0, THUMBNAIL_PX / width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    ratio = f"aspect-ratio:{size[0]}/{size[1]}"
    picture = None
    if example.picture is not None:
        picture = Image.fromarray(np.ascontiguousarray(example.picture)).resize(size, Image.Resampling.BOX)
    columns = (np.arange(size[0]) * width) // size[0]
    rows = (np.arange(size[1]) * height) // size[1]
    truth = example.truth[np.ix_(rows, columns)]
    prediction = example.prediction[np.ix_(rows, columns)]
    panels = [
        (_jpeg(picture), "picture") if picture else (None, "picture not to be had"),
        (_mask_png(truth, label_set), "truth"),
        (_mask_png(prediction, label_set), "prediction"),
        (_jpeg(_wrong(picture, truth, prediction, label_set)), "wrong pixels"),
    ]
    images = "".join(
        f'<img src="{source}" alt="{alt}" style="{ratio}">' if source else f'<span class="none">{alt}</span>'
        for source, alt in panels
    )
    note = f'<span class="muted">{escape(example.note)}</span>' if example.note else ""
    return (
        f'<figure><figcaption><b>{number(example.miou)}</b> mIoU <span class="path">{breakable(example.path)}</span>'
        f'{note}</figcaption><div class="strip">{images}</div></figure>'
    )


def _wrong(picture: Image.Image | None, truth: np.ndarray, prediction: np.ndarray, label_set: LabelSet) -> Image.Image:
    """The picture in pale grey, wrong pixels in red over it, void ones left pale."""
    if picture is None:
        grey = np.full(truth.shape, 200.0)
    else:
        grey = np.asarray(picture.convert("L"), dtype=np.float32) * 0.5 + 110
    shown = np.repeat(grey[..., None], 3, axis=2)
    wrong = (truth != prediction) & (truth != label_set.ignore_value)
    shown[wrong] = shown[wrong] * 0.25 + np.array([214.0, 48.0, 49.0]) * 0.75
    return Image.fromarray(shown.clip(0, 255).astype(np.uint8))


def _mask_png(class_map: np.ndarray, label_set: LabelSet) -> str:
    """Colours of the classes; void and unpredicted pixels are transparent (the page hatches what lies under them)."""
    colors = np.zeros((label_set.num_classes + 1, 4), dtype=np.uint8)
    colors[:-1, :3] = label_set.colors
    colors[:-1, 3] = 255
    image = Image.fromarray(colors[np.minimum(class_map, label_set.num_classes)])
    return _base64(image, "png", optimize=True)


def _jpeg(picture: Image.Image) -> str:
    return _base64(picture.convert("RGB"), "jpeg", quality=82)


def _base64(image: Image.Image, kind: str, **options: Any) -> str:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
