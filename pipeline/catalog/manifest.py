"""The manifest table: one row per region of a collection, in path order, with splits, labels and travelling columns.

A manifest is a folder of Parquet parts and `_manifest.json`, which is written last: a folder without it is not a
manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.catalog import schema
from pipeline.errors import InputError

SUMMARY = "_manifest.json"
_FILES = (".csv", ".tsv", ".parquet", ".json")  # sources that are one file


@dataclass(frozen=True)
class Unit:
    """One row group of a part: what one task reads. Its rows have the ids from `first_id` on."""

    uri: str
    row_group: int
    first_id: int
    num_rows: int

    def read(self, columns: list[str]) -> pa.Table:
        fs, path = storage.arrow_filesystem(self.uri)
        with pq.ParquetFile(path, filesystem=fs) as parquet:
            return parquet.read_row_group(self.row_group, columns=columns)


@dataclass(frozen=True)
class Manifest:
    """A finished manifest. `fingerprint` is a hash of every row's key, version, size and label: its content."""

    uri: str
    source: str
    root: str  # `path` is relative to it
    num_rows: int
    fingerprint: str
    parts: tuple[str, ...]
    columns: tuple[str, ...]
    skipped: int = 0  # names under a prefix that are no picture, raster or video
    skipped_examples: tuple[str, ...] = ()
    labelled: int = 0
    splits: dict[str, int] = field(default_factory=dict)  # rows per split; "" = no split
    kinds: dict[str, int] = field(default_factory=dict)
    scenes: dict[str, Any] = field(default_factory=dict)  # what the headers of raster scenes said (raster_windows)
    schema_version: int = schema.SCHEMA_VERSION

    @property
    def travelling(self) -> list[pa.Field]:
        """The columns that travel to the results: `split` and those the source had beyond ours."""
        return schema.travelling(self.arrow_schema)

    @property
    def arrow_schema(self) -> pa.Schema:
        if not self.parts:
            return schema.MANIFEST
        fs, path = storage.arrow_filesystem(storage.join(self.uri, self.parts[0]))
        return pq.read_schema(path, filesystem=fs).remove_metadata()

    def summary(self) -> str:
        """Counts for a person: pictures, splits, labels, and what was skipped."""
        splits = ", ".join(f"{name or 'no split'}: {rows}" for name, rows in sorted(self.splits.items()))
        text = f"{self.num_rows} pictures"
        if self.scenes:
            count = self.scenes["scenes"] + self.scenes["unreadable"]
            pictures = self.num_rows - self.kinds.get("raster", 0)
            text = f"{self.kinds.get('raster', 0)} windows of {count} scenes"
            text += f", {pictures} pictures" if pictures else ""
        text += f" ({splits})" if set(self.splits) != {""} else ""
        text += f", {self.labelled} with labels"
        if self.scenes.get("resampled"):
            text += f", {self.scenes['resampled']} scenes of files on several grids"
        if self.scenes.get("unreadable"):
            text += f", {self.scenes['unreadable']} scenes unreadable (such as {self.scenes['example']})"
        if self.skipped:
            text += f", {self.skipped} other files skipped (such as {', '.join(self.skipped_examples[:3])})"
        return text

    def part_uris(self) -> list[str]:
        return [storage.join(self.uri, part) for part in self.parts]

    def sampled(self, ids: np.ndarray, count: int) -> list[dict[str, Any]]:
        """`count` of these ids, evenly spaced, as rows with what reading a region needs."""
        chosen = ids[np.linspace(0, ids.size - 1, min(count, ids.size)).astype(int)]
        columns = ["uri", "kind", "size_bytes", "version", "window", "frame", "read_window", "scene_area", "assets"]
        columns = [name for name in columns if name in self.columns]
        rows: list[dict[str, Any]] = read_rows_at(list(self.units()), chosen, columns).to_pylist()
        return rows

    def units(self) -> Iterator[Unit]:
        """The row groups of all parts, in the order of their ids."""
        first_id = 0
        for uri in self.part_uris():
            fs, path = storage.arrow_filesystem(uri)
            groups = pq.read_metadata(path, filesystem=fs)
            for group in range(groups.num_row_groups):
                num_rows = groups.row_group(group).num_rows
                yield Unit(uri, group, first_id, num_rows)
                first_id += num_rows

    def table(self, columns: list[str] | None = None, split: str | None = None) -> pa.Table:
        """The rows (of one split) as one Arrow table: for labelled collections, not for whole buckets."""
        wanted = None if columns is None else list(dict.fromkeys([*columns, "split"]))
        parts = list(self.read_parts(wanted, split))
        table = pa.concat_tables(parts) if parts else self.arrow_schema.empty_table()
        return table if columns is None else table.select(columns)

    def require_split(self, split: str | None) -> None:
        """Raises InputError where no row is of this split."""
        if split is not None and split not in self.splits:
            known = ", ".join(f"{name or '(none)'}: {rows}" for name, rows in sorted(self.splits.items()))
            raise InputError(f"no picture is of split {split!r}", where=self.source, found=known or "nothing")

    def read_parts(self, columns: list[str] | None, split: str | None = None) -> Iterator[pa.Table]:
        """The rows (of one split) part by part, in the order of their ids."""
        for uri in self.part_uris():
            fs, path = storage.arrow_filesystem(uri)
            table = pq.read_table(path, filesystem=fs, columns=columns)
            yield table if split is None else table.filter(pc.equal(table["split"], split))


def read_rows_at(units: list[Unit], ids: np.ndarray, columns: list[str]) -> pa.Table:
    """The rows of these ids, in the order of `ids`; `units` are all of a manifest's."""
    order = np.argsort(ids, kind="stable")
    wanted = ids[order]
    parts = []
    for unit in units:
        begin, end = np.searchsorted(wanted, [unit.first_id, unit.first_id + unit.num_rows])
        if begin < end:
            parts.append(unit.read(columns).take(pa.array(wanted[begin:end] - unit.first_id)))
    if not parts:
        return units[0].read(columns).slice(0, 0)
    back = np.empty_like(order)
    back[order] = np.arange(order.size)
    return pa.concat_tables(parts).take(pa.array(back))


def region_key(path: str, window: tuple[int, int, int, int] | None = None, frame: int | None = None) -> str:
    """A region's identity: 32 hex digits of a 128-bit hash of path (relative to the root), window and frame."""
    text = f"{path}\0{window or ''}\0{'' if frame is None else frame}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def key_words(keys: pa.ChunkedArray) -> np.ndarray:
    """A column of region keys as uint64[n, 2]: their first and last 64 bits, which sort as the keys do."""
    words = [np.zeros((0, 2), np.uint64)]
    for chunk in keys.chunks:
        digits = chunk.cast(pa.binary()).cast(pa.binary(32))
        text = bytes(digits.buffers()[1])[32 * digits.offset : 32 * (digits.offset + len(digits))]
        words.append(np.frombuffer(bytes.fromhex(text.decode()), ">u8").astype(np.uint64).reshape(-1, 2))
    return np.concatenate(words)


def open_manifest(uri: str) -> Manifest | None:
    """The manifest at `uri`, or None where there is none. Raises InputError for one of a newer version, a
    damaged one, and where nothing can be reached."""
    try:
        with storage.reachable(uri):
            text = storage.read_json(storage.join(uri, SUMMARY))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except storage.AccessDenied:
        if uri.lower().endswith(_FILES):  # a store that may not be listed says so of what is not there
            return None
        raise
    except ValueError as error:
        raise InputError("manifest is damaged", where=storage.join(uri, SUMMARY), found=error) from None
    if text.get("schema_version", 0) > schema.SCHEMA_VERSION:
        raise InputError(
            "manifest is of a newer version",
            where=uri,
            found=text["schema_version"],
            expected=f"at most {schema.SCHEMA_VERSION}",
            todo="update this project",
        )
    known = {name: text[name] for name in Manifest.__dataclass_fields__ if name in text}
    for name in ("parts", "columns", "skipped_examples"):
        known[name] = tuple(known.get(name, ()))
    manifest = Manifest(**{**known, "uri": storage.absolute(uri)})
    missing = [part for part in manifest.part_uris() if not storage.exists(part)]
    if missing:
        raise InputError("manifest is damaged: a part is missing", where=missing[0])
    return manifest
