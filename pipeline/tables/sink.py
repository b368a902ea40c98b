"""Exactly-once Parquet: whatever dies, each region is in the public folder once.

How: write tasks put whole files of `ok` rows, and files of their own for the others, under `OUTPUT/_attempts/NNN/`,
and hand the driver their names. Ray delivers each task's result once, however often it ran, and only the driver
(which holds the lease) moves files: `ok` ones into `OUTPUT/predictions/`, the others into `OUTPUT/_attempts/held/`.
So any Parquet reader pointed at `predictions/` sees no region twice, and what a dead attempt writes late is never
seen. Resuming counts the rows of both folders and drops what earlier attempts left elsewhere. When nothing is
pending, the held rows are published: a region's row is its `ok` row, or else its newest other row.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.catalog import schema
from pipeline.errors import PipelineError
from pipeline.storage import folders
from pipeline.tables.prediction_table import (
    ATTEMPTS,
    HELD,
    PREDICTIONS,
    committed_ids,
    is_ok,
    prediction_files,
    read_file,
    read_ids,
)

ROW_GROUP_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Written:
    """What one write task hands the driver: names under the attempt's folder, and counts."""

    ok_file: str | None
    failed_file: str | None
    rows: int
    statuses: dict[str, int]
    errors: dict[str, str]  # one example a status
    size_bytes: int


def write_rows(table: pa.Table, attempt_uri: str) -> Written:
    """Put the rows of one task as whole files into an attempt's folder. Runs on any worker, any number of times."""
    statuses = Counter(table["status"].to_pylist())
    ok = pc.equal(table["status"], "ok")
    failed, good = table.filter(pc.invert(ok)), table
    if failed.num_rows:  # a filter copies masks
        good = table.filter(ok)
    files: dict[str, str | None] = {}
    size_bytes = 0
    for kind, rows in (("failed", failed), ("ok", good)):
        files[kind] = None
        if rows.num_rows:
            files[kind] = f"{kind}-{attempt_uri.rsplit('/', 1)[-1]}-{uuid.uuid4().hex[:12]}.parquet"
            size_bytes += _put_table(storage.join(attempt_uri, files[kind] or ""), rows)
    errors = {row["status"]: row["error"] for row in table.select(["status", "error"]).to_pylist() if row["error"]}
    return Written(files["ok"], files["failed"], table.num_rows, dict(statuses), errors, size_bytes)


class Sink:
    """The driver's side: what is counted, publishing, the last word on failed rows, the audit.

    `commit` is called before each move and raises where the lease was lost.
    """

    def __init__(self, output: str, commit: Callable[[], None], *, retry_failed: bool = False) -> None:
        self.output = output
        self._commit = commit
        self._retry_failed = retry_failed
        self.predictions_uri = storage.join(output, PREDICTIONS)
        self._attempts_uri = storage.join(output, ATTEMPTS)
        self._held_uri = storage.join(output, ATTEMPTS, HELD)
        self.attempt_uri = self._open_attempt()

    def committed(self, num_ids: int) -> np.ndarray:
        """bool[num_ids]: the regions that need no work. With `retry_failed` those with a failed row do."""
        return committed_ids(self.output, num_ids, retry_failed=self._retry_failed)

    def publish(self, written: Written) -> None:
        """Commit one task's files: from here on they are never done again."""
        self._commit()
        if written.failed_file:
            storage.move(storage.join(self.attempt_uri, written.failed_file), self._held(written.failed_file))
        if written.ok_file:
            source = storage.join(self.attempt_uri, written.ok_file)
            storage.move(source, storage.join(self.predictions_uri, written.ok_file))

    def failed(self) -> Iterator[pa.Table]:
        """The failed rows that stand: of each region without an `ok` row, the newest."""
        held = sorted(self._held_files(), key=_attempt_number, reverse=True)
        if not held:
            return
        taken = _Ids()
        for uri in self._ok_files():
            taken.add(read_ids(uri))
        for uri in held:
            table = read_file(uri)
            ids = table["region_id"].to_numpy()
            fresh = ~taken.holds(ids)
            taken.add(ids)
            if fresh.any():
                yield table.filter(pa.array(fresh))

    def publish_failed(self) -> int:
        """Put the failed rows that stand into the public folder, in files of their own; how many there are."""
        count = 0
        for table in self.failed():
            name = f"failed-{self.attempt_uri.rsplit('/', 1)[-1]}-{uuid.uuid4().hex[:12]}.parquet"
            # by way of the attempt, which a driver that takes over removes: one that sleeps here commits nothing later
            _put_table(storage.join(self.attempt_uri, name), table)
            self._commit()
            storage.move(storage.join(self.attempt_uri, name), storage.join(self.predictions_uri, name))
            count += table.num_rows
        return count

    def audit(self, expected_ids: np.ndarray) -> None:
        """Each expected region once, no other. Raises PipelineError with the counts."""
        seen, duplicated = _Ids(), 0
        for uri in prediction_files(self.output):
            ids = read_ids(uri)
            once = np.unique(ids)
            duplicated += ids.size - once.size + int(seen.holds(once).sum())
            seen.add(once)
        missing = int((~seen.holds(expected_ids)).sum())
        foreign = seen.count() - (expected_ids.size - missing)
        if missing or foreign or duplicated:
            raise PipelineError(
                f"audit of {self.predictions_uri} failed: {missing} regions missing, {duplicated} rows twice,"
                f" {foreign} rows of no region of this run"
            )

    def finish(self) -> None:
        """Remove what only an unfinished run needs."""
        folders.remove_tree(self._attempts_uri)

    def _open_attempt(self) -> str:
        """A new attempt: what earlier ones left unpublished goes, public failed rows go back among the held."""
        names = [name for name in folders.list_names(self._attempts_uri) if name != HELD]
        for name in names:
            folders.remove_tree(storage.join(self._attempts_uri, name))
        public = prediction_files(self.output)
        for uri in public:
            name = uri.rsplit("/", 1)[-1]
            if name.startswith("failed-"):
                self._commit()
                storage.move(uri, self._held(name))
        numbers = [_attempt_number(uri) for uri in [*names, *public, *self._held_files()]]
        return storage.join(self._attempts_uri, f"{max(numbers, default=0) + 1:04d}")

    def _held(self, name: str) -> str:
        return storage.join(self._held_uri, name)

    def _held_files(self) -> list[str]:
        return [self._held(name) for name in folders.list_names(self._held_uri) if name.endswith(".parquet")]

    def _ok_files(self) -> list[str]:
        return [uri for uri in prediction_files(self.output) if is_ok(uri)]


def put_tables(uri: str, columns: pa.Schema, tables: Iterable[pa.Table]) -> int:
    """Put rows as one file, a row group (or more, where it is large) for each table; its size in bytes."""
    buffer = pa.BufferOutputStream()
    plain = [name for name in columns.names if name not in schema.PIXEL_COLUMNS]  # a dictionary of these only costs
    with pq.ParquetWriter(buffer, columns, compression="zstd", use_dictionary=plain) as writer:
        for table in tables:
            rows_per_group = max(1, int(table.num_rows * ROW_GROUP_BYTES / max(table.nbytes, 1)))
            writer.write_table(table, row_group_size=rows_per_group)
    data = buffer.getvalue().to_pybytes()
    storage.write_bytes(uri, data)
    return len(data)


def _put_table(uri: str, table: pa.Table) -> int:
    return put_tables(uri, table.schema, [table])


class _Ids:
    """A set of region ids, a byte for each up to the largest."""

    def __init__(self) -> None:
        self._held = np.zeros(0, bool)

    def add(self, ids: np.ndarray) -> None:
        if ids.size and ids.max() >= self._held.size:
            self._held = np.concatenate([self._held, np.zeros(max(int(ids.max()) + 1, self._held.size), bool)])
        self._held[ids] = True

    def holds(self, ids: np.ndarray) -> np.ndarray:
        """bool[n]"""
        inside = ids < self._held.size
        found = np.zeros(ids.size, bool)
        found[inside] = self._held[ids[inside]]
        return found

    def count(self) -> int:
        return int(self._held.sum())


def _attempt_number(name: str) -> int:
    """NNNN of `.../ok-NNNN-abc.parquet` or of an attempt's folder."""
    parts = name.rsplit("/", 1)[-1].split("-")
    digits = parts[1] if len(parts) > 2 else parts[0]
    return int(digits) if digits.isdigit() else 0
