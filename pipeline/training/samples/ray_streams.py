"""The sample plan as a stream of Ray Data, and the validation pictures as another.

Both are made where Ray Train asks for them, which is not the driver's process: what Ray Data does there follows from
the settings made there (`cluster.configure_data`), not from the driver's.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.labels import LabelSet
from pipeline.reading.packed import PIXELS, pack_pixels, unpack_pixels
from pipeline.reading.regions import ReadOptions, RegionReader, shared_reader
from pipeline.runtime.cluster import configure_data
from pipeline.training.samples.loader import SampleLoader
from pipeline.training.samples.plan import MAX_BLOCKS
from pipeline.training.samples.validation import ValidationPicture, read_validation

if TYPE_CHECKING:
    import ray.data


@dataclass(frozen=True)
class StreamedSamples:
    """Positions of the stream -> augmented samples; runs in Ray Data's tasks."""

    table: Any  # a Ray object reference to the Arrow table of the training rows
    loader: SampleLoader
    first_step: int
    block_steps: int

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`id` (n positions) -> step (n), pixels, truth and failure as of `SampleLoader.load`."""
        plan = self.loader.plan
        places = [plan.place(int(position), self.first_step, self.block_steps) for position in batch["id"]]
        samples = [sample for step, sample in places if step < plan.total_steps]
        reader = process_reader(self.loader.options, self.loader.label_set)
        loaded = self.loader.load(_fetch_table(self.table), samples, reader, padding=len(places) - len(samples))
        return {"step": np.array([step for step, _ in places], np.int64), **loaded}


def train_stream(table: Any, loader: SampleLoader, first_step: Callable[[], int]) -> Callable[[], ray.data.Dataset]:
    """A function that makes the stream from `first_step()` on.

    Ray Train calls it whenever it starts its workers, so workers that are replaced in mid-run go on where the latest
    checkpoint stands. `table` is a Ray object reference to an Arrow table of `plan.COLUMNS`.
    """

    def make() -> ray.data.Dataset:
        import ray.data

        configure_data()
        plan = loader.plan
        start = min(first_step(), plan.total_steps - 1)
        block_steps = plan.block_steps(start, loader.sample_bytes)
        length = plan.stream_rows(start, block_steps)
        blocks = length // (block_steps * plan.worker_batch)
        stream = ray.data.range(length, override_num_blocks=blocks)
        samples = StreamedSamples(table, loader, start, block_steps)
        return stream.map_batches(samples, batch_size=None, batch_format="numpy", zero_copy_batch=True)

    return make


@dataclass(frozen=True)
class StreamedPictures:
    """Rows of the validation table -> whole pictures as bytes with their size, since shapes vary from row to row."""

    label_set: LabelSet
    options: ReadOptions

    def __call__(self, batch: pa.Table) -> pa.Table:
        """`valid` (False = padding, unread) travels along; `pixels` and `truth` are null where they cannot be read."""
        rows = batch.to_pylist()
        reader = process_reader(self.options, self.label_set)
        pictures = read_validation(reader, [row for row in rows if row["valid"]])
        packed = [_pack(next(pictures)) if row["valid"] else {"valid": False, "failure": ""} for row in rows]
        return pa.Table.from_pylist(packed, _PACKED)


_PACKED = pa.schema(
    [
        ("valid", pa.bool_()),
        ("failure", pa.string()),
        ("pixels", PIXELS),
        ("truth", pa.large_binary()),
        ("truth_height", pa.int32()),
    ]
)


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
    return stream.map_batches(StreamedPictures(label_set, options), batch_size=None, batch_format="pyarrow")


def unpack(batch: pa.Table, mask_dtype: str) -> Iterator[ValidationPicture]:
    """The pictures in a batch of the validation stream, without its padding."""
    for row in batch.to_pylist():
        if row["valid"]:
            pixels, truth = unpack_pixels(row["pixels"]), row["truth"]
            if truth is not None:
                size = (row["truth_height"], -1)
                truth = np.frombuffer(truth, mask_dtype).reshape(size)
            yield ValidationPicture(pixels, truth, row["failure"])


def slices(table: pa.Table, rows_per_block: int) -> list[pa.Table]:
    """The table in blocks: at least `rows_per_block` rows, and no more blocks than the driver can keep records of."""
    step = max(rows_per_block, math.ceil(table.num_rows / MAX_BLOCKS))
    return [table.slice(start, step) for start in range(0, max(1, table.num_rows), step)]


def process_reader(options: ReadOptions, label_set: LabelSet) -> RegionReader:
    """This process's reader for a label set; what runs here afterwards computes in one thread."""
    import torch

    torch.set_num_threads(1)  # augmentation runs beside training; more threads a task only get in its way
    return shared_reader(options, json.dumps(label_set.to_json(), sort_keys=True))


def _pack(picture: ValidationPicture) -> dict[str, object]:
    return {
        "valid": True,
        "failure": picture.failure,
        "pixels": None if picture.truth is None else pack_pixels(picture.pixels),
        "truth_height": None if picture.truth is None else picture.truth.shape[0],
        "truth": None if picture.truth is None else picture.truth.tobytes(),
    }


@functools.lru_cache(maxsize=1)
def _fetch_table(reference: Any) -> pa.Table:
    import ray

    return ray.get(reference)
