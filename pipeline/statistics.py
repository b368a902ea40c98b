"""Statistics of a segment run from the columns of its predictions alone; masks are not read.

One row for the whole set, one a folder, and one for each value of each travelling column (split, city, sensor, ...).
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema, storage
from pipeline.sink import prediction_files

STATISTICS = "statistics"
_COLUMNS = "path height width status class_pixels mean_confidence low_confidence_share".split()
_MOST_VALUES = 100_000  # of one scope: a column with more is no grouping


@dataclass
class Group:
    """Sums over the regions of one scope and value."""

    num_classes: int
    statuses: dict[str, int] = field(default_factory=dict)
    pixels: int = 0
    class_pixels: np.ndarray = field(init=False)
    confidence: float = 0.0  # summed over pixels
    low_confidence: float = 0.0

    def __post_init__(self) -> None:
        self.class_pixels = np.zeros(self.num_classes, np.int64)

    def add(self, row: dict[str, Any]) -> None:
        self.statuses[row["status"]] = self.statuses.get(row["status"], 0) + 1
        if row["status"] != "ok":
            return
        pixels = row["height"] * row["width"]
        self.pixels += pixels
        self.class_pixels += np.asarray(row["class_pixels"], np.int64)
        self.confidence += row["mean_confidence"] * pixels
        self.low_confidence += row["low_confidence_share"] * pixels

    def to_row(self, scope: str, value: str | None) -> dict[str, Any]:
        predicted = int(self.class_pixels.sum())
        return {
            "scope": scope,
            "value": value,
            "regions": sum(self.statuses.values()),
            **{status: self.statuses.get(status, 0) for status in schema.STATUSES},
            "pixels": self.pixels,
            "class_pixels": self.class_pixels.tolist(),
            "class_share": [int(n) / predicted if predicted else 0.0 for n in self.class_pixels],
            "mean_confidence": self.confidence / self.pixels if self.pixels else None,
            "low_confidence_share": self.low_confidence / self.pixels if self.pixels else None,
        }


def write_statistics(output: str, num_classes: int, travelling: list[str]) -> dict[str, Any]:
    """Write `OUTPUT/statistics/statistics.parquet` (schema.STATISTICS); returns the row of the whole set."""
    groups: dict[str, dict[str, Group]] = {"all": {"": Group(num_classes)}, "folder": {}}
    groups |= {name: {} for name in travelling}
    for uri in prediction_files(output):
        fs, path = storage.arrow_filesystem(uri)
        with pq.ParquetFile(path, filesystem=fs) as parquet:
            for batch in parquet.iter_batches(batch_size=4096, columns=list(dict.fromkeys([*_COLUMNS, *travelling]))):
                for row in batch.to_pylist():
                    values = {"all": "", "folder": posixpath.dirname(row["path"])}
                    values |= {name: row[name] for name in travelling if row[name] is not None}
                    for scope, value in values.items():
                        group = groups[scope]
                        if str(value) not in group and len(group) >= _MOST_VALUES:
                            continue
                        group.setdefault(str(value), Group(num_classes)).add(row)
    rows = [
        group.to_row(scope, None if scope == "all" else value)
        for scope, values in groups.items()
        if len(values) < _MOST_VALUES
        for value, group in sorted(values.items())
    ]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema.STATISTICS), buffer, compression="zstd")
    storage.write_bytes(storage.join(output, STATISTICS, "statistics.parquet"), buffer.getvalue().to_pybytes())
    return rows[0]
