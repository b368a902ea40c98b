"""The predictions of a segment run as something to be worked off: in units, ranges of rows of their files.

Units are fixed by the predictions alone, so every driver of a run sees the same ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.catalog import schema
from pipeline.errors import InputError
from pipeline.tables.prediction_table import prediction_files, predictions_metadata

_READ_AT_ONCE = 32  # rows with their masks in memory, per worker


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of one Parquet file."""

    uri: str
    start: int
    stop: int


@dataclass(frozen=True)
class Predictions:
    """The predictions to score. `fingerprint` is a hash of file names and sizes; names are unique to an attempt."""

    uri: str
    files: list[str]
    units: list[list[Piece]]
    metadata: dict[str, str]
    columns: pa.Schema
    fingerprint: str

    @classmethod
    def open(cls, uri: str) -> Predictions:
        """Raises InputError where there are none, or something else."""
        metadata = predictions_metadata(uri)
        files = prediction_files(uri)
        fs, path = storage.arrow_filesystem(files[0])
        columns = pq.read_schema(path, filesystem=fs).remove_metadata()
        if metadata.get("mask_format") == "none":
            raise InputError(
                "predictions hold no masks", where=uri, found="--mask-format none", expected="raw, png or rle"
            )
        needed = set(schema.predictions_schema().names) - schema.LATER_COLUMNS
        missing = sorted(needed - set(columns.names))
        if missing:
            raise InputError("predictions lack a column", where=files[0], expected=missing[0])
        units = plan_units(files)
        if not units:
            raise InputError("predictions hold no row", where=uri)
        rows = [f"{piece.uri.rsplit('/', 1)[-1]} {piece.start} {piece.stop}" for unit in units for piece in unit]
        text = "\n".join([metadata.get("result_fingerprint", ""), metadata.get("manifest_fingerprint", ""), *rows])
        return cls(
            storage.absolute(uri), files, units, metadata, columns, hashlib.sha256(text.encode()).hexdigest()[:32]
        )

    @property
    def num_rows(self) -> int:
        return sum(piece.stop - piece.start for unit in self.units for piece in unit)

    @property
    def extra(self) -> tuple[pa.Field, ...]:
        """The travelling columns."""
        own = schema.predictions_schema().names
        return tuple(item for item in self.columns if item.name not in own)

    def splits(self) -> dict[str, int]:
        """Rows of each split, read from that column alone."""
        if "split" not in self.columns.names:
            return {}
        counts: dict[str, int] = {}
        for file in self.files:
            fs, path = storage.arrow_filesystem(file)
            for pair in pq.read_table(path, filesystem=fs, columns=["split"])["split"].value_counts().to_pylist():
                counts[pair["values"] or ""] = counts.get(pair["values"] or "", 0) + pair["counts"]
        return counts

    def example(self) -> str:
        batch = next(read_rows(self.units[0], ["path"]))
        return str(batch["path"][0])


def plan_units(files: list[str]) -> list[list[Piece]]:
    """Ranges of rows that make up all files; a unit is a list of them.

    About 32 units for a small set (so that all workers have some), units of 4096 rows for a large one: a unit that
    begins inside a row group decodes its masks from the group's first row on, so small units would mostly skip.
    """
    with ThreadPoolExecutor(16) as threads:
        counts = list(threads.map(_num_rows, files))
    rows_per_unit = int(np.clip(sum(counts) // 32, 64, 4096))
    units: list[list[Piece]] = [[]]
    room = rows_per_unit
    for uri, count in zip(files, counts, strict=True):
        start = 0
        while start < count:
            stop = min(count, start + room)
            units[-1].append(Piece(uri, start, stop))
            room -= stop - start
            start = stop
            if not room:
                units.append([])
                room = rows_per_unit
    return [unit for unit in units if unit]


def read_rows(unit: list[Piece], columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a unit, a few at a time: masks compress thirtyfold, so a row group may be larger than memory."""
    for piece in unit:
        fs, path = storage.arrow_filesystem(piece.uri)
        with pq.ParquetFile(path, filesystem=fs) as file:
            groups: list[int] = []
            first = offset = 0
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if first + count > piece.start and first < piece.stop:
                    if not groups:
                        offset = first
                    groups.append(group)
                first += count
            for batch in file.iter_batches(batch_size=_READ_AT_ONCE, row_groups=groups, columns=columns):
                start, stop = max(piece.start - offset, 0), min(piece.stop - offset, batch.num_rows)
                if start < stop:
                    yield batch.slice(start, stop - start)
                offset += batch.num_rows
                if offset >= piece.stop:
                    break


def _num_rows(uri: str) -> int:
    fs, path = storage.arrow_filesystem(uri)
    with pq.ParquetFile(path, filesystem=fs) as file:
        return int(file.metadata.num_rows)
