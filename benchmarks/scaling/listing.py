"""A million keys of a simulated S3 bucket: listed, made a manifest, and made one from an inventory."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import gzip
import io
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.catalog.manifest_writer import build_manifest
from pipeline.runtime.options import MEASUREMENT, option
from pipeline.storage import folders
from scaling.measure import folder_for, header, measure

_PAGE = 1000  # keys of one answer of S3


@dataclass
class ListingConfig:
    """List a simulated S3 bucket, make its manifest, and make it once more from an S3 Inventory."""

    keys: int = option(1000000, "Objects in the bucket.", group=MEASUREMENT)
    page_ms: float = option(0.0, "What the store takes for a page of 1,000 keys.", group=MEASUREMENT)


def listing(config: ListingConfig) -> None:
    with folder_for(None) as folder:
        header(f"{config.keys:,} keys")
        measure("listed", _listed, config.keys, config.page_ms)
        measure("listed into a manifest", _manifested, config.keys, config.page_ms, "s3://bucket", f"{folder}/listed")
        source = _write_inventory(f"{folder}/inventory", config.keys)
        measure("inventory (CSV) into a manifest", _manifested, config.keys, config.page_ms, source, f"{folder}/made")
    print("\nThe S3 client is the real one; its answers come from memory, a page of 1,000 keys at a time.")


def _key(i: int) -> str:
    return f"footage/{i // 1000:06d}/{i:09d}.jpg"


def _simulate(keys: int, page_ms: float) -> None:
    """In this process `s3://` is a store whose listing is made up page by page."""
    import fsspec
    import s3fs

    class Simulated(s3fs.S3FileSystem):  # type: ignore[misc]  # s3fs carries no types
        async def _list_pages(self, method: str, **options: Any) -> AsyncIterator[dict[str, Any]]:
            for begin in range(0, keys, _PAGE):
                await asyncio.sleep(page_ms / 1000)
                numbers = range(begin, min(keys, begin + _PAGE))
                yield {"Contents": [{"Key": _key(i), "Size": 10_000 + i, "ETag": f'"{i:032x}"'} for i in numbers]}

        async def _isdir(self, path: str) -> bool:
            return path.rstrip("/") == "bucket"

    fsspec.register_implementation("s3", Simulated, clobber=True)


def _listed(keys: int, page_ms: float) -> str:
    _simulate(keys, page_ms)
    return f"{sum(1 for _ in folders.walk_files('s3://bucket')):,} files"


def _manifested(keys: int, page_ms: float, source: str, uri: str) -> str:
    _simulate(keys, page_ms)
    with contextlib.redirect_stderr(io.StringIO()):
        return f"{build_manifest(source, uri).num_rows:,} rows"


def _write_inventory(folder: str, keys: int) -> str:
    order = np.random.default_rng(1).permutation(keys)
    files = []
    for number, numbers in enumerate(np.array_split(order, max(1, keys // 250_000))):
        text = io.StringIO()
        rows = (["bucket", _key(i), 10_000 + i, f"{i:032x}"] for i in numbers.tolist())
        csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)
        storage.write_bytes(f"{folder}/data/{number}.csv.gz", gzip.compress(text.getvalue().encode(), 1))
        files.append({"key": f"data/{number}.csv.gz"})
    about = {"sourceBucket": "bucket", "fileFormat": "CSV", "fileSchema": "Bucket, Key, Size, ETag", "files": files}
    storage.write_json(f"{folder}/now/manifest.json", about)
    return f"{folder}/now/manifest.json"
