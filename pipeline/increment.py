"""`--incremental`: the rows of pictures that did not change are carried from the run's manifest to a new one.

A row is carried where key, version and size are those of the new manifest. Rows of pictures that changed, or are in
the manifest no more, go. Files whose rows all stay as they are (a bucket that only grew at its end) are not touched;
of the others, those rows are written anew, with the new manifest's `region_id` and travelling columns.

Killed anywhere, a run is found in one of these states:

1. *Prepared*: `OUTPUT/_increment/` holds the new manifest (that of a collection), the rewritten files and, last,
   `plan.json`. Nothing else has changed; the next run throws it away.
2. *Switched*: one put of `_run.json` names the new manifest and says `increment`. The next run rolls forward.
3. *Rolled forward*: each old file goes before the one comes that replaces it, so no reader sees a row twice; then the
   manifest; then `increment` is taken out of `_run.json`. Every step can be done again.
"""

from __future__ import annotations

import json
import posixpath
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import folders, schema, storage
from pipeline.errors import PipelineError
from pipeline.manifest import SUMMARY, Manifest, Unit, key_words, open_manifest, read_rows_at
from pipeline.manifest_job import manifest_of, portion_of, refuse_other_source
from pipeline.manifest_writer import build_manifest
from pipeline.portion import Portion
from pipeline.prediction_table import committed_files, is_ok
from pipeline.progress import say
from pipeline.run import Run, fingerprint
from pipeline.sink import put_tables

INCREMENT = "_increment"
_PLAN = "plan.json"
_BYTES_HERE = 256 * 2**20  # predictions up to this size are carried by the driver itself
_AT_ONCE = 8


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

    def judge(self, uri: str) -> tuple[pa.Table, np.ndarray, pa.Table]:
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
        own, ids, rows = self.judge(uri)
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
            put_tables(storage.join(self.output, INCREMENT, name), self.results, self._rewritten(file, keep, rows))
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


def take_increment(
    run: Run,
    source: str,
    portion: Portion,
    results: Callable[[Manifest, str], pa.Schema],
    connect: Callable[[], None],
) -> Manifest:
    """List again and carry what did not change; the manifest to work off then.

    `results(manifest, fingerprint)` gives the schema of the rows, `connect()` joins Ray where it is needed.
    Raises InputError, with the run left as it was, where the source is another or no picture is left.
    """
    given = open_manifest(source)
    if given is None:
        refuse_other_source(run, source)
    portion.require_to_hold(portion_of(run), run.output)
    try:
        manifest = given or build_manifest(source, run.at(INCREMENT, "manifest"))
        if manifest.fingerprint == run.record["manifest"]["content"]:
            say("nothing has changed since the last listing")
            folders.remove_tree(run.at(INCREMENT))
            return manifest_of(run, source, portion=portion)
        ids = portion.ids(manifest)
        parts = {"content": manifest.fingerprint, "split": portion.split}
        carrier = Carrier(
            run.output, KeyIndex(manifest, ids), list(manifest.units()), results(manifest, fingerprint(parts))
        )
        files = list(_carry_all(carrier, committed_files(run.output), connect))
    except Exception:
        folders.remove_tree(run.at(INCREMENT))
        raise
    _tell(files, int(ids.size))
    moves = [[file.old, file.new] for file in files if file.old != file.new]
    listed = None if given else [*manifest.parts, SUMMARY]
    storage.write_json(run.at(INCREMENT, _PLAN), {"files": moves, "manifest": listed})
    run.lease.check()
    run.set_manifest(
        parts,
        replace=True,
        reopen=True,
        source=storage.absolute(source),
        portion=portion.to_json(),
        increment=True,
    )
    settle(run)
    return given or manifest_of(run, source, portion=portion)


def carried_ids(run: Run, manifest: Manifest, ids: np.ndarray, *, retry_failed: bool) -> np.ndarray:
    """bool[num_rows]: the regions of a new manifest that a run's rows would be carried for; nothing is written."""
    columns = schema.predictions_schema(manifest.travelling)
    carrier = Carrier(run.output, KeyIndex(manifest, ids), list(manifest.units()), columns)
    carried = np.zeros(manifest.num_rows, bool)
    for name in committed_files(run.output):
        if is_ok(name) or not retry_failed:
            found = carrier.judge(storage.join(run.output, name))[1]
            carried[found[found >= 0]] = True
    return carried


def settle(run: Run) -> None:
    """Finish the switch that a killed run had begun, or throw away what it had only prepared."""
    if run.record.get("increment"):
        plan = storage.read_json(run.at(INCREMENT, _PLAN))
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(lambda pair: _replace(run, *pair), plan["files"]))
        _replace_manifest(run, plan["manifest"])
        run.lease.check()
        run.remember(increment=None)
    if INCREMENT in folders.list_names(run.output):
        folders.remove_tree(run.at(INCREMENT))


def _replace(run: Run, old: str, new: str | None) -> None:
    run.lease.check()
    storage.remove(run.at(old))
    if new is None:
        return
    target = run.at(posixpath.dirname(old), new)
    try:
        storage.move(run.at(INCREMENT, new), target)
    except FileNotFoundError:
        if not storage.exists(target):
            raise PipelineError(f"a carried file is lost: {target}; --overwrite does the run again") from None


def _replace_manifest(run: Run, names: list[str] | None) -> None:
    """The new manifest's files into OUTPUT/manifest, its summary last."""
    staged, kept = run.at(INCREMENT, "manifest"), run.at("manifest")
    if names is None:
        folders.remove_tree(kept)
    elif storage.exists(storage.join(staged, SUMMARY)):
        storage.remove(storage.join(kept, SUMMARY))
        for name in folders.list_names(staged):
            if name != SUMMARY:
                storage.move(storage.join(staged, name), storage.join(kept, name))
        for name in folders.list_names(kept):
            if name not in names:
                storage.remove(storage.join(kept, name))
        storage.move(storage.join(staged, SUMMARY), storage.join(kept, SUMMARY))


def _carry_all(carrier: Carrier, files: list[str], connect: Callable[[], None]) -> Iterator[Carried]:
    """All files, on the cluster where they are many."""
    size_bytes = sum(storage.info(storage.join(carrier.output, file)).size_bytes for file in files)
    if size_bytes <= _BYTES_HERE:
        yield from map(carrier.carry, files)
        return
    connect()
    import ray
    import ray.data

    shared = ray.put(carrier)
    data: Any = ray.data.from_items([{"file": file} for file in files], override_num_blocks=min(len(files), 10_000))
    data = data.map_batches(
        _carry_here,  # type: ignore[arg-type]  # Ray's own types leave keyword arguments out
        fn_kwargs={"carrier": shared},
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=1,
    )
    for row in data.iter_rows():
        yield Carried(**json.loads(row["carried"]))


def _carry_here(batch: pa.Table, carrier: Any) -> dict[str, list[str]]:
    import ray

    carrier = ray.get(carrier) if isinstance(carrier, ray.ObjectRef) else carrier
    return {"carried": [json.dumps(vars(carrier.carry(file))) for file in batch["file"].to_pylist()]}


def _tell(files: Iterable[Carried], wanted: int) -> None:
    files = list(files)
    carried, changed, vanished = (
        sum(getattr(file, name) for file in files) for name in ("carried", "changed", "vanished")
    )
    stay = sum(file.new == file.old for file in files)
    say(
        f"increment: {carried} rows carried, {changed} changed and {vanished} gone since the last listing;"
        f" {wanted - carried} of {wanted} regions to do ({stay} of {len(files)} files stay as they are)"
    )


def _stamps(table: pa.Table) -> list[tuple[Any, Any]]:
    return list(zip(table["version"].to_pylist(), table["size_bytes"].to_pylist(), strict=True))


def _open(uri: str) -> pq.ParquetFile:
    fs, path = storage.arrow_filesystem(uri)
    return pq.ParquetFile(path, filesystem=fs)
