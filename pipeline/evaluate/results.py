"""What an evaluation comes to: metrics as JSON and Parquet, the groups, and the report with its worst pictures."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.catalog import schema
from pipeline.evaluate import report
from pipeline.evaluate.accumulator import Accumulator
from pipeline.evaluate.predictions import Predictions, read_rows
from pipeline.labels import LabelSet
from pipeline.reading.regions import ReadOptions, Region, RegionReader
from pipeline.runtime.progress import listed
from pipeline.runtime.run import Run
from pipeline.tables.prediction_table import mask_of

STATUS_TEXT = {
    "ok": "scored",
    "not_predicted": "not predicted",
    "label_missing": "without label",
    "label_error": "with an unreadable label",
    "size_mismatch": "with a label of another size",
}


@dataclass(frozen=True)
class Results:
    """An accumulator with what it was made from; `num_labels` label files were there to be matched."""

    accumulator: Accumulator
    label_set: LabelSet
    predictions: Predictions
    num_labels: int
    split: str | None
    labels: str

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """What metrics.json holds."""
        accumulator = self.accumulator
        matched = accumulator.pictures - accumulator.statuses["label_missing"]
        return {
            **accumulator.matrix.metrics(self.label_set.names),
            "pictures": {status: accumulator.statuses[status] for status in schema.EVALUATION_STATUSES},
            "labels_without_prediction": max(0, self.num_labels - matched),
            "problems": [
                {"path": path, "status": status, "error": error} for path, status, error in sorted(accumulator.problems)
            ],
            "label_set": self.label_set.to_json(),
            "split": self.split,
            "predictions": {"uri": self.predictions.uri, "fingerprint": self.predictions.fingerprint},
            "labels": self.labels,
            "schema_version": schema.SCHEMA_VERSION,
        }

    @property
    def summary(self) -> dict[str, Any]:
        """What `_SUCCESS` holds."""
        wanted = ("miou", "pixel_accuracy", "classes_counted", "num_classes", "pictures")
        return {key: self.metrics[key] for key in wanted}

    def write_tables(self, run: Run) -> None:
        """metrics.parquet, groups.parquet and metrics.json, in this order."""
        _put(run.at("metrics.parquet"), pa.Table.from_pylist(self._metrics_rows(), schema.METRICS))
        _put(run.at("groups.parquet"), pa.Table.from_pylist(self._group_rows(), schema.GROUPS))
        storage.write_json(run.at("metrics.json"), self.metrics)

    def write_report(self, run: Run, options: ReadOptions, wall_s: float) -> None:
        """report.html; reads the worst pictures once more."""
        accumulator, label_set = self.accumulator, self.label_set
        page = report.Page(
            title=self.predictions.uri.removesuffix("/predictions"),
            notes=notes(self.metrics),
            label_set=label_set,
            matrix=accumulator.matrix,
            counts={STATUS_TEXT[status]: accumulator.statuses[status] for status in schema.EVALUATION_STATUSES},
            facts={
                "Predictions": self.predictions.uri,
                "Labels": self.labels,
                "Split": self.split or "all",
                "Label set": f"{label_set.name}, {label_set.num_classes} classes",
                "Segment run": self.predictions.metadata.get("result_fingerprint", "unknown"),
                "This evaluation": run.record["result_fingerprint"],
                "Content of the labels": run.record["manifest_fingerprint"],
                "Took": f"{wall_s:.1f} s",
            },
            created=datetime.datetime.now(datetime.UTC).strftime("%-d %B %Y, %H:%M UTC"),
            examples=self._examples(options),
            histogram=accumulator.histogram.tolist(),
            groups={
                column: [(value, group.pictures, group.matrix) for value, group in values.items()]
                for column, values in accumulator.groups.items()
                if values and len(values) > 1
            },
            problems=[
                (path, f"{STATUS_TEXT[status]}: {error}") for path, status, error in sorted(accumulator.problems)
            ],
            problem_total=accumulator.pictures - accumulator.statuses["ok"],
        )
        storage.write_bytes(run.at("report.html"), report.render(page).encode())

    def _metrics_rows(self) -> list[dict[str, Any]]:
        metrics = self.metrics
        whole = {
            "scope": "whole",
            "name": "all",
            "iou": metrics["miou"],
            "accuracy": metrics["mean_pixel_accuracy"],
            **{key: metrics[key] for key in ("dice", "pixel_accuracy", "fwiou")},
            "truth_pixels": metrics["pixels"],
            "predicted_pixels": int(self.accumulator.matrix.predicted_pixels.sum()),
            "unpredicted_pixels": sum(metrics["unpredicted"]),
            "ignored_pixels": metrics["ignored"],
        }
        classes = [
            {"scope": "class", "class_id": i, "name": name, **metrics["per_class"][name]}
            for i, name in enumerate(self.label_set.names)
        ]
        return [whole, *classes]

    def _group_rows(self) -> list[dict[str, Any]]:
        rows = []
        for column, values in self.accumulator.groups.items():
            for value, group in sorted((values or {}).items()):
                figures = group.matrix.metrics(self.label_set.names)
                truth, prediction, pixels = group.matrix.sparse()
                rows.append(
                    {key: figures[key] for key in schema.GROUPS.names if key in figures}
                    | {"column": column, "value": value, "pictures": group.pictures}
                    | {"truth": truth, "prediction": prediction, "pixels": pixels}
                )
        return rows

    def _examples(self, options: ReadOptions) -> list[report.Example]:
        """The worst pictures, read once more: mask, label and picture."""
        masks = self._masks()
        # a picture that is gone by now is a gap in the page, not worth a minute of waiting
        reader = RegionReader(replace(options, fetch_retry_s=5.0), self.label_set)
        try:
            rows = [{**row, "window": masks[row["region_key"]][1]} for row in self.accumulator.worst]
            regions = reader.read(rows, pictures=True, labels=True)
            examples = [self._example(region, masks[region.row["region_key"]][0]) for region in regions]
            return [example for example in examples if example is not None]
        finally:
            reader.close()

    def _masks(self) -> dict[str, tuple[np.ndarray, dict[str, int] | None]]:
        """region_key -> (mask, window) of the worst pictures."""
        masks = {}
        columns = ["region_key", "window", *schema.MASK_COLUMNS]
        for unit in sorted({row["unit"] for row in self.accumulator.worst}):
            wanted = {row["region_key"] for row in self.accumulator.worst if row["unit"] == unit}
            for batch in read_rows(self.predictions.units[unit], columns):
                for i, key in enumerate(batch["region_key"].to_pylist()):
                    if key in wanted:
                        (row,) = batch.slice(i, 1).to_pylist()
                        mask = mask_of(row)
                        masks[key] = (mask, row["window"])
        return masks

    def _example(self, region: Region, mask: np.ndarray) -> report.Example | None:
        row, truth = region.row, region.truth
        picture = None if region.pixels is None else region.pixels.values[region.pixels.core_slices]
        if truth is not None and row["window"] is not None and truth.shape != mask.shape:
            truth = truth[row["window"]["y"] :, row["window"]["x"] :][: mask.shape[0], : mask.shape[1]]
        if truth is None or truth.shape != mask.shape:
            return None
        if picture is not None and (picture.shape != (*mask.shape, 3) or picture.dtype != np.uint8):
            picture = None
        note = ""
        if row["confusion"]:
            of, taken_for = (self.label_set.names[i] for i in row["confusion"])
            note = f"mostly {of} taken for {taken_for}"
        return report.Example(row["path"], row["miou"], row["pixel_accuracy"], truth, mask, picture, note)


def table(metrics: dict[str, Any]) -> str:
    """The classes as lines of text, up to a number that a terminal shows at once."""
    rows = metrics["per_class"]
    width = max(map(len, rows))
    lines = [f"{'class':<{width}}    IoU  accuracy   Dice"]
    for name, row in list(rows.items())[:40]:
        iou, accuracy, dice = (_number(row[key]) for key in ("iou", "accuracy", "dice"))
        lines.append(f"{name:<{width}} {iou:>6} {accuracy:>9} {dice:>6}")
    if len(rows) > 40:
        lines.append(f"... and {len(rows) - 40} more in metrics.json")
    return "\n".join(lines)


def notes(metrics: dict[str, Any]) -> list[str]:
    """Sentences on figures that say less than they seem to: classes that do not occur in the labels, void labels."""
    absent = [name for name, row in metrics["per_class"].items() if not row["truth_pixels"]]
    count, found = len(metrics["per_class"]), []
    if not metrics["pixels"]:
        found.append("the labels hold no pixel of any class: there is nothing to compare with")
    elif len(absent) * 2 >= count and count > 1:
        present = count - len(absent)
        found.append(
            f"only {present} of {count} classes occur{'s' * (present == 1)} in the labels: these figures say nothing of"
            f" {listed(absent, 8)}. Is --label-set the one that these files were drawn with?"
        )
    if metrics["pixels"] and metrics["ignored"] > 9 * metrics["pixels"]:
        share = metrics["ignored"] / (metrics["ignored"] + metrics["pixels"])
        found.append(f"{100 * share:.1f} % of the label pixels are void and count nowhere")
    return found


def headline(summary: dict[str, Any]) -> str:
    pictures = summary["pictures"]
    others = ", ".join(f"{n} {STATUS_TEXT[status]}" for status, n in pictures.items() if n and status != "ok")
    return (
        f"mIoU {_number(summary['miou'])} over {summary['classes_counted']} of {summary['num_classes']} classes,"
        f" pixel accuracy {_number(summary['pixel_accuracy'])}, {pictures['ok']} pictures scored"
        + (f" ({others})" if others else "")
    )


def _number(value: float | None) -> str:
    return "absent" if value is None else f"{value:.3f}"


def _put(uri: str, table: pa.Table) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    storage.write_bytes(uri, buffer.getvalue().to_pybytes())
