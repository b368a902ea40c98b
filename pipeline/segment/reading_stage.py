"""Reading as a stage of its own, before GPUs: pixels travel as bytes from CPU workers to the predictors.

Bytes, for shapes differ from row to row, and a tensor column would change type with them. Free of torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.reading.regions import ReadOptions, Region, shared_reader
from pipeline.segment.timings import Stopwatch, with_times, without_times

_PIXELS = [
    pa.field("pixels", pa.large_binary()),
    pa.field("height", pa.int32()),
    pa.field("width", pa.int32()),
    pa.field("status", pa.string()),
    pa.field("error", pa.string()),
]


def read_pixels(table: pa.Table, options: ReadOptions) -> pa.Table:
    """The reading stage before GPUs: adds `pixels` (uint8 H x W x 3, row-major), size, status, error and times."""
    reader, watch = shared_reader(options), Stopwatch()
    watch.begin()
    regions = list(reader.read(table.to_pylist()))
    for stage, seconds in reader.take_busy().items():
        watch.count(stage, seconds)
    columns = {
        "pixels": [None if r.pixels is None else r.pixels.tobytes() for r in regions],
        "height": [None if r.pixels is None else r.pixels.shape[0] for r in regions],
        "width": [None if r.pixels is None else r.pixels.shape[1] for r in regions],
        "status": [r.status for r in regions],
        "error": [r.error for r in regions],
    }
    for item in _PIXELS:
        table = table.append_column(item, pa.array(columns[item.name], item.type))
    return with_times(table, watch.end(table.num_rows))


def has_pixels(table: pa.Table) -> bool:
    """Whether `read_pixels` made this table."""
    return "pixels" in table.column_names


def unpack_pixels(table: pa.Table, watch: Stopwatch) -> Iterator[Region]:
    """The regions in a table of `read_pixels`, in order. The time that reading took is added to `watch`."""
    table, blocks = without_times(table)
    for block in blocks:
        watch.count("fetch", block["fetch_s"])
        watch.count("decode", block["decode_s"])
    return (_unpack(row) for row in table.to_pylist())


def _unpack(row: dict[str, Any]) -> Region:
    data, height, width = row.pop("pixels"), row.pop("height"), row.pop("width")
    region = Region(row, row.pop("status"), row.pop("error"))
    if data is not None:
        region.pixels = np.frombuffer(data, np.uint8).reshape(height, width, -1)
    return region
