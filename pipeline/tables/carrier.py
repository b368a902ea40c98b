"""One file of committed rows -> the rows of it that another manifest keeps.

A row is carried where key, version and size are those of the new manifest. A file whose rows all stay as they are is
not touched; of another, the kept rows are written anew with the new manifest's `region_id` and travelling columns.
"""

from __future__ import annotations

import posixpath
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.catalog import schema
from pipeline.catalog.manifest import Manifest, Unit, key_words, read_rows_at
from pipeline.tables.sink import put_tables

PREPARED = "_increment"  # the folder of rewritten files, until the switch to the new manifest


@dataclass(frozen=True)
class Carried:
    """What becomes of one file: `new` is its successor's name; equal to the old one where it stays, None where it
    goes."""

    old: str  # relative to the output folder
    new: str | None
    carried: int = 0
    changed: int = 0
    vanished: int = 0


class KeyIndex:
    """region_key -> region_id of the regions that a run wants: 24 bytes a region."""

    def __init__(self, manifest: Manifest, ids: np.ndarray) -> None:
        wanted = np.zeros(manifest.num_rows, bool)
        wanted[ids] = True
        words = [np.zeros((0, 2), np.uint64)]
        for table in manifest.read_parts(["region_id", "region_key"]):
            words.append(key_words(table["region_key"])[wanted[table["region_id"].to_numpy()]])
        unsorted = np.concatenate(words)
        order = np.lexsort((unsorted[:, 1], unsorted[:, 0]))
        self._first, self._last = unsorted[order, 0], unsorted[order, 1]
        self._ids = np.asarray(ids)[order]

    def find(self, words: np.ndarray) -> np.ndarray:
        """int64[n]: the id of each key (`key_words`), -1 where it is none of these regions'."""
        found = np.full(len(words), -1, np.int64)
        at = np.searchsorted(self._first, words[:, 0])
        open_rows = np.arange(len(words))
        while open_rows.size:  # once, but for keys that share their first 64 bits
            inside = at[open_rows] < self._ids.size
            open_rows = open_rows[inside]
            same = self._first[at[open_rows]] == words[open_rows, 0]
            open_rows = open_rows[same]
            hit = self._last[at[open_rows]] == words[open_rows, 1]
            found[open_rows[hit]] = self._ids[at[open_rows[hit]]]
            open_rows = open_rows[~hit]
            at[open_rows] += 1
        return found


@dataclass(frozen=True)
class Carrier:
    """Carries files of committed rows over to another manifest."""

    output: str
    index: KeyIndex
    units: list[Unit]
    results: pa.Schema  # of the rewritten files, with their metadata

    def compare(self, uri: str) -> tuple[pa.Table, np.ndarray, pa.Table]:
        """A file's own rows (identity and travelling columns), the new id of each (-1: not carried, -2: changed), and
        the manifest's rows of those that are carried."""
        names = [name for name in self.results.names if name not in schema.RESULT_COLUMNS]
        with _open(uri) as file:
            own = file.read(columns=[name for name in names if name in file.schema_arrow.names])
        ids = self.index.find(key_words(own["region_key"]))
        known = np.flatnonzero(ids >= 0)
        rows = read_rows_at(self.units, ids[known], names)
        unchanged = np.array(
            [before == now for before, now in zip(_stamps(own.take(pa.array(known))), _stamps(rows), strict=True)],
            bool,
        )
        ids[known[~unchanged]] = -2
        return own, ids, rows.filter(pa.array(unchanged))

    def carry(self, old: str) -> Carried:
        """Prepare what replaces a file; nothing that is committed changes."""
        uri = storage.join(self.output, old)
        own, ids, rows = self.compare(uri)
        keep = ids >= 0
        counts = int(keep.sum()), int((ids == -2).sum()), int((ids == -1).sum())
        if not keep.any():
            return Carried(old, None, *counts)
        with _open(uri) as file:
            as_before = file.schema_arrow.names == self.results.names
            if keep.all() and as_before and own.select(rows.column_names).equals(rows):
                return Carried(old, old, *counts)
            kind, attempt, _ = posixpath.basename(old).split("-", 2)
            name = f"{kind}-{attempt}-{uuid.uuid4().hex[:12]}.parquet"
            put_tables(storage.join(self.output, PREPARED, name), self.results, self._rewritten(file, keep, rows))
        return Carried(old, name, *counts)

    def _rewritten(self, file: pq.ParquetFile, keep: np.ndarray, rows: pa.Table) -> Iterator[pa.Table]:
        """The kept rows, a row group at a time, with the manifest's columns in place of their own."""
        start = taken = 0
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            kept = table.filter(pa.array(keep[start : start + table.num_rows]))
            start += table.num_rows
            fresh = rows.slice(taken, kept.num_rows)
            taken += kept.num_rows
            columns = []
            for item in self.results:
                if item.name in fresh.column_names:
                    columns.append(fresh[item.name])
                elif item.name in kept.column_names:
                    columns.append(kept[item.name])
                else:  # a column that older versions did not have
                    columns.append(pa.nulls(kept.num_rows, item.type))
            yield pa.table(columns, schema=self.results)


def _stamps(table: pa.Table) -> list[tuple[Any, Any]]:
    return list(zip(table["version"].to_pylist(), table["size_bytes"].to_pylist(), strict=True))


def _open(uri: str) -> pq.ParquetFile:
    fs, path = storage.arrow_filesystem(uri)
    return pq.ParquetFile(path, filesystem=fs)
