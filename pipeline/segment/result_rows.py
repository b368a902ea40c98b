"""What was found of regions -> rows of the predictions table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.catalog import schema
from pipeline.catalog.schema import Columns
from pipeline.metrics.areas import class_areas_m2
from pipeline.prediction.stitching import Prediction
from pipeline.reading.regions import Region
from pipeline.tables.masks import encode_mask

Row = dict[str, Any]


def result_row(region: Region, prediction: Prediction | Exception | None) -> Row:
    """The row of one region; its class map and other planes still are arrays."""
    row = {**region.row, "status": region.status, "error": region.error}
    if region.pixels is not None:
        row["height"], row["width"] = region.pixels.core_size
    if region.place is not None:
        row |= {"crs": region.place.crs, "transform": region.place.transform}
    if isinstance(prediction, Prediction):
        row |= {
            "mask": prediction.class_map,
            "confidence": prediction.confidence,
            "probabilities": prediction.probabilities,
            "class_pixels": prediction.class_pixels.tolist(),
            "mean_confidence": _known(prediction.mean_confidence),
            "class_confidence": [_known(c) for c in prediction.class_confidence],
            "low_confidence_share": _known(prediction.low_confidence_share),
        }
        if region.place is not None:
            areas, reason = class_areas_m2(prediction.class_map, region.place, len(prediction.class_pixels))
            row |= {"class_area_m2": areas, "area_error": reason}
    elif prediction is not None:
        row |= {"status": "model_error", "error": _one_line(prediction)}
    return row


def result_table(rows: Sequence[Row], columns: Columns) -> pa.Table:
    """Rows of `result_row`, at least one, as a table of `columns.results`."""
    planes: dict[str, list[Any]] = {name: [row.pop(name, None) for row in rows] for name in schema.PIXEL_COLUMNS}
    mask_format = columns.mask_format
    for i, class_map in enumerate(planes["mask"]):
        if mask_format == "none":
            planes["mask"][i] = None
        elif class_map is not None:
            planes["mask"][i] = encode_mask(class_map, mask_format)
            rows[i].update(mask_dtype=class_map.dtype.name, mask_format=mask_format)
    wanted = columns.results
    small = pa.schema([field for field in wanted if field.name not in planes])
    table = pa.Table.from_pylist(rows, schema=small)
    arrays = [_packed(planes[name]) if name in planes else table[name] for name in wanted.names]
    return pa.Table.from_arrays(arrays, schema=wanted)


def _packed(planes: Sequence[Any]) -> pa.Array:
    """Buffers (None = null) as one large_binary array, copied once: Arrow's own builder copies them several times."""
    views = [np.frombuffer(b"" if plane is None else plane, np.uint8) for plane in planes]
    offsets = np.zeros(len(views) + 1, np.int64)
    np.cumsum([view.size for view in views], out=offsets[1:])
    data = pa.allocate_buffer(int(offsets[-1]))
    np.concatenate(views, out=np.frombuffer(data, np.uint8))
    valid = np.packbits([plane is not None for plane in planes], bitorder="little")
    buffers = [pa.py_buffer(valid), pa.py_buffer(offsets), data]
    return pa.Array.from_buffers(pa.large_binary(), len(views), buffers)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
