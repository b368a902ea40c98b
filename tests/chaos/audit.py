"""The one audit that every case ends in: the manifest's keys against the output's, rows against an undisturbed run's.

It reads Parquet by pyarrow alone: the code that is audited has no say in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import fsspec
import pyarrow.parquet as pq

Rows = Mapping[str, tuple[str, bytes | None]]  # region_key -> status and the mask's bytes


@dataclass(frozen=True)
class Audit:
    """What an output folder holds beside what it should. `regions` of the manifest, all other counts are of rows."""

    regions: int
    missing: int
    duplicated: int
    foreign: int
    differing: int  # another status, or another mask: one byte is enough
    statuses: Mapping[str, int]
    complete: bool  # `_SUCCESS` is there

    @property
    def clean(self) -> bool:
        return self.complete and not (self.missing or self.duplicated or self.foreign or self.differing)

    def __str__(self) -> str:
        return (
            f"{self.regions} regions: {self.missing} missing, {self.duplicated} twice, {self.foreign} foreign,"
            f" {self.differing} differ, {'complete' if self.complete else 'not complete'}, {dict(self.statuses)}"
        )


def audit(output: str, expected: Rows, *, manifest: str | None = None, endpoint: str | None = None) -> Audit:
    """Compare `output` (its own manifest, or the given one) with the rows of an undisturbed run.

    `endpoint` is the S3 server itself, where the job went through a proxy.
    """
    wanted = [key for (key,) in _columns(manifest or f"{output}/manifest", ["region_key"], endpoint)]
    found: dict[str, list[tuple[str, bytes | None]]] = {}
    for key, status, mask in _columns(f"{output}/predictions", ["region_key", "status", "mask"], endpoint):
        found.setdefault(key, []).append((status, mask))
    fs, path = _open(output, endpoint)
    return Audit(
        regions=len(wanted),
        missing=len(set(wanted) - found.keys()) + len(wanted) - len(set(wanted)),
        duplicated=sum(len(rows) - 1 for rows in found.values()),
        foreign=len(found.keys() - set(wanted)),
        differing=sum(row != expected[key] for key, rows in found.items() if key in expected for row in rows),
        statuses=Counter(status for rows in found.values() for status, _ in rows),
        complete=fs.exists(f"{path}/_SUCCESS"),
    )


def rows_of(output: str, endpoint: str | None = None) -> dict[str, tuple[str, bytes | None]]:
    """The rows of a run, to hold others to."""
    names = ["region_key", "status", "mask"]
    return {key: (status, mask) for key, status, mask in _columns(f"{output}/predictions", names, endpoint)}


def _columns(uri: str, names: list[str], endpoint: str | None) -> list[tuple]:
    fs, path = _open(uri, endpoint)
    rows: list[tuple] = []
    for file in sorted(fs.find(path)):
        if file.endswith(".parquet") and not file.rsplit("/", 1)[-1].startswith("."):
            with fs.open(file, "rb") as data:
                table = pq.read_table(data, columns=names)
            rows += zip(*(table[name].to_pylist() for name in names), strict=True)
    return rows


def _open(uri: str, endpoint: str | None) -> tuple[fsspec.AbstractFileSystem, str]:
    options = {"endpoint_url": endpoint, "use_listings_cache": False} if uri.startswith("s3://") else {}
    return fsspec.core.url_to_fs(uri, **options)
