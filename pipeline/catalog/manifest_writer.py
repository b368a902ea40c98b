"""A collection -> the manifest table. Writing streams: memory holds one part, not the collection."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.catalog import schema
from pipeline.catalog.collection import list_collection
from pipeline.catalog.entry import Entry
from pipeline.catalog.inventory import is_inventory, list_inventory
from pipeline.catalog.manifest import SUMMARY, Manifest, region_key
from pipeline.catalog.picture_table import is_table, list_table
from pipeline.errors import InputError
from pipeline.runtime.progress import ProgressLine

ROWS_PER_PART = 250_000
ROWS_PER_GROUP = 16_384
_LISTED = ("path", "uri", "kind", "size_bytes", "version", "split", "label_uri")


def build_manifest(
    source: str, uri: str, *, labels: str | None = None, split: str | None = None, prefix: str | None = None
) -> Manifest:
    """List a collection (see `collection`, `picture_table`, `inventory`) and write its manifest to `uri`.

    `prefix` is the part of an inventory's bucket that counts, and the root of its paths. `labels` names the folder of
    label files where the collection does not say it itself. Raises InputError for a source that does not exist, cannot
    be reached or holds no picture; then nothing stays at `uri`.
    """
    with storage.reachable(source):
        return _build(source, uri, labels, split, prefix)


def _build(source: str, uri: str, labels: str | None, split: str | None, prefix: str | None) -> Manifest:
    if is_inventory(source):
        listing = list_inventory(source, prefix=prefix, labels=labels)
    elif prefix is not None:
        raise InputError("--prefix is for an S3 Inventory", where=source, todo="write it into --source")
    else:
        listing = list_table(source) if is_table(source) else list_collection(source, labels=labels)
    shown = ProgressLine()
    writer = ManifestWriter(uri, listing.extra_fields)
    try:
        for entry in listing:
            if split is None or entry.split == split:
                writer.add(entry)
                if writer.num_rows % 10_000 == 0:
                    shown.show(f"listing: {writer.num_rows} pictures")
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


class ManifestWriter:
    """Writes Parquet parts of `ROWS_PER_PART` rows, and counts and hashes the rows."""

    def __init__(self, uri: str, extra: list[pa.Field]) -> None:
        self.uri = storage.absolute(uri)
        self.schema = pa.schema([*schema.MANIFEST, *extra])
        self.num_rows = 0
        self.labelled = 0
        self.splits: dict[str, int] = {}
        self.kinds: dict[str, int] = {}
        self._hash = hashlib.sha256()
        self._rows: list[dict[str, Any]] = []  # dicts weigh ten times what Arrow takes: a group of them at most
        self._groups: list[pa.Table] = []
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
        if len(self._rows) == min(ROWS_PER_GROUP, ROWS_PER_PART):
            self._pack()
        if self.num_rows % ROWS_PER_PART == 0:
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
        storage.write_json(storage.join(self.uri, SUMMARY), asdict(manifest))
        return manifest

    def abandon(self) -> None:
        for part in self._parts:
            storage.remove(storage.join(self.uri, part))

    def _pack(self) -> None:
        self._groups.append(pa.Table.from_pylist(self._rows, self.schema))
        self._rows.clear()

    def _flush(self) -> None:
        if self._rows:
            self._pack()
        if not self._groups:
            return
        name = f"part-{len(self._parts):05d}.parquet"
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(self._groups), buffer, compression="zstd", row_group_size=ROWS_PER_GROUP)
        storage.write_bytes(storage.join(self.uri, name), buffer.getvalue().to_pybytes())
        self._parts.append(name)
        self._groups.clear()


def _text(path: str) -> str:
    """Arrow strings are UTF-8: a local name's odd bytes are shown as \\xNN. Such a file then fails as its own row."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
