"""Class maps on their way out: bytes for the predictions table, pictures for people.

A class map is H x W of class ids, uint8 or (above 254 classes) uint16; the label set's ignore value means "no
prediction".
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

from pipeline.labels import LabelSet
from pipeline.tables.rle import decode_coco, encode_coco

_SHOWN_PX = 960  # the longer side of a picture shown to people
_LEGEND_PX, _LEGEND_ROW_PX = 150, 20
MASK_FORMATS = ("raw", "png", "rle")


def encode_mask(class_map: np.ndarray, mask_format: str = "raw") -> bytes | memoryview:
    """A class map as bytes (`raw`: a view of it); size, dtype and format travel in columns of their own.

    `raw` is row-major and little-endian (smallest in a compressed table and fastest by far), `png` a grey picture of
    the class ids, `rle` COCO's run lengths, a mask for each class that occurs.
    """
    if mask_format == "raw":
        return class_map.astype(class_map.dtype.newbyteorder("<"), order="C", copy=False).data.cast("B")
    return encode_coco(class_map) if mask_format == "rle" else _grey_png(class_map)


def decode_mask(
    data: bytes, height: int, width: int, dtype: str = "uint8", mask_format: str | None = "raw"
) -> np.ndarray:
    """The inverse: H x W of `dtype` (of `raw` a read-only view). Raises ValueError where the sizes do not agree.

    A format of None, as tables of older versions read, is `raw`.
    """
    if mask_format == "rle":
        return decode_coco(data, height, width, dtype)
    kind = np.dtype(dtype).newbyteorder("<")
    if mask_format == "png":
        class_map = np.asarray(Image.open(io.BytesIO(data))).astype(dtype, copy=False)
        if class_map.shape != (height, width):
            raise ValueError(f"mask of {class_map.shape} is no {height} x {width}")
        return class_map
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
    if not colored:
        return _grey_png(class_map)
    if class_map.dtype == np.uint8:
        picture = Image.fromarray(np.ascontiguousarray(class_map))
        palette = np.zeros((256, 3), dtype=np.uint8)
        palette[: label_set.num_classes] = label_set.colors
        picture.putpalette(palette.tobytes())
    else:
        picture = Image.fromarray(colorize(class_map, label_set))
    return _png(picture)


def beside(picture: np.ndarray, class_map: np.ndarray, label_set: LabelSet) -> bytes:
    """A PNG for people: the picture (H x W x 3 uint8), its classes in their colours, and which share each has.

    Large pictures are shown smaller.
    """
    height, width = class_map.shape
    zoom = min(1.0, _SHOWN_PX / max(height, width))
    size = max(1, round(width * zoom)), max(1, round(height * zoom))
    left = Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BILINEAR)
    right = Image.fromarray(colorize(class_map, label_set)).resize(size, Image.Resampling.NEAREST)
    pixels = np.bincount(class_map.ravel(), minlength=label_set.num_classes)
    entries = [
        (f"{label_set.names[k]} {100 * pixels[k] / class_map.size:.1f} %", label_set.colors[k])
        for k in np.argsort(-pixels[: label_set.num_classes], kind="stable")
        if pixels[k]
    ]
    unpredicted = class_map.size - int(pixels[: label_set.num_classes].sum())
    if unpredicted:
        entries.append((f"no prediction {100 * unpredicted / class_map.size:.1f} %", (0, 0, 0)))
    rows = max(1, size[1] // _LEGEND_ROW_PX)
    columns = -(-len(entries) // rows)
    shown = Image.new("RGB", (2 * size[0] + columns * _LEGEND_PX, max(size[1], _LEGEND_ROW_PX)), "white")
    shown.paste(left, (0, 0))
    shown.paste(right, (size[0], 0))
    draw = ImageDraw.Draw(shown)
    for i, (text, color) in enumerate(entries):
        x, y = 2 * size[0] + i // rows * _LEGEND_PX + 6, i % rows * _LEGEND_ROW_PX
        draw.rectangle((x, y + 4, x + 12, y + 16), fill=color, outline="black")
        draw.text((x + 18, y + 4), text, fill="black")
    return _png(shown)


def _grey_png(class_map: np.ndarray) -> bytes:
    kind = np.uint8 if class_map.dtype == np.uint8 else np.uint16
    return _png(Image.fromarray(np.ascontiguousarray(class_map, dtype=kind)))


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()
