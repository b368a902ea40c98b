"""A table of pictures as a collection: a `.csv`, `.tsv` or `.parquet` file that names a picture in each row.

The columns are understood by their names (`table_columns`): the picture, and where they are there its label file and
its split. Every further column travels to the results. Text may be separated by commas, semicolons or tabs.
"""

from __future__ import annotations

import codecs
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
from pipeline.catalog.table_columns import OWN, is_picture_name, name_columns, text_columns
from pipeline.errors import InputError
from pipeline.storage import folders

SUFFIXES = (".csv", ".tsv", ".parquet")
_DELIMITERS = (",", ";", "\t")


def is_table(source: str) -> bool:
    """Whether a source is a table of pictures, by its suffix."""
    if not source.lower().endswith(SUFFIXES):
        return False
    try:
        return not folders.is_folder(source)
    except PermissionError:  # a store that may be read, not listed
        return True


def list_table(source: str) -> Collection:
    """The pictures that a table names, in path order. Relative paths start at the table's folder.

    Raises InputError for a table that cannot be read or names no pictures.
    """
    try:
        data = storage.read_bytes(source)
    except FileNotFoundError:
        raise InputError("source does not exist", where=source) from None
    try:
        table = pq.read_table(pa.BufferReader(data)) if source.lower().endswith(".parquet") else _read_text(data)
    except UnicodeDecodeError as error:
        raise InputError("table of pictures is not in UTF-8", where=source, found=error) from None
    except pa.ArrowInvalid as error:
        raise InputError("table of pictures cannot be read", where=source, found=error) from None
    table = name_columns(table, source)
    reserved = set(table.column_names) & (set(schema.predictions_schema().names) - OWN)
    if reserved:
        raise InputError("table of pictures uses a reserved column", where=source, found=sorted(reserved))
    extra = [field for field in table.schema if field.name not in OWN]
    root = posixpath.dirname(storage.absolute(source))
    return Collection(root, _rows(table, source, root, [field.name for field in extra]), extra_fields=extra)


def _read_text(data: bytes) -> pa.Table:
    """A table of text, by the delimiter of its first line. Raises ArrowInvalid, UnicodeDecodeError."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # Excel's "Unicode text"
        data = data.decode("utf-16").encode()
    data = data.removeprefix(codecs.BOM_UTF8)
    header = data.lstrip(b"\r\n").split(b"\n", 1)[0].decode().rstrip("\r")
    columns = {delimiter: next(csv.reader([header], delimiter=delimiter), []) for delimiter in _DELIMITERS}
    # a name of one column may hold a comma, so a known name counts more than how many there are
    delimiter = max(_DELIMITERS, key=lambda mark: (any(map(is_picture_name, columns[mark])), len(columns[mark])))
    texts = {name: pa.string() for name in text_columns(columns[delimiter])}
    return pyarrow.csv.read_csv(
        io.BytesIO(data),
        parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types=texts),
    )


def _rows(table: pa.Table, source: str, root: str, extra: list[str]) -> Iterator[Entry]:
    rows = table.to_pylist()
    for number, row in enumerate(rows, start=1):
        if not (row.get("uri") or row.get("path")):
            raise InputError("a row of the table of pictures names no picture", where=source, found=f"row {number}")
        row["uri"] = _resolve(root, row.get("uri") or row["path"])
        path = row.get("path") or row["uri"].removeprefix(f"{root}/")
        row["path"] = path.split("://", 1)[-1].lstrip("/")
    for row in sorted(rows, key=lambda row: row["path"].encode()):
        size_bytes, version = row.get("size_bytes"), row.get("version")
        if size_bytes is None:
            try:
                with storage.reachable(row["uri"]):
                    info = storage.info(row["uri"])
                size_bytes, version = info.size_bytes, info.version
            except (FileNotFoundError, InputError):
                pass  # a picture that is missing or out of reach fails as its own row later
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
