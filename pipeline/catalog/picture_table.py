"""A table of pictures as a collection: a `.csv` or `.parquet` file with a column `path` or `uri`.

`label` (or `label_uri`) and `split` are taken where they stand; every further column travels to the results.
"""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.catalog import schema
from pipeline.catalog.collection import Collection
from pipeline.catalog.entry import Entry, kind_of, split_of
from pipeline.errors import InputError
from pipeline.storage import folders

_OWN = {"path", "uri", "label", "label_uri", "split", "size_bytes", "version"}


def is_table(source: str) -> bool:
    """Whether a source is a table of pictures, by its suffix."""
    return source.lower().endswith((".csv", ".parquet")) and not folders.is_folder(source)


def list_table(source: str) -> Collection:
    """The pictures that a table names, in path order. Relative paths start at the table's folder.

    Raises InputError for a table that cannot be read or has neither `path` nor `uri`.
    """
    try:
        data = storage.read_bytes(source)
    except FileNotFoundError:
        raise InputError("source does not exist", where=source) from None
    try:
        if source.lower().endswith(".csv"):
            table = pyarrow.csv.read_csv(io.BytesIO(data))
        else:
            table = pq.read_table(pa.BufferReader(data))
    except pa.ArrowInvalid as error:
        raise InputError("table of pictures cannot be read", where=source, found=error) from None
    if not {"path", "uri"} & set(table.column_names):
        raise InputError("table of pictures has no column `path` or `uri`", where=source, found=table.column_names)
    reserved = set(table.column_names) & (set(schema.predictions_schema().names) - _OWN)
    if reserved:
        raise InputError("table of pictures uses a reserved column", where=source, found=sorted(reserved))
    extra = [field for field in table.schema if field.name not in _OWN]
    root = posixpath.dirname(storage.absolute(source))
    return Collection(root, _rows(table, root, [field.name for field in extra]), extra_fields=extra)


def _rows(table: pa.Table, root: str, extra: list[str]) -> Iterator[Entry]:
    rows = table.to_pylist()
    for row in rows:
        row["uri"] = _resolve(root, row.get("uri") or row["path"])
        path = row.get("path") or row["uri"].removeprefix(f"{root}/")
        row["path"] = path.split("://", 1)[-1].lstrip("/")
    for row in sorted(rows, key=lambda row: row["path"].encode()):
        size_bytes, version = row.get("size_bytes"), row.get("version")
        if size_bytes is None:
            try:
                info = storage.info(row["uri"])
                size_bytes, version = info.size_bytes, info.version
            except FileNotFoundError:
                pass  # one missing picture fails as its own row later
        label = row.get("label_uri") or row.get("label")
        yield Entry(
            path=row["path"],
            uri=row["uri"],
            kind=kind_of(row["path"]) or "picture",
            size_bytes=size_bytes,
            version=version,
            split=row["split"] if "split" in row else split_of(row["path"]),
            label_uri=_resolve(root, label) if label else None,
            columns={name: row[name] for name in extra},
        )


def _resolve(root: str, path: str) -> str:
    return path if "://" in path or path.startswith("/") else storage.join(root, path)
