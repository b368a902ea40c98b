"""One look at every label file before the first step: what is in it, and whether training can begin at all.

The scan counts the pixels of each class (the class weights follow from that) and of each void value, and meets label
values outside the label set while nothing has been spent yet, not in the middle of the night.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import InputError
from pipeline.labels import LabelSet, in_file, unknown_value
from pipeline.reading.regions import ReadOptions, Region, RegionReader
from pipeline.runtime.progress import listed
from pipeline.training.samples.plan import SCENE_COLUMNS

CLASS_WEIGHTS = ("none", "log", "sqrt", "inverse")
_KEPT = 10_000  # names of unreadable files
_VALUES = 256  # the commonest void values; with `ignore_other_colors` there may be millions
_COLUMNS = ["region_id", "path", "uri", "label_uri", "kind", "window"]


@dataclass
class LabelScan:
    """`class_pixels` (K) and `ignored_pixels` over the `files` that could be read; `void` counts the pixels of each raw
    value (or colour, 0xRRGGBB) among the ignored; `unreadable` names the files that could not be read, with the reason.
    """

    class_pixels: list[int]
    ignored_pixels: int = 0
    files: int = 0
    unreadable: list[str] = field(default_factory=list)
    unreadable_ids: list[int] = field(default_factory=list)
    void: dict[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, text: dict[str, Any]) -> LabelScan:
        """The inverse of `to_json`, also of what older versions wrote."""
        return cls(**text)

    def add(self, other: LabelScan) -> None:
        self.class_pixels = [a + b for a, b in zip(self.class_pixels, other.class_pixels, strict=True)]
        self.ignored_pixels += other.ignored_pixels
        self.files += other.files
        self.unreadable += other.unreadable[: max(0, _KEPT - len(self.unreadable))]
        self.unreadable_ids += other.unreadable_ids
        self.void = dict((Counter(self.void) + Counter(other.void)).most_common(_VALUES))


def scan_labels(table: pa.Table, label_set: LabelSet, options: ReadOptions, *, on_ray: bool) -> LabelScan:
    """Read every label file of `table` (rows with a `label_uri`), in Ray Data or in this process and its decoders.

    Raises InputError for a value outside the label set, with file, value and count, as soon as one is met.
    """
    scan = LabelScan([0] * label_set.num_classes)
    table = table.select([name for name in (*_COLUMNS, *SCENE_COLUMNS) if name in table.column_names])
    for part in _on_ray(table, label_set, options) if on_ray else _here(table, label_set, options):
        scan.add(part)
    return scan


def require_labels(scan: LabelScan, name: str, where: str) -> None:
    """Raises InputError where no label file could be read, or none has a pixel of a class: `name` is what they are for.

    A network is not trained on nothing, and a figure over no pixel is no figure.
    """
    if not scan.files:
        raise InputError(f"no readable label file for {name}", where=where, found=listed(scan.unreadable))
    if not sum(scan.class_pixels):
        raise InputError(
            f"every label pixel for {name} is void",
            where=where,
            found=f"{scan.files} label files of {_values(scan)}",
            expected="pixels of at least one class",
            todo="give the right --label-set, or pictures that are labelled",
        )


def require_every_class(scan: LabelScan, label_set: LabelSet, where: str) -> None:
    """Raises InputError where a class has not one pixel: it would be learnt as "never", and count in no mean."""
    absent = [name for name, pixels in zip(label_set.names, scan.class_pixels, strict=True) if not pixels]
    if absent:
        present = len(label_set.names) - len(absent)
        raise InputError(
            f"{len(absent)} of {label_set.num_classes} classes have no pixel in the training labels: {listed(absent)}",
            where=where,
            found=f"pixels of {present} class{'es' * (present != 1)}, and {_values(scan)}",
            expected=f"every class of label set {label_set.name!r}",
            todo=f"{_remedy(scan, label_set)}, or --allow-absent-classes if that is meant",
        )


def _remedy(scan: LabelScan, label_set: LabelSet) -> str:
    """What to do about absent classes: where one void number occurs and one class does not, it may stand for that."""
    absent = [i for i, pixels in enumerate(scan.class_pixels) if not pixels]
    value = next(iter(scan.void), "")
    if len(absent) == 1 == len(scan.void) and value.isdigit():
        lines = in_file(label_set, remap=int(value), to=absent[0])
        return f"if {value} stands for {label_set.names[absent[0]]}, give a --label-set of {lines}"
    return "give the --label-set that fits these files (which says what a value stands for under `remap`)"


def _values(scan: LabelScan) -> str:
    """What was taken for void, as `the value 255 taken for void (123 pixels)`."""
    if not scan.void:
        return f"{scan.ignored_pixels} void pixels" if scan.ignored_pixels else "no void pixel"
    most = sorted(scan.void.items(), key=lambda item: -item[1])[:5]
    more = f" and {len(scan.void) - 5} more values" if len(scan.void) > 5 else ""
    return ", ".join(f"{value} taken for void in {pixels} pixels" for value, pixels in most) + more


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


def _count(regions: Iterable[Region], label_set: LabelSet) -> LabelScan:
    """The scan of some regions. Raises InputError for the first value outside the label set."""
    scan = LabelScan([0] * label_set.num_classes)
    sums = np.zeros(label_set.num_classes, np.int64)
    void: Counter[str] = Counter()
    for region in regions:
        if region.truth is None or region.labels is None:
            scan.unreadable.append(f"{region.row['label_uri']}: {region.truth_error}")
            scan.unreadable_ids.append(int(region.row["region_id"]))
            continue
        if region.labels.unknown:
            value, pixels = min(region.labels.unknown.items())
            raise unknown_value(label_set, value, pixels, region.labels.are_colors, region.row["label_uri"])
        counts = np.bincount(region.truth.ravel(), minlength=label_set.ignore_value + 1)
        sums += counts[: label_set.num_classes]
        scan.ignored_pixels += int(counts[label_set.ignore_value])
        for value, pixels in region.labels.void.items():
            void[f"#{value:06x}" if region.labels.are_colors else str(value)] += pixels
        scan.files += 1
    scan.class_pixels, scan.void = sums.tolist(), dict(void.most_common(_VALUES))
    return scan


def _here(table: pa.Table, label_set: LabelSet, options: ReadOptions) -> Iterator[LabelScan]:
    reader = RegionReader(replace(options, decoders=os.cpu_count() or 1), label_set)
    try:
        yield _count(reader.read(table.to_pylist(), pictures=False, labels=True), label_set)
    finally:
        reader.close()


def _on_ray(table: pa.Table, label_set: LabelSet, options: ReadOptions) -> Iterator[LabelScan]:
    import json

    import ray.data

    from pipeline.training.samples.ray_streams import slices

    counted = ray.data.from_arrow(slices(table, rows_per_block=64)).map_batches(
        _CountBlock(label_set, options), batch_size=None, batch_format="pyarrow"
    )
    for row in counted.iter_rows():
        found = json.loads(row["scan"])
        if "error" in found:
            raise InputError.parse(found["error"])
        yield LabelScan.from_json(found)


@dataclass(frozen=True)
class _CountBlock:
    label_set: LabelSet
    options: ReadOptions

    def __call__(self, batch: pa.Table) -> pa.Table:
        """A block of rows -> its scan as JSON, or the error that ends the run."""
        import json

        from pipeline.training.samples.ray_streams import process_reader

        regions = process_reader(self.options, self.label_set).read(batch.to_pylist(), pictures=False, labels=True)
        try:
            found = _count(regions, self.label_set).to_json()
        except InputError as error:
            found = {"error": str(error)}
        return pa.table({"scan": [json.dumps(found)]})
