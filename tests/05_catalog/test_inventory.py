"""An S3 Inventory gives the manifest that listing the bucket gives."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import storage
from pipeline.catalog import inventory
from pipeline.catalog.job import ManifestConfig, make_manifest
from pipeline.catalog.manifest_writer import build_manifest
from pipeline.errors import InputError
from pipeline.storage import folders

KEYS = [
    *(f"drive/train/{name}" for name in ("a b.jpg", "a+b.jpg", "a%20b.jpg", "ü#1?.JPG", 'a"b,c.jpg', "漢字.png")),
    *(f"drive/train/{name}" for name in ("a.jpg", "a-b.jpg", "a/b.jpg", "ab.jpg")),
    *("drive/notes.txt", "drive/val/x&y=z.jpg", "drive/val/~.png", "other/1.jpg", "drive-2/1.jpg"),
]


def write_inventory(s3: Any, file_format: str, files: int = 3, **extra: Any) -> str:
    """What S3 would deliver for the bucket: rows in no order over several files; returns the manifest.json's URI.

    With noncurrent versions and delete markers among the rows, as in a bucket of versions.
    """
    rows = [
        {"key": f.path, "is_latest": True, "is_delete_marker": False, "size": f.size_bytes, "e_tag": f.version[5:]}
        for f in folders.walk_files(s3.uri())
    ]
    rows += [dict(row, is_latest=False, size=1, e_tag="old") for row in rows[::2]]
    rows += [{"key": "drive/gone.jpg", "is_latest": True, "is_delete_marker": True, "size": None, "e_tag": None}]
    rows += [{"key": "drive/folder/", "is_latest": True, "is_delete_marker": False, "size": 0, "e_tag": "x"}]
    rows = [dict(row, bucket=s3.bucket) for row in rows]
    rows.sort(key=lambda row: hash((row["key"], row["e_tag"])))
    names = ["bucket", "key", "is_latest", "is_delete_marker", "size", "e_tag"]
    described = []
    for i in range(files):
        mine = [[row[name] for name in names] for row in rows[i::files]]
        if file_format == "CSV":
            lines = [",".join(f'"{csv_value(name, v)}"' for name, v in zip(names, row, strict=True)) for row in mine]
            data, suffix = gzip.compress("\n".join([*lines, ""]).encode()), "csv.gz"
        else:
            table = pa.table([list(column) for column in zip(*mine, strict=True)], names=names)
            buffer = io.BytesIO()
            pq.write_table(table, buffer)
            data, suffix = buffer.getvalue(), "parquet"
        key = f"lists/{s3.bucket}/daily/data/{i}.{suffix}"
        storage.write_bytes(f"s3://{extra['to'].bucket}/{key}", data)
        described.append({"key": key, "size": len(data), "MD5checksum": ""})
    about = {
        "sourceBucket": s3.bucket,
        "destinationBucket": f"arn:aws:s3:::{extra['to'].bucket}",
        "version": "2016-11-30",
        "fileFormat": file_format,
        "fileSchema": "Bucket, Key, IsLatest, IsDeleteMarker, Size, ETag" if file_format == "CSV" else "message ...",
        "files": described,
    }
    uri = f"s3://{extra['to'].bucket}/lists/{s3.bucket}/daily/2026-01-02T01-00Z/manifest.json"
    storage.write_json(uri, about)
    return uri


def csv_value(name: str, value: Any) -> str:
    if value is None:
        return ""
    return quote_plus(value, safe="/") if name == "key" else str(value).lower()


@pytest.fixture
def lists(s3: Any) -> Iterator[Any]:
    """A second bucket, where inventories are delivered."""
    fs = storage.filesystem(s3.uri())[0]
    fs.mkdir(f"{s3.bucket}-lists")
    yield type(s3)(s3.endpoint, f"{s3.bucket}-lists")


@pytest.fixture
def bucket(s3: Any) -> Any:
    grey = io.BytesIO()
    Image.new("L", (2, 2)).save(grey, "PNG")
    for i, key in enumerate(KEYS):
        storage.write_bytes(f"s3://{s3.bucket}/{key}", b"x" * (i + 1))
    for key in ("drive/trainannot/a b.png", "drive/trainannot/a+b.png"):
        storage.write_bytes(f"s3://{s3.bucket}/{key}", grey.getvalue())
    return s3


@pytest.mark.parametrize("file_format", ["CSV", "Parquet"])
def test_an_inventory_gives_the_manifest_that_a_listing_gives(
    file_format: str, bucket: Any, lists: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "_ROWS_PER_RUN", 4)  # many sorted runs are merged
    uri = write_inventory(bucket, file_format, to=lists)
    listed = build_manifest(bucket.uri(), str(tmp_path / "listed"))
    assert listed.num_rows == len(KEYS) - 1 and listed.skipped == 1 and listed.labelled == 2
    made = build_manifest(uri, str(tmp_path / "made"))
    assert made.table().equals(listed.table()) and made.fingerprint == listed.fingerprint
    assert (made.root, made.skipped_examples, made.splits) == (listed.root, listed.skipped_examples, listed.splits)
    below = build_manifest(bucket.uri("drive"), str(tmp_path / "below"))
    make_manifest(ManifestConfig(uri, str(tmp_path / "job"), prefix="drive/"))
    part = pq.read_table(tmp_path / "job" / "part-00000.parquet")
    assert part.equals(below.table().replace_schema_metadata(part.schema.metadata))
    assert "drive-2" not in str(part["uri"].to_pylist())


def test_a_copy_of_an_inventory_is_read_beside_its_manifest(bucket: Any, lists: Any, tmp_path: Path) -> None:
    uri = write_inventory(bucket, "CSV", to=lists)
    for file in folders.walk_files(lists.uri("lists", bucket.bucket)):
        storage.write_bytes(str(tmp_path / "copy" / file.path), storage.read_bytes(file.uri))
    copied = build_manifest(
        str(tmp_path / "copy" / "daily" / "2026-01-02T01-00Z" / "manifest.json"), str(tmp_path / "m")
    )
    assert copied.fingerprint == build_manifest(uri, str(tmp_path / "m2")).fingerprint


def test_bad_inventories(bucket: Any, lists: Any, tmp_path: Path) -> None:
    uri = write_inventory(bucket, "CSV", to=lists)
    about = storage.read_json(uri)

    def refused(text: str, **change: Any) -> None:
        storage.write_json(uri, {**about, **change})
        with pytest.raises(InputError, match=text):
            build_manifest(uri, str(tmp_path / "m"))
        assert not (tmp_path / "m").exists()

    refused("this format of an S3 Inventory is not read.*found ORC; expected CSV or Parquet", fileFormat="ORC")
    refused("no column Key", fileSchema="Bucket, Size")
    refused("a file of the S3 Inventory is missing", files=[*about["files"], {"key": "lists/none.csv.gz"}])
    refused("not an S3 Inventory.*sourceBucket", sourceBucket=None, files=None)
    broken = about["files"][1]["key"]
    storage.write_bytes(f"s3://{lists.bucket}/{broken}", storage.read_bytes(f"s3://{lists.bucket}/{broken}")[:-30])
    refused("cannot be read")
    (tmp_path / "x.json").write_text(json.dumps({"rows": 3}))
    with pytest.raises(InputError, match="not an S3 Inventory"):
        build_manifest(str(tmp_path / "x.json"), str(tmp_path / "m"))
    with pytest.raises(InputError, match="source does not exist"):
        build_manifest(str(tmp_path / "none" / "manifest.json"), str(tmp_path / "m"))
    with pytest.raises(InputError, match="--prefix is for an S3 Inventory"):
        build_manifest(bucket.uri(), str(tmp_path / "m"), prefix="drive")
