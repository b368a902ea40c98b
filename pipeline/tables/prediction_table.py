"""The table of predictions as it lies in an output folder: which files hold committed rows, and what is in a row.

OUTPUT/predictions/   what everybody reads: `ok-*.parquet`, and `failed-*.parquet` once a run has ended
OUTPUT/_attempts/     rows of an unfinished run: `held/` the failed ones, a folder an attempt for the rest
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.catalog import schema
from pipeline.errors import InputError
from pipeline.labels import LabelSet
from pipeline.storage import folders
from pipeline.tables.masks import decode_mask

PREDICTIONS, ATTEMPTS, HELD = "predictions", "_attempts", "held"
_ROWS_READ = 16  # at once; with probabilities one may be tens of megabytes


def committed_files(output: str) -> list[str]:
    """The files of committed rows, relative to the output folder: the public ones, and the failed rows held back."""
    held = [f"{ATTEMPTS}/{HELD}/{name}" for name in folders.list_names(storage.join(output, ATTEMPTS, HELD))]
    public = [f"{PREDICTIONS}/{name}" for name in folders.list_names(storage.join(output, PREDICTIONS))]
    return [name for name in [*public, *held] if name.endswith(".parquet")]


def committed_ids(output: str, num_ids: int, *, retry_failed: bool = False) -> np.ndarray:
    """bool[num_ids]: the regions with a row in an output folder; with `retry_failed` only those with an `ok` row."""
    done = np.zeros(num_ids, bool)
    for name in committed_files(output):
        if is_ok(name) or not retry_failed:
            done[read_ids(storage.join(output, name))] = True
    return done


def is_ok(name: str) -> bool:
    """Whether a file of committed rows is one of `ok` rows."""
    return name.rsplit("/", 1)[-1].startswith("ok-")


def prediction_files(uri: str) -> list[str]:
    """The Parquet files of committed rows, for a segment job's OUTPUT or its `predictions/`."""
    uri = storage.absolute(uri)
    if not uri.endswith("/" + PREDICTIONS):
        uri = storage.join(uri, PREDICTIONS)
    return [storage.join(uri, name) for name in folders.list_names(uri) if name.endswith(".parquet")]


def read_predictions(uri: str, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """The committed rows of a segment run, in no particular order, one dict each, with arrays as in `with_arrays`.

    `uri` is the segment job's OUTPUT or its `predictions/`. Raises InputError where there are none. `columns` limits
    what is read; with one of `schema.PIXEL_COLUMNS`, what is needed to decode it is read as well.
    """
    files = prediction_files(uri)
    if not files and not folders.is_folder(uri):
        raise InputError("predictions do not exist", where=uri, expected="the OUTPUT of jobs/segment.py")
    wanted = columns
    if columns is not None and not set(columns).isdisjoint(schema.PIXEL_COLUMNS):
        wanted = list(dict.fromkeys([*columns, *schema.MASK_COLUMNS]))
    for file in files:
        fs, path = storage.arrow_filesystem(file)
        with pq.ParquetFile(path, filesystem=fs) as parquet:
            for batch in parquet.iter_batches(batch_size=_ROWS_READ, columns=wanted):
                yield from map(with_arrays, batch.to_pylist())


def with_arrays(row: dict[str, Any]) -> dict[str, Any]:
    """The row with numpy arrays in place of bytes: mask and confidence H x W, probabilities K x H x W (read-only)."""
    arrays = {"mask": mask_of(row)} if row.get("mask") is not None else {}
    for name in ("confidence", "probabilities"):
        if row.get(name) is not None:
            planes = np.frombuffer(row[name], np.uint8).reshape(-1, row["height"], row["width"])
            arrays[name] = planes[0] if name == "confidence" else planes
    return row | arrays


def mask_of(row: dict[str, Any]) -> np.ndarray:
    """The class map (H x W) of a row that has the columns `schema.MASK_COLUMNS` (version 1: all but mask_format)."""
    return decode_mask(row["mask"], row["height"], row["width"], row["mask_dtype"], row.get("mask_format"))


def predictions_metadata(uri: str) -> dict[str, str]:
    """What the Parquet files say of their run: label_set (JSON), schema_version, the fingerprints.

    Raises InputError where there are no predictions, or of a newer schema.
    """
    files = prediction_files(uri)
    if not files:
        raise InputError("no predictions found", where=uri, expected="the OUTPUT of jobs/segment.py")
    fs, path = storage.arrow_filesystem(files[0])
    try:
        found = pq.read_schema(path, filesystem=fs).metadata or {}
    except pa.ArrowInvalid as error:
        raise InputError("predictions are damaged", where=files[0], found=error) from None
    text = {key.decode(): value.decode() for key, value in found.items()}
    if "label_set" not in text:
        raise InputError("not the predictions of this project", where=files[0], expected="a label set in the metadata")
    if int(text.get("schema_version", 0)) > schema.SCHEMA_VERSION:
        raise InputError("predictions are of a newer version", where=uri, todo="update this project")
    return text


def metadata(
    label_set: LabelSet, result_fingerprint: str, manifest_fingerprint: str, mask_format: str = "raw"
) -> dict[str, str]:
    """The Parquet metadata of a run's predictions."""
    return {
        "schema_version": str(schema.SCHEMA_VERSION),
        "label_set": json.dumps(label_set.to_json()),
        "mask_format": mask_format,
        "result_fingerprint": result_fingerprint,
        "manifest_fingerprint": manifest_fingerprint,
    }


def read_file(uri: str, columns: list[str] | None = None) -> pa.Table:
    """One file, whole."""
    fs, path = storage.arrow_filesystem(uri)
    with pq.ParquetFile(path, filesystem=fs) as parquet:
        return parquet.read(columns=columns)


def read_ids(uri: str) -> np.ndarray:
    """int64[n]: the `region_id` of each row of a file."""
    return read_file(uri, ["region_id"])["region_id"].to_numpy()
