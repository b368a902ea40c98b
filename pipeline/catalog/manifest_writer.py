"""A collection -> the manifest table. Writing streams: memory holds one part, not the collection."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.catalog import schema
from pipeline.catalog.area_of_interest import read_area
from pipeline.catalog.collection import Collection, list_collection
from pipeline.catalog.entry import Entry
from pipeline.catalog.inventory import is_inventory, list_inventory
from pipeline.catalog.manifest import SUMMARY, Manifest, region_key
from pipeline.catalog.picture_table import is_table, list_table
from pipeline.catalog.raster_windows import Headers, expand
from pipeline.catalog.scene_config import SceneConfig, require_raster
from pipeline.catalog.stac import is_stac, list_stac
from pipeline.errors import InputError
from pipeline.runtime.progress import ProgressLine

ROWS_PER_PART = 250_000
ROWS_PER_GROUP = 16_384
_LISTED = ("path", "uri", "kind", "size_bytes", "version", "split", "label_uri")


def build_manifest(
    source: str,
    uri: str,
    *,
    labels: str | None = None,
    split: str | None = None,
    prefix: str | None = None,
    scenes: SceneConfig | None = None,
    whole_scenes: bool = False,
) -> Manifest:
    """List a collection (see `collection`, `picture_table`, `inventory`) and write its manifest to `uri`.

    `prefix` is the part of an inventory's bucket that counts, and the root of its paths. `labels` names the folder of
    label files where the collection does not say it itself. `scenes` says how raster scenes become windows, which they
    do not with `whole_scenes`. Raises InputError for a source that does not exist, cannot
    be reached or holds no picture; then nothing stays at `uri`.
    """
    with storage.reachable(source):
        scenes = scenes or SceneConfig()
        listing = _listing(source, labels, prefix, scenes)
        headers = Headers()
        entries: Iterator[Entry] = (entry for entry in listing if split is None or entry.split == split)
        keep = None
        if scenes.area_of_interest is not None:
            require_raster("--area-of-interest")
            keep = read_area(scenes.area_of_interest).parts
        if importlib.util.find_spec("rasterio") is not None:
            entries = expand(entries, scenes.window_options, headers, keep=keep, whole=whole_scenes)
        return _write(source, uri, listing, entries, headers)


def _listing(source: str, labels: str | None, prefix: str | None, scenes: SceneConfig) -> Collection:
    if is_stac(source):
        require_raster("a source of STAC items")
        return list_stac(source, scenes.asset_names)
    if scenes.assets is not None:
        raise InputError(
            "--assets is for STAC items", where=source, expected="an ItemCollection, an item or a catalogue"
        )
    if is_inventory(source):
        return list_inventory(source, prefix=prefix, labels=labels)
    if prefix is not None:
        raise InputError("--prefix is for an S3 Inventory", where=source, todo="write it into --source")
    return list_table(source) if is_table(source) else list_collection(source, labels=labels)


def _write(source: str, uri: str, listing: Collection, entries: Iterator[Entry], headers: Headers) -> Manifest:
    shown = ProgressLine()
    writer = ManifestWriter(uri, listing.extra_fields)
    try:
        for entry in entries:
            writer.add(entry)
            if writer.num_rows % 10_000 == 0:
                shown.show(f"listing: {writer.num_rows} {'windows' if headers.scenes else 'pictures'}")
        if not writer.num_rows:
            raise InputError(
                "no picture found",
                where=source,
                found=_nothing(listing, headers),
                expected="names ending in .jpg, .png, .tif, ... under a folder or prefix, or a glob of any names",
            )
        return writer.finish(source, listing.root, listing.skipped, listing.skipped_examples, headers)
    except BaseException:
        writer.abandon()
        raise


def _nothing(listing: Collection, headers: Headers) -> str:
    if headers.scenes:
        return f"{headers.scenes} scenes, none of which meets --area-of-interest"
    return f"{listing.skipped} other files" if listing.skipped else "nothing"


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
        self._last: tuple[bytes, int, int] | None = None

    def add(self, entry: Entry) -> None:
        path = entry.path.encode("utf-8", "surrogateescape")
        x, y, _, _ = entry.window or (-1, -1, 0, 0)
        place = (path, y, x)
        if self._last is not None and place <= self._last:
            raise InputError("a path is listed twice or out of order", where=entry.uri, found=entry.path)
        self._last = place
        key = region_key(entry.path, entry.window)
        row = {name: getattr(entry, name) for name in _LISTED} | entry.columns
        row |= {"region_id": self.num_rows, "region_key": key, "frame": None, "scene_area": entry.area}
        row |= {"window": _rectangle(entry.window), "read_window": _rectangle(entry.read_window)}
        row["scene_width"], row["scene_height"] = entry.scene_size or (None, None)
        row["assets"] = [dict(zip(("uri", "index", "band"), a, strict=True)) for a in entry.assets] or None
        row["path"], row["uri"] = _text(entry.path), _text(entry.uri)
        self._hash.update(
            f"{key} {entry.version} {entry.size_bytes} {entry.split} {entry.label_uri or ''}{_scene(entry)}\n".encode(
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

    def finish(
        self, source: str, root: str, skipped: int, examples: Iterable[str], headers: Headers | None = None
    ) -> Manifest:
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
            scenes=asdict(headers) if headers is not None and (headers.scenes or headers.unreadable) else {},
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


def _rectangle(window: tuple[int, int, int, int] | None) -> dict[str, int] | None:
    return None if window is None else dict(zip(("x", "y", "width", "height"), window, strict=True))


def _scene(entry: Entry) -> str:
    """What of a scene's window can change its mask and is not in its key; nothing for pictures."""
    more = [entry.read_window, entry.assets or None, entry.area.hex() if entry.area else None]
    return f" {more}" if any(more) else ""


def _text(path: str) -> str:
    """Arrow strings are UTF-8: a local name's odd bytes are shown as \\xNN. Such a file then fails as its own row."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
