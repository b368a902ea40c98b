"""The worker side of the evaluate job: rows of predictions beside their labels -> rows of the `evaluation` table.

The predictions are worked off in units, ranges of rows of their files that are fixed by the predictions alone. A unit's
rows become one file, put whole; a unit whose file is there already is not scored again. So whatever dies, every picture
is counted once, and the same command goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.catalog import schema
from pipeline.catalog.manifest import region_key
from pipeline.evaluate.accumulator import Accumulator
from pipeline.evaluate.label_index import find_labels, find_labels_by_path
from pipeline.evaluate.predictions import Piece, read_rows
from pipeline.labels import LabelSet
from pipeline.metrics import ConfusionMatrix
from pipeline.reading.regions import ReadOptions, Region, shared_reader
from pipeline.reading.scene_window import grid_of_result
from pipeline.tables.prediction_table import mask_of

STOP = "_stop"  # while it lies in the output folder, units are passed over: nothing is written after bad input is met
_SCENE = ["window", "scene_width", "scene_height", "crs", "transform"]
_READ = ["region_key", "path", "uri", *_SCENE, "status", "error", *schema.MASK_COLUMNS]


@dataclass(frozen=True)
class Scoring:
    """What scoring a unit needs. `split` keeps the predictions of that split; None keeps all."""

    output: str
    label_set: LabelSet
    extra: tuple[pa.Field, ...]  # travelling columns of the predictions
    by_path: bool
    split: str | None = None
    labelled_only: bool = False  # rows without a truth are of another split, not missing
    options: ReadOptions = ReadOptions()

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([*schema.EVALUATION, *self.extra])

    @property
    def group_by(self) -> list[str]:
        kinds = (
            pa.types.is_string,
            pa.types.is_large_string,
            pa.types.is_integer,
            pa.types.is_boolean,
            pa.types.is_date,
        )
        return [item.name for item in self.extra if any(kind(item.type) for kind in kinds)]

    def part_uri(self, unit: int) -> str:
        return storage.join(self.output, "pictures", f"part-{unit:05d}.parquet")


def score_unit(unit: int, pieces: list[Piece], scoring: Scoring, index: pa.Table) -> dict[str, Any]:
    """Score one unit and write its part, unless the part is there already.

    Returns JSON values: the `unit`, and its sums (`accumulator`); or `unknown`, a label value outside the label set,
    which is no row of a result, so nothing is written then; or neither, where another unit has met one.
    """
    part = scoring.part_uri(unit)
    stop = storage.join(scoring.output, STOP)
    if storage.exists(part):
        table = _read_part(part)
    else:
        if storage.exists(stop):
            return {"unit": unit}
        rows: list[dict[str, Any]] = []
        for row in _score(read_rows(pieces, _columns(scoring)), scoring, index):
            if "unknown" in row:
                return {"unit": unit, **row}
            rows.append(row)
        table = pa.Table.from_pylist(rows, schema=scoring.schema)
        if storage.exists(stop):
            return {"unit": unit}
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd")
        storage.write_bytes(part, buffer.getvalue().to_pybytes())
    accumulator = Accumulator(scoring.label_set.num_classes).add(table, scoring.group_by)
    for row in accumulator.worst:
        row["unit"] = unit
    return {"unit": unit, "accumulator": accumulator.to_json()}


def _score(batches: Iterator[pa.RecordBatch], scoring: Scoring, index: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows of predictions -> rows of evaluation, or {"unknown": ...} for a label value outside the label set."""
    reader = shared_reader(scoring.options, json.dumps(scoring.label_set.to_json()))
    for region in reader.read(_with_labels(batches, scoring, index), pictures=False, labels=True):
        if region.labels is not None and region.labels.unknown:
            value, pixels = min(region.labels.unknown.items())
            found = {"value": value, "pixels": pixels, "are_colors": region.labels.are_colors}
            yield {"unknown": {"uri": region.row["label_uri"], **found}}
            return
        yield _score_one(region, scoring.label_set)


def _with_labels(batches: Iterator[pa.RecordBatch], scoring: Scoring, index: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in batches:
        if scoring.split is not None:
            batch = batch.filter(pc.fill_null(pc.equal(batch["split"], scoring.split), False))
        rows = batch.to_pylist()
        if scoring.by_path:
            labels = find_labels_by_path(index, [row["path"] for row in rows])
        else:
            labels = find_labels(index, [bytes.fromhex(row["region_key"]) for row in rows])
            # a labelled collection is listed with a row a scene, whatever windows the predictions have
            lacking = [i for i, row in enumerate(rows) if labels[i] is None and row["window"] is not None]
            scenes = [bytes.fromhex(region_key(rows[i]["path"])) for i in lacking]
            for i, label_uri in zip(lacking, find_labels(index, scenes), strict=True):
                labels[i] = label_uri
        for row, label_uri in zip(rows, labels, strict=True):
            if label_uri is not None or not scoring.labelled_only:
                yield row | {"label_uri": label_uri}


def _score_one(region: Region, label_set: LabelSet) -> dict[str, Any]:
    row = region.row
    mask, failure = _mask_of(row)
    result = {**row, "status": "ok", "error": None}
    truth = region.truth
    if row["label_uri"] is None:
        return result | {"status": "label_missing", "error": "no label file"}
    if truth is None:
        return result | {"status": "label_error", "error": f"{row['label_uri']}: {region.truth_error}"}
    if row["window"] is not None and grid_of_result(row) is None:  # older rows: the whole label was read
        x, y, width, height = (row["window"][side] for side in ("x", "y", "width", "height"))
        truth = truth[y : y + height, x : x + width]
    if mask is None:
        result |= {"status": "not_predicted", "error": failure}
    elif mask.shape != truth.shape:
        found = f"the label is {truth.shape[1]} x {truth.shape[0]}, the mask {mask.shape[1]} x {mask.shape[0]}"
        return result | {"status": "size_mismatch", "error": f"{row['label_uri']}: {found}"}
    matrix = ConfusionMatrix(label_set.num_classes).update(truth, mask, label_set.ignore_value)
    truth_ids, prediction_ids, pixels = matrix.sparse()
    return result | {
        "truth": truth_ids,
        "prediction": prediction_ids,
        "pixels": pixels,
        "unpredicted": matrix.unpredicted.tolist(),
        "ignored": matrix.ignored,
        "pixel_accuracy": matrix.pixel_accuracy,
        "miou": matrix.miou,
    }


def _mask_of(row: dict[str, Any]) -> tuple[np.ndarray | None, str | None]:
    """The mask of a row of predictions, or why there is none."""
    if row["status"] != "ok":
        return None, f"{row['status']}: {row['error']}"
    try:
        return mask_of(row), None
    except (TypeError, ValueError) as error:
        return None, f"damaged mask: {error}"


def _columns(scoring: Scoring) -> list[str]:
    return list(dict.fromkeys([*_READ, *(item.name for item in scoring.extra)]))


def _read_part(uri: str) -> pa.Table:
    fs, path = storage.arrow_filesystem(uri)
    with pq.ParquetFile(path, filesystem=fs) as file:
        return file.read()
