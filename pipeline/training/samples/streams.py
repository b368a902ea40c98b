"""The sample plan as a stream of Ray Data, and the validation pictures as another."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.labels import LabelSet
from pipeline.reading.regions import ReadOptions, Region, RegionReader, shared_reader
from pipeline.training.samples.plan import MAX_BLOCKS, SamplePlan

if TYPE_CHECKING:
    import ray.data

    from pipeline.training.samples.augmentation import Augmentation

COLUMNS = ["region_id", "region_key", "path", "uri", "kind", "size_bytes", "version", "window", "frame", "label_uri"]


@dataclass(frozen=True)
class SampleLoader:
    """Positions of the stream -> augmented samples; runs in Ray Data's tasks.

    A picture or truth that cannot be read never stops a run: its place is taken by another view of a picture of the
    same block (or by a sample that is all ignored), and `failure` says which one it was and why.
    """

    table: Any  # a Ray object reference to the Arrow table of the training rows
    plan: SamplePlan
    augmentation: Augmentation
    label_set: LabelSet
    options: ReadOptions
    first_step: int
    block_steps: int

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`id` (n positions) -> step (n), pixels (n x H x W x C uint8), truth (n x H x W), failure (n texts)."""
        places = [self.plan.place(int(p), self.first_step, self.block_steps) for p in batch["id"]]
        samples = [sample for step, sample in places if step < self.plan.total_steps]
        drawn = [self.plan.draw(sample) for sample in samples]
        table = _fetch_table(self.table)
        rows = table.take([row for _, row in drawn]).to_pylist()
        regions = process_reader(self.options, self.label_set).read(rows, pictures=True, labels=True)

        height, width = self.augmentation.crop
        ignore = self.label_set.ignore_value
        pixels = np.full((len(places), height, width, 3), self.augmentation.fill, np.uint8)
        truth = np.full((len(places), height, width), ignore, self.label_set.mask_dtype)
        failures = [""] * len(places)
        good: Region | None = None
        for i, ((epoch, _), region) in enumerate(zip(drawn, regions, strict=True)):
            seed = (self.plan.seed, epoch, int(region.row["region_id"]))
            failures[i] = why_unusable(region)
            if not failures[i]:
                good = region
            if good is not None:
                assert good.pixels is not None and good.truth is not None
                pixels[i], truth[i] = self.augmentation(good.pixels, good.truth, ignore_value=ignore, seed=seed)
        steps = np.array([step for step, _ in places], np.int64)
        return {"step": steps, "pixels": pixels, "truth": truth, "failure": np.array(failures, object)}


@dataclass(frozen=True)
class ValidationLoader:
    """Rows of the validation table -> whole pictures as bytes with their size, since shapes vary from row to row."""

    label_set: LabelSet
    options: ReadOptions

    def __call__(self, batch: pa.Table) -> pa.Table:
        """`valid` (False = padding, unread) travels along; `pixels` and `truth` are null where they cannot be read."""
        rows = batch.to_pylist()
        regions = process_reader(self.options, self.label_set).read(
            [row for row in rows if row["valid"]], pictures=True, labels=True
        )
        out: list[dict[str, Any]] = []
        for row in rows:
            if not row["valid"]:
                out.append({"valid": False, "failure": ""})
                continue
            region = next(regions)
            failure = why_unusable(region)
            record = {"valid": True, "failure": failure, "height": None, "width": None, "pixels": None, "truth": None}
            if region.truth is not None:
                record["height"], record["width"] = region.truth.shape
                record["truth"] = region.truth.tobytes()
                if not failure and region.pixels is not None:
                    record["pixels"] = region.pixels.tobytes()
            out.append(record)
        return pa.Table.from_pylist(out, _VALIDATION)


_VALIDATION = pa.schema(
    [
        ("valid", pa.bool_()),
        ("failure", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("pixels", pa.large_binary()),
        ("truth", pa.large_binary()),
    ]
)


def train_stream(
    table: Any,
    plan: SamplePlan,
    augmentation: Augmentation,
    label_set: LabelSet,
    options: ReadOptions,
    first_step: Callable[[], int],
) -> Callable[[], ray.data.Dataset]:
    """A function that makes the stream from `first_step()` on.

    Ray Train calls it whenever it starts its workers, so workers that are replaced in mid-run go on where the latest
    checkpoint stands. `table` is a Ray object reference to an Arrow table of `COLUMNS`.
    """

    def make() -> ray.data.Dataset:
        import ray.data

        start = min(first_step(), plan.total_steps - 1)
        height, width = augmentation.crop
        block_steps = plan.block_steps(start, height * width * 4)
        loader = SampleLoader(table, plan, augmentation, label_set, options, start, block_steps)
        length = plan.stream_rows(start, block_steps)
        blocks = length // (block_steps * plan.worker_batch)
        stream = ray.data.range(length, override_num_blocks=blocks)
        return stream.map_batches(loader, batch_size=None, batch_format="numpy", zero_copy_batch=True)

    return make


def validation_stream(table: pa.Table, num_workers: int, label_set: LabelSet, options: ReadOptions) -> ray.data.Dataset:
    """Every row of `table` once, padded to a multiple of the workers so that an equal split drops none."""
    import ray.data

    rows = table.num_rows
    padding = -rows % num_workers
    table = table.append_column("valid", pa.array([True] * rows))
    if padding:
        more = table.slice(0, 1).take([0] * padding).set_column(table.num_columns - 1, "valid", [[False] * padding])
        table = pa.concat_tables([table, more])
    stream = ray.data.from_arrow(slices(table, rows_per_block=8))
    return stream.map_batches(ValidationLoader(label_set, options), batch_size=None, batch_format="pyarrow")


def slices(table: pa.Table, rows_per_block: int) -> list[pa.Table]:
    """The table in blocks: at least `rows_per_block` rows, and no more blocks than the driver can keep records of."""
    step = max(rows_per_block, math.ceil(table.num_rows / MAX_BLOCKS))
    return [table.slice(start, step) for start in range(0, max(1, table.num_rows), step)]


def why_unusable(region: Region) -> str:
    """Why a region cannot be trained on or validated with: its path and the reason, or an empty text."""
    reason = region.error or region.truth_error
    if reason is None and region.pixels is not None and region.truth is not None:
        if region.pixels.shape[:2] == region.truth.shape:
            return ""
        (height, width), (h, w) = region.pixels.shape[:2], region.truth.shape
        reason = f"picture is {width} x {height} px, its label file {w} x {h}"
    return f"{region.row['path']}: {reason or region.status}"


def process_reader(options: ReadOptions, label_set: LabelSet) -> RegionReader:
    """This process's reader for a label set; what runs here afterwards computes in one thread."""
    import torch

    torch.set_num_threads(1)  # augmentation runs beside training; more threads a task only get in its way
    return shared_reader(options, json.dumps(label_set.to_json(), sort_keys=True))


@functools.lru_cache(maxsize=1)
def _fetch_table(reference: Any) -> pa.Table:
    import ray

    return ray.get(reference)
