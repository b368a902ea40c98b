"""Reading as a stage of its own, before GPUs: pixels travel from CPU workers to the predictors. Free of torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.reading.packed import PIXELS, PLACE, pack_pixels, unpack_place
from pipeline.reading.packed import unpack_pixels as unpack
from pipeline.reading.regions import ReadOptions, Region, shared_reader
from pipeline.segment.timings import Stopwatch, with_times, without_times

_ADDED = {"pixels": PIXELS, "place": PLACE, "status": pa.string(), "error": pa.string()}


def read_pixels(table: pa.Table, options: ReadOptions) -> pa.Table:
    """The reading stage before GPUs: adds what was read, or why not, and the times it took."""
    reader, watch = shared_reader(options), Stopwatch()
    watch.begin()
    regions = list(reader.read(table.to_pylist()))
    for stage, seconds in reader.take_busy().items():
        watch.count(stage, seconds)
    columns: dict[str, list[Any]] = {
        "pixels": [pack_pixels(region.pixels) for region in regions],
        "place": [None if region.place is None else vars(region.place) for region in regions],
        "status": [region.status for region in regions],
        "error": [region.error for region in regions],
    }
    for name, kind in _ADDED.items():
        table = table.append_column(name, pa.array(columns[name], kind))
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
    return (_unpacked(row) for row in table.to_pylist())


def _unpacked(row: dict[str, Any]) -> Region:
    pixels, place = unpack(row.pop("pixels")), unpack_place(row.pop("place"))
    return Region(row, row.pop("status"), row.pop("error"), pixels, place)
