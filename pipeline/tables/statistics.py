"""Statistics of a segment run from the columns of its predictions alone; masks are not read.

One row for the whole set, one a folder, and one for each value of each travelling column (split, city, sensor, ...).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.catalog import schema
from pipeline.tables.prediction_table import prediction_files

STATISTICS = "statistics"
_COLUMNS = "path height width status class_pixels class_area_m2 mean_confidence low_confidence_share".split()
_ROWS_AT_ONCE = 65_536
_MOST_VALUES = 100_000  # of one scope: a column with more is no grouping


@dataclass
class Group:
    """Sums over the regions of one scope and value."""

    num_classes: int
    statuses: np.ndarray = field(init=False)  # int64, one a status of schema.STATUSES
    pixels: int = 0
    class_pixels: np.ndarray = field(init=False)
    confidence: float = 0.0  # summed over predicted pixels
    low_confidence: float = 0.0
    class_area_m2: np.ndarray = field(init=False)  # of the regions whose area is known
    has_area: bool = False

    def __post_init__(self) -> None:
        self.class_area_m2 = np.zeros(self.num_classes)
        self.statuses = np.zeros(len(schema.STATUSES), np.int64)
        self.class_pixels = np.zeros(self.num_classes, np.int64)

    def to_row(self, scope: str, value: str | None) -> dict[str, Any]:
        predicted = int(self.class_pixels.sum())
        return {
            "scope": scope,
            "value": value,
            "regions": int(self.statuses.sum()),
            **dict(zip(schema.STATUSES, self.statuses.tolist(), strict=True)),
            "pixels": self.pixels,
            "class_pixels": self.class_pixels.tolist(),
            "class_area_m2": self.class_area_m2.tolist() if self.has_area else None,
            "class_share": [int(n) / predicted if predicted else 0.0 for n in self.class_pixels],
            "mean_confidence": self.confidence / predicted if predicted else None,
            "low_confidence_share": self.low_confidence / predicted if predicted else None,
        }


class _Rows:
    """The columns of some rows as arrays; a row that is not ok counts no pixel."""

    def __init__(self, table: pa.Table, num_classes: int) -> None:
        self.status = pc.index_in(table["status"], pa.array(schema.STATUSES)).to_numpy()
        ok = self.status == schema.STATUSES.index("ok")
        good = table.filter(pa.array(ok))
        self.pixels = np.zeros(len(ok), np.int64)
        self.pixels[ok] = good["height"].to_numpy().astype(np.int64) * good["width"].to_numpy()
        self.class_pixels = np.zeros((len(ok), num_classes), np.int64)
        self.class_pixels[ok] = pc.list_flatten(good["class_pixels"]).to_numpy().reshape(-1, num_classes)
        self.has_area, self.class_area_m2 = np.zeros(len(ok)), np.zeros((len(ok), num_classes))
        if "class_area_m2" in table.column_names:  # not before version 4
            known = ok & pc.is_valid(table["class_area_m2"]).to_numpy()
            self.has_area = known.astype(float)
            areas = pc.list_flatten(table.filter(pa.array(known))["class_area_m2"])
            self.class_area_m2[known] = areas.to_numpy().reshape(-1, num_classes)
        self.confidence, self.low_confidence = np.zeros(len(ok)), np.zeros(len(ok))
        predicted = self.class_pixels[ok].sum(axis=1).astype(float)  # a picture may have pixels of no class
        self.confidence[ok] = pc.fill_null(good["mean_confidence"], 0.0).to_numpy() * predicted
        self.low_confidence[ok] = pc.fill_null(good["low_confidence_share"], 0.0).to_numpy() * predicted

    def add_to(self, groups: dict[str, Group], values: pa.Array, num_classes: int) -> None:
        """Add each row to the group of its value; a row without one belongs to none."""
        coded = values.dictionary_encode()
        codes = pc.fill_null(coded.indices, -1).to_numpy()
        at = np.flatnonzero(codes >= 0)
        codes, count, kinds = codes[at], len(coded.dictionary), len(schema.STATUSES)

        def sums(numbers: np.ndarray) -> np.ndarray:
            # exact: the sum of a batch's integers is far below 2**53
            return np.bincount(codes, weights=numbers[at], minlength=count)

        statuses = np.bincount(codes * kinds + self.status[at], minlength=count * kinds).reshape(count, kinds)
        pixels, confidence, low_confidence = sums(self.pixels), sums(self.confidence), sums(self.low_confidence)
        class_pixels = np.stack([sums(column) for column in self.class_pixels.T], axis=1).astype(np.int64)
        has_area = sums(self.has_area)
        areas = np.stack([sums(column) for column in self.class_area_m2.T], axis=1)
        for i, value in enumerate(coded.dictionary.to_pylist()):
            if value not in groups and len(groups) >= _MOST_VALUES:
                continue
            group = groups.setdefault(value, Group(num_classes))
            group.statuses += statuses[i]
            group.pixels += int(pixels[i])
            group.class_pixels += class_pixels[i]
            group.class_area_m2 += areas[i]
            group.has_area |= bool(has_area[i])
            group.confidence += float(confidence[i])
            group.low_confidence += float(low_confidence[i])


def write_statistics(output: str, num_classes: int, travelling: list[str]) -> dict[str, Any]:
    """Write `OUTPUT/statistics/statistics.parquet` (schema.STATISTICS); returns the row of the whole set."""
    groups: dict[str, dict[str, Group]] = {"all": {"": Group(num_classes)}, "folder": {}}
    groups |= {name: {} for name in travelling}
    columns = list(dict.fromkeys([*_COLUMNS, *travelling]))
    for uri in prediction_files(output):
        fs, path = storage.arrow_filesystem(uri)
        with pq.ParquetFile(path, filesystem=fs) as parquet:
            for batch in parquet.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
                rows = _Rows(pa.Table.from_batches([batch]), num_classes)
                for scope, found in groups.items():
                    rows.add_to(found, _values(batch, scope), num_classes)
    rows_out = [
        group.to_row(scope, None if scope == "all" else value)
        for scope, values in groups.items()
        if len(values) < _MOST_VALUES
        for value, group in sorted(values.items())
    ]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows_out, schema.STATISTICS), buffer, compression="zstd")
    storage.write_bytes(storage.join(output, STATISTICS, "statistics.parquet"), buffer.getvalue().to_pybytes())
    return rows_out[0]


def _values(batch: pa.RecordBatch, scope: str) -> pa.Array:
    """The value of each row in a scope, as text."""
    if scope == "all":
        return pa.array([""]).take(pa.array(np.zeros(batch.num_rows, np.int64)))
    if scope == "folder":
        return pc.replace_substring_regex(batch.column("path"), "/*[^/]*$", "")
    column = batch.column(scope)
    if pa.types.is_string(column.type):
        return column
    return pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
