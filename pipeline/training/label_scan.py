"""One look at every label file before the first step: what is in it, and whether training can begin at all.

The scan counts the pixels of each class (the class weights follow from that) and meets label values outside the label
set while nothing has been spent yet, not in the middle of the night.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import InputError
from pipeline.labels import LabelSet
from pipeline.reading.regions import ReadOptions
from pipeline.training.samples.streams import process_reader, slices

CLASS_WEIGHTS = ("none", "log", "sqrt", "inverse")
LISTED = 20  # names in a log line; `LabelScan.unreadable` holds at most _KEPT
_KEPT = 10_000
_COLUMNS = ["region_id", "path", "uri", "label_uri"]


@dataclass
class LabelScan:
    """`class_pixels` (K) and `ignored_pixels` over the `files` that could be read; `unreadable` names those that could
    not, with the reason."""

    class_pixels: list[int]
    ignored_pixels: int = 0
    files: int = 0
    unreadable: list[str] = field(default_factory=list)
    unreadable_ids: list[int] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Counter:
    label_set: LabelSet
    options: ReadOptions

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A block of rows -> one row of sums."""
        sums = np.zeros(self.label_set.num_classes, np.int64)
        ignored = files = 0
        unknown: dict[str, Any] | None = None
        unreadable: list[str] = []
        ids: list[int] = []
        reader = process_reader(self.options, self.label_set)
        for region in reader.read(batch.to_pylist(), pictures=False, labels=True):
            if region.truth is None:
                unreadable.append(f"{region.row['label_uri']}: {region.truth_error}")
                ids.append(int(region.row["region_id"]))
                continue
            counts = np.bincount(region.truth.ravel(), minlength=self.label_set.ignore_value + 1)
            sums += counts[: self.label_set.num_classes]
            ignored += int(counts[self.label_set.ignore_value])
            files += 1
            if region.unknown_labels and unknown is None:
                value, pixels = next(iter(sorted(region.unknown_labels.items())))
                unknown = {"uri": region.row["label_uri"], "value": value, "pixels": pixels}
        return pa.table(
            {
                "class_pixels": pa.array([sums.tolist()], pa.list_(pa.int64())),
                "ignored": pa.array([ignored], pa.int64()),
                "files": pa.array([files], pa.int64()),
                "unknown": pa.array([unknown], _UNKNOWN),
                "unreadable": pa.array([unreadable], pa.list_(pa.string())),
                "ids": pa.array([ids], pa.list_(pa.int64())),
            }
        )


_UNKNOWN = pa.struct([("uri", pa.string()), ("value", pa.int64()), ("pixels", pa.int64())])


def scan_labels(table: pa.Table, label_set: LabelSet, options: ReadOptions) -> LabelScan:
    """Read every label file of `table` (rows with a `label_uri`) in Ray Data.

    Raises InputError for a value outside the label set, with file, value and count, as soon as one is met.
    """
    import ray.data

    scan = LabelScan([0] * label_set.num_classes)
    blocks = slices(table.select(_COLUMNS), rows_per_block=64)
    counted = ray.data.from_arrow(blocks).map_batches(
        _Counter(label_set, options), batch_size=None, batch_format="pyarrow"
    )
    for row in counted.iter_rows():
        if row["unknown"] is not None:
            unknown = row["unknown"]
            raise InputError(
                "label value outside the label set",
                where=unknown["uri"],
                found=f"value {unknown['value']} in {unknown['pixels']} pixels",
                expected=_expected(label_set),
                todo="give the right --label-set, or add the value to its `remap` or `ignore`",
            )
        scan.class_pixels = [a + int(b) for a, b in zip(scan.class_pixels, row["class_pixels"], strict=True)]
        scan.ignored_pixels += int(row["ignored"])
        scan.files += int(row["files"])
        scan.unreadable_ids += [int(i) for i in row["ids"]]
        scan.unreadable += list(row["unreadable"])[: max(0, _KEPT - len(scan.unreadable))]
    return scan


def class_weights(class_pixels: Sequence[int], kind: str) -> list[float]:
    """One weight per class from its share p of the pixels, scaled so that the mean over pixels is 1.

    `log` is 1 / ln(1.02 + p) (ENet, Paszke et al. 2016, section 4.2: bounded, so that a very rare class cannot drown
    the others), `sqrt` is p ** -0.5, `inverse` 1 / p, `none` 1. A class that does not occur gets the weight 0. Raises
    InputError for another kind.
    """
    if kind not in CLASS_WEIGHTS:
        raise InputError(f"no class weights {kind!r}", expected=f"one of {', '.join(CLASS_WEIGHTS)}")
    pixels = np.asarray(class_pixels, np.float64)
    share = pixels / max(1.0, pixels.sum())
    present = share > 0
    p = np.where(present, share, 1.0)
    formulas = {"none": np.ones_like(p), "log": 1 / np.log(1.02 + p), "sqrt": p**-0.5, "inverse": 1 / p}
    raw = np.where(present, formulas[kind], 0.0)
    mean = float((raw * share).sum())
    return [float(weight / mean) if mean else 0.0 for weight in raw]


def _expected(label_set: LabelSet) -> str:
    known = sorted({*(label_set.remap or range(label_set.num_classes)), *label_set.ignore})
    runs: list[list[int]] = []
    for value in known:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    texts = [str(low) if low == high else f"{low}..{high}" for low, high in runs]
    return f"{', '.join(texts)} ({label_set.name})"
