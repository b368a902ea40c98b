"""An S3 Inventory as a collection: the list of a bucket that S3 has written, in place of listing it.

The source is the inventory's `manifest.json` (CSV or Parquet, format 2016-11-30:
docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory.html). Its rows come in no order over many files, a
manifest is in path order: so rows are sorted in runs that are spilled to local disk, and the runs are merged. Memory
holds one run and a few rows of each, never the list.
"""

from __future__ import annotations

import heapq
import operator
import os
import posixpath
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.catalog.collection import Collection, list_files
from pipeline.errors import InputError
from pipeline.storage import FileInfo, folders

_ROWS_PER_RUN = 1_000_000
_ROWS_PER_BATCH = 4096  # of each run in memory while they are merged
_NEEDED = ("key", "islatest", "isdeletemarker", "size", "etag", "lastmodifieddate")
_ROW = pa.schema([("key", pa.string()), ("size", pa.int64()), ("version", pa.string())])


@dataclass(frozen=True)
class Inventory:
    """What a `manifest.json` says: which bucket was listed, in which files, with which columns."""

    bucket: str
    file_format: str  # CSV | Parquet
    columns: list[str]  # of CSV files, which have no header
    files: list[str]


def is_inventory(source: str) -> bool:
    """Whether a source is named like an inventory's `manifest.json`."""
    if not source.lower().endswith(".json"):
        return False
    try:
        return not folders.is_folder(source)
    except PermissionError:  # a store that may be read, not listed
        return True


def list_inventory(source: str, *, prefix: str | None = None, labels: str | None = None) -> Collection:
    """The pictures of an inventory, in path order, as a listing of `s3://BUCKET/PREFIX` would give them.

    Raises InputError for what is no inventory, is of another format, or lacks a file.
    """
    inventory = open_inventory(source)
    prefix = (prefix or "").strip("/")
    root = f"s3://{inventory.bucket}" + (f"/{prefix}" if prefix else "")
    return list_files(root, _files(inventory, f"{prefix}/" if prefix else ""), labels=labels)


def open_inventory(source: str) -> Inventory:
    """Read an inventory's `manifest.json`. Raises InputError."""
    try:
        about = storage.read_json(source)
        inventory = Inventory(
            about["sourceBucket"],
            about["fileFormat"],
            [name.strip() for name in about["fileSchema"].split(",")],
            [file["key"] for file in about["files"]],
        )
    except (FileNotFoundError, NotADirectoryError):
        raise InputError("source does not exist", where=source) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "not an S3 Inventory",
            where=source,
            found=f"{type(error).__name__}: {error}",
            expected="its manifest.json, with sourceBucket, fileFormat, fileSchema and files",
        ) from None
    if inventory.file_format not in ("CSV", "Parquet"):
        raise InputError(
            "this format of an S3 Inventory is not read",
            where=source,
            found=inventory.file_format,
            expected="CSV or Parquet",
            todo="set the inventory's output format to one of these",
        )
    if inventory.file_format == "CSV" and "Key" not in inventory.columns:
        raise InputError("the S3 Inventory has no column Key", where=source, found=", ".join(inventory.columns))
    destination = str(about.get("destinationBucket", "")).rsplit(":", 1)[-1]
    files = [_locate(source, destination, key) for key in inventory.files]
    return Inventory(inventory.bucket, inventory.file_format, inventory.columns, files)


def _locate(source: str, destination: str, key: str) -> str:
    """The URI of a data file: in the destination bucket, or beside a copy of the inventory."""
    folder, name = posixpath.dirname(source), posixpath.basename(key)
    places = [storage.join(posixpath.dirname(folder), "data", name), storage.join(folder, name)]
    if destination and not storage.is_local(source):
        places.insert(0, f"s3://{destination}/{key}")
    for place in places:
        if storage.exists(place):
            return place
    raise InputError("a file of the S3 Inventory is missing", where=places[0], todo="wait until it is delivered whole")


def _files(inventory: Inventory, prefix: str) -> Iterator[FileInfo]:
    """The current objects under a prefix, in the order of their keys' bytes."""
    with tempfile.TemporaryDirectory(prefix="inventory-") as folder:
        runs = list(_spill(_current(inventory, prefix), folder))
        # code points sort as UTF-8's bytes do
        for key, size_bytes, version in heapq.merge(*map(_read_run, runs), key=operator.itemgetter(0)):
            yield FileInfo(f"s3://{inventory.bucket}/{key}", key[len(prefix) :], size_bytes, version)


def _spill(tables: Iterator[pa.Table], folder: str) -> Iterator[str]:
    """Sorted runs of `_ROWS_PER_RUN` rows as files of Arrow record batches."""
    held: list[pa.Table] = []
    rows = 0
    for table in tables:
        held.append(table)
        rows += table.num_rows
        if rows >= _ROWS_PER_RUN:
            yield _write_run(held, folder)
            held, rows = [], 0
    if held:
        yield _write_run(held, folder)


def _write_run(tables: list[pa.Table], folder: str) -> str:
    path = os.path.join(folder, f"{len(os.listdir(folder)):05d}.arrow")
    whole = pa.concat_tables(tables)
    whole = whole.take(pc.sort_indices(whole, [("key", "ascending")]))
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, _ROW, options=options) as writer:
        writer.write_table(whole, max_chunksize=_ROWS_PER_BATCH)
    return path


def _read_run(path: str) -> Iterator[tuple[str, int, str]]:
    with pa.OSFile(path, "rb") as file, pa.ipc.open_stream(file) as reader:
        for batch in reader:
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _current(inventory: Inventory, prefix: str) -> Iterator[pa.Table]:
    """All rows of all files that are the current version of an object under the prefix, as `_ROW`."""
    read = _read_csv if inventory.file_format == "CSV" else _read_parquet
    for uri in inventory.files:
        try:
            for batch in read(uri, inventory.columns):
                yield _rows(batch, prefix, encoded=inventory.file_format == "CSV")
        except (pa.ArrowInvalid, pa.ArrowKeyError, OSError) as error:
            raise InputError("a file of the S3 Inventory cannot be read", where=uri, found=error) from None


def _rows(batch: pa.RecordBatch, prefix: str, encoded: bool) -> pa.Table:
    # Parquet calls them `e_tag`, `is_latest`, ...; CSV's schema `ETag`, `IsLatest`, ...
    columns: dict[str, Any] = {
        name.replace("_", "").lower(): batch.column(i) for i, name in enumerate(batch.schema.names)
    }
    keys = columns["key"].cast(pa.string())
    if encoded:
        keys = pa.array([unquote_plus(key) for key in keys.to_pylist()], pa.string())
    keep = pc.and_(pc.starts_with(keys, prefix), pc.invert(pc.ends_with(keys, "/")))  # "x/" stands for a folder
    if "islatest" in columns:
        keep = pc.and_(keep, _true(columns["islatest"], missing=True))
    if "isdeletemarker" in columns:
        keep = pc.and_(keep, pc.invert(_true(columns["isdeletemarker"], missing=False)))
    nothing = pa.nulls(len(keys), pa.string())
    version = nothing
    if "etag" in columns:
        etag = columns["etag"].cast(pa.string())
        version = pc.binary_join_element_wise("etag-", pc.utf8_trim(etag, '"'), "")
    elif "lastmodifieddate" in columns:
        version = pc.binary_join_element_wise("modified-", columns["lastmodifieddate"].cast(pa.string()), "")
    size = columns["size"].cast(pa.int64()) if "size" in columns else nothing.cast(pa.int64())
    return pa.table([keys, size, version], schema=_ROW).filter(keep)


def _true(column: pa.Array, missing: bool) -> pa.Array:
    flags = column if pa.types.is_boolean(column.type) else pc.equal(pc.utf8_lower(column), "true")
    return pc.fill_null(flags, missing)


def _read_csv(uri: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    fs, path = storage.arrow_filesystem(uri)
    wanted = [name for name in columns if name.lower() in _NEEDED]
    types = {name: pa.int64() if name == "Size" else pa.string() for name in wanted}
    with (
        fs.open_input_stream(path) as stream,  # .gz is unpacked on the way
        pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(column_names=columns),
            convert_options=pyarrow.csv.ConvertOptions(include_columns=wanted, column_types=types, null_values=[""]),
        ) as reader,
    ):
        yield from reader


def _read_parquet(uri: str, _: list[str]) -> Iterator[pa.RecordBatch]:
    fs, path = storage.arrow_filesystem(uri)
    with pq.ParquetFile(path, filesystem=fs) as file:
        names = file.schema_arrow.names
        wanted = [name for name in names if name.replace("_", "").lower() in _NEEDED]
        yield from file.iter_batches(batch_size=65536, columns=wanted)
