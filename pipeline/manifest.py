"""A collection -> the manifest table: one row per region, in path order, with splits, labels and travelling columns.

A manifest is a folder of Parquet parts and `_manifest.json`, which is written last: a folder without it is not a
manifest. Building streams: memory holds one part, not the collection.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import schema, storage
from pipeline.collection import Entry, list_collection
from pipeline.collection_table import is_table, list_table
from pipeline.errors import InputError
from pipeline.run import Run, open_run

ROWS_PER_PART = 250_000
ROWS_PER_GROUP = 16_384
_SUMMARY = "_manifest.json"
_LISTED = ("path", "uri", "kind", "size_bytes", "version", "split", "label_uri")


@dataclass
class ManifestConfig:
    """List a collection of pictures into a manifest: a folder of Parquet parts that every job takes as its source.

    Args:
        source: a folder or prefix (names with a picture, raster or video suffix), a glob (every file), or a table
        output: the folder or prefix that receives the manifest
        labels: the folder of label files, where it is not found beside the pictures
        split: keep only the pictures of this split
        overwrite: remove the manifest that the output folder holds
        single_writer: no other run writes there, on a store that cannot put-if-absent
    """

    source: str
    output: str
    labels: str | None = None
    split: str | None = None
    overwrite: bool = False
    single_writer: bool = False


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

    def told(self) -> str:
        """Counts for a person: pictures, splits, labels, and what was skipped."""
        splits = ", ".join(f"{name or 'no split'}: {rows}" for name, rows in sorted(self.splits.items()))
        text = f"{self.num_rows} pictures" + (f" ({splits})" if set(self.splits) != {""} else "")
        text += f", {self.labelled} with labels"
        if self.skipped:
            text += f", {self.skipped} other files skipped (such as {', '.join(self.skipped_examples[:3])})"
        return text

    def part_uris(self) -> list[str]:
        return [storage.join(self.uri, part) for part in self.parts]

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
        parts = [table for _, table in self._read_parts(wanted, split)]
        table = pa.concat_tables(parts) if parts else self.arrow_schema.empty_table()
        return table if columns is None else table.select(columns)

    def ids(self, split: str | None = None) -> np.ndarray:
        """The `region_id`s (of one split), int64, ascending: 8 bytes a region."""
        parts = [table["region_id"].to_numpy() for _, table in self._read_parts(["region_id", "split"], split)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def require_split(self, split: str | None) -> None:
        """Raises InputError where no row is of this split."""
        if split is not None and split not in self.splits:
            known = ", ".join(f"{name or '(none)'}: {rows}" for name, rows in sorted(self.splits.items()))
            raise InputError(f"no picture is of split {split!r}", where=self.source, found=known or "nothing")

    def _read_parts(self, columns: list[str] | None, split: str | None) -> Iterator[tuple[str, pa.Table]]:
        for uri in self.part_uris():
            fs, path = storage.arrow_filesystem(uri)
            table = pq.read_table(path, filesystem=fs, columns=columns)
            yield uri, table if split is None else table.filter(pc.equal(table["split"], split))


def region_key(path: str, window: tuple[int, int, int, int] | None = None, frame: int | None = None) -> str:
    """A region's identity: 32 hex digits of a 128-bit hash of path (relative to the root), window and frame."""
    text = f"{path}\0{window or ''}\0{'' if frame is None else frame}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def open_manifest(uri: str) -> Manifest | None:
    """The manifest at `uri`, or None where there is none. Raises InputError for one of a newer version or damaged."""
    try:
        text = storage.read_json(storage.join(uri, _SUMMARY))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise InputError("manifest is damaged", where=storage.join(uri, _SUMMARY), found=error) from None
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


def make_manifest(config: ManifestConfig) -> str:
    """The manifest job; returns the line that says where the result lies."""
    result = {"source": storage.absolute(config.source), "labels": config.labels, "split": config.split}
    with open_run(
        config.output, "manifest", result, config, overwrite=config.overwrite, single_writer=config.single_writer
    ) as run:
        if run.summary is not None:
            return f"complete: {run.summary['told']} in {run.output}; --overwrite lists again"
        manifest = build_manifest(config.source, run.output, labels=config.labels, split=config.split)
        run.set_manifest({"content": manifest.fingerprint, "split": None})
        run.success({"rows": manifest.num_rows, "told": manifest.told()})
        return f"{manifest.told()} in {run.output}"


def build_manifest(source: str, uri: str, *, labels: str | None = None, split: str | None = None) -> Manifest:
    """List a collection (folder, prefix or glob; see `collection`) and write its manifest to `uri`.

    `labels` names the folder of label files where the collection does not say it itself. Raises InputError for a
    source that does not exist or holds no picture; then nothing stays at `uri`.
    """
    listing = list_table(source) if is_table(source) else list_collection(source, labels=labels)
    writer = _Writer(uri, listing.extra_fields)
    try:
        for entry in listing:
            if split is None or entry.split == split:
                writer.add(entry)
        if not writer.num_rows:
            raise InputError(
                "no picture found",
                where=source,
                found=f"{listing.skipped} other files" if listing.skipped else "nothing",
                expected="names ending in .jpg, .png, .tif, ... under a folder or prefix, or a glob of any names",
            )
        return writer.finish(source, listing.root, listing.skipped, listing.skipped_examples)
    except BaseException:
        writer.abandon()
        raise


def manifest_of(run: Run, source: str, *, split: str | None = None, labels: str | None = None) -> Manifest:
    """The manifest a run works off: the one that `source` is, or the one of the collection, kept under OUTPUT/manifest.

    A resumed run reads that and never lists again. Raises InputError where the run was made from other content.
    """
    given = open_manifest(source)
    before = run.record.get("source")
    if given is None and before not in (None, storage.absolute(source)):
        raise InputError(
            "output folder holds another run: source differs",
            where=run.output,
            found=before,
            expected=source,
            todo="give another --output, the same source as before, or --overwrite",
        )
    manifest = given or open_manifest(run.at("manifest"))
    if manifest is None:
        manifest = build_manifest(source, run.at("manifest"), labels=labels)
        print(f"{manifest.told()}: {source}", file=sys.stderr, flush=True)
    manifest.require_split(split)
    run.set_manifest({"content": manifest.fingerprint, "split": split})
    run.remember(source=storage.absolute(source))
    return manifest


class _Writer:
    """Parquet parts of `ROWS_PER_PART` rows; counts and hashes what goes by."""

    def __init__(self, uri: str, extra: list[pa.Field]) -> None:
        self.uri = storage.absolute(uri)
        self.schema = pa.schema([*schema.MANIFEST, *extra])
        self.num_rows = 0
        self.labelled = 0
        self.splits: dict[str, int] = {}
        self.kinds: dict[str, int] = {}
        self._hash = hashlib.sha256()
        self._rows: list[dict[str, Any]] = []
        self._parts: list[str] = []
        self._last_path: bytes | None = None

    def add(self, entry: Entry) -> None:
        path = entry.path.encode("utf-8", "surrogateescape")
        if self._last_path is not None and path <= self._last_path:
            raise InputError("a path is listed twice or out of order", where=entry.uri)
        self._last_path = path
        key = region_key(entry.path)
        row = {name: getattr(entry, name) for name in _LISTED} | entry.columns
        row |= {"region_id": self.num_rows, "region_key": key, "window": None, "frame": None}
        row["path"], row["uri"] = _text(entry.path), _text(entry.uri)
        self._hash.update(
            f"{key} {entry.version} {entry.size_bytes} {entry.split} {entry.label_uri or ''}\n".encode(
                "utf-8", "surrogateescape"
            )
        )
        self.num_rows += 1
        self.labelled += entry.label_uri is not None
        self.splits[entry.split or ""] = self.splits.get(entry.split or "", 0) + 1
        self.kinds[entry.kind] = self.kinds.get(entry.kind, 0) + 1
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_PART:
            self._flush()

    def finish(self, source: str, root: str, skipped: int, examples: Iterable[str]) -> Manifest:
        self._flush()
        manifest = Manifest(
            uri=self.uri,
            source=source,
            root=root,
            num_rows=self.num_rows,
            fingerprint=self._hash.hexdigest()[:32],
            parts=tuple(self._parts),
            columns=tuple(self.schema.names),
            skipped=skipped,
            skipped_examples=tuple(examples),
            labelled=self.labelled,
            splits=self.splits,
            kinds=self.kinds,
        )
        storage.write_json(storage.join(self.uri, _SUMMARY), asdict(manifest))
        return manifest

    def abandon(self) -> None:
        for part in self._parts:
            storage.remove(storage.join(self.uri, part))

    def _flush(self) -> None:
        if not self._rows:
            return
        name = f"part-{len(self._parts):05d}.parquet"
        buffer = pa.BufferOutputStream()
        table = pa.Table.from_pylist(self._rows, self.schema)
        pq.write_table(table, buffer, compression="zstd", row_group_size=ROWS_PER_GROUP)
        storage.write_bytes(storage.join(self.uri, name), buffer.getvalue().to_pybytes())
        self._parts.append(name)
        self._rows.clear()


def _text(path: str) -> str:
    """Arrow strings are UTF-8: a local name's odd bytes are shown as \\xNN. Such a file then fails as its own row."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
