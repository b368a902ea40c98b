"""A table of pictures as a collection: a `.csv`, `.tsv` or `.parquet` file with a row for each picture.

The columns are known by their usual names (`ROLES`); every further column travels to the results.
"""

from __future__ import annotations

import csv
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

_SUFFIXES = (".csv", ".tsv", ".parquet")
# What a column is, by the names that people give it (in any case). `path` and `uri` may both be there.
ROLES: dict[str, tuple[str, ...]] = {
    "path": ("path", "image", "img", "picture", "file", "file_name", "filename", "filepath", "file_path")
    + ("image_path", "img_path"),
    "uri": ("uri", "url", "image_uri", "image_url"),
    "label": ("label", "label_uri", "label_path", "mask", "mask_path", "annotation", "segmentation"),
    "split": ("split",),
    "size_bytes": ("size_bytes",),
    "version": ("version",),
}


def is_table(source: str) -> bool:
    """Whether a source is a table of pictures, by its suffix."""
    return source.lower().endswith(_SUFFIXES) and not folders.is_folder(source)


def list_table(source: str) -> Collection:
    """The pictures that a table names, in path order. Relative paths start at the table's folder.

    Raises InputError for a table that cannot be read, has no column of pictures, or two for one role.
    """
    try:
        data = storage.read_bytes(source)
    except FileNotFoundError:
        raise InputError("source does not exist", where=source) from None
    try:
        if source.lower().endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(data))
        else:
            parsing = pyarrow.csv.ParseOptions(delimiter=_delimiter(data))
            table = pyarrow.csv.read_csv(io.BytesIO(data), parse_options=parsing)
    except pa.ArrowInvalid as error:
        raise InputError("table of pictures cannot be read", where=source, found=error) from None
    table = table.rename_columns(_by_role(table.column_names, source))
    reserved = set(table.column_names) & (set(schema.predictions_schema().names) - {*ROLES})
    if reserved:
        raise InputError("table of pictures uses a reserved column", where=source, found=sorted(reserved))
    extra = [field for field in table.schema if field.name not in ROLES]
    root = posixpath.dirname(storage.absolute(source))
    return Collection(root, _rows(table, root, [field.name for field in extra]), extra_fields=extra)


def _by_role(names: list[str], source: str) -> list[str]:
    """The column names, with the role in place of the name of each that has one."""
    found: dict[str, list[str]] = {}
    for name in names:
        for role, usual in ROLES.items():
            if name.strip().lower() in usual:
                found.setdefault(role, []).append(name)
    for role, columns in found.items():
        # a column of the role's own name is meant; others beside it travel
        columns = [name for name in columns if name == role] or columns
        if len(columns) > 1:
            raise InputError(
                f"table of pictures has {len(columns)} columns that may be the {role}",
                where=source,
                found=", ".join(columns),
                todo=f"rename the one that is meant to `{role}`",
            )
        found[role] = columns
    if not {"path", "uri"} & set(found):
        known = ", ".join([*ROLES["path"], *ROLES["uri"]])
        raise InputError("table of pictures has no column of pictures", where=source, found=names, expected=known)
    role_of = {columns[0]: role for role, columns in found.items()}
    return [role_of.get(name, name) for name in names]


def _delimiter(data: bytes) -> str:
    """What stands between the columns: comma, semicolon or tab, by the header line."""
    header = data.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode(errors="replace")
    counts = {mark: len(next(csv.reader([header], delimiter=mark), [])) for mark in ",;\t"}
    return max(counts, key=lambda mark: counts[mark])


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
        label = row.get("label")
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
