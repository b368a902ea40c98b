"""The worker side of the segment job: manifest rows -> pixels -> predictions -> result rows, one for each.

On CPUs one actor reads and predicts: its reader's threads and decoder process run ahead while the network works.
Before GPUs, reading is a stage of its own on CPU workers, and pixels travel as bytes (shapes differ from row to row,
and a tensor column would change type with them).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from pipeline.catalog.schema import Columns
from pipeline.prediction.engines import PREPARE_S
from pipeline.prediction.predictor import DeviceError
from pipeline.reading.regions import ReadOptions, Region, RegionReader
from pipeline.segment.predict_options import PredictOptions
from pipeline.segment.quarantine import Watchdog
from pipeline.segment.reading_stage import has_pixels, unpack_pixels
from pipeline.segment.result_rows import result_row, result_table
from pipeline.segment.timings import Stopwatch, with_times

_MOST_HELD_PX = 2**27  # of pictures that wait for others of their shape


class Segmenter:
    """The predictor in a worker: a table of manifest rows -> a table of results, row by row."""

    def __init__(
        self, checkpoint: str, predict: PredictOptions, read: ReadOptions, columns: Columns, quarantine: Any = None
    ) -> None:
        self._deadlines_s = predict.deadline_s, predict.deadline_s_per_megapixel
        self._prepare_s = 0.0 if predict.engine == "eager" else PREPARE_S
        self.predictor = predict.predictor(checkpoint)
        self.columns = columns
        self._read_options = read
        self._reader: RegionReader | None = None
        self._quarantine = quarantine
        self._watchdog = Watchdog()
        self._watch = Stopwatch()

    def __call__(self, table: pa.Table) -> pa.Table:
        self._watch.begin()
        block = table["region_id"][0].as_py() if table.num_rows else -1
        one_by_one = bool(self._ask("begin_block", block))
        by_place: dict[int, dict[str, Any]] = {}
        regions = enumerate(self._watch.waiting(self._regions(table)))
        for places, batch in _batches(regions, 1 if one_by_one else self.predictor.pictures_at_once):
            by_place |= zip(places, self._predict(batch, one_by_one), strict=True)
        rows = [by_place[place] for place in sorted(by_place)]
        results = result_table(rows, self.columns)
        self._ask("end_block", block, len(rows), sum(row["status"] != "ok" for row in rows))
        if self._reader is not None:
            for stage, seconds in self._reader.take_busy().items():
                self._watch.count(stage, seconds)
        return with_times(results, self._watch.end(len(rows)))

    def _predict(self, batch: list[Region], one_by_one: bool) -> list[dict[str, Any]]:
        pictures = [region.pixels for region in batch if region.pixels is not None]
        first = batch[0].row["region_id"]
        if one_by_one and pictures and (before := self._ask("begin_region", first)):
            status = "timeout" if before.startswith("timeout") else "model_error"
            return [result_row(batch[0], None) | {"status": status, "error": before.removeprefix("timeout: ")}]
        megapixels = sum(p.shape[0] * p.shape[1] for p in pictures) / 1e6
        deadline_s = self._deadlines_s[0] + self._deadlines_s[1] * megapixels + self._prepare_s
        self._watchdog.start(deadline_s, lambda: one_by_one and self._ask("hung", first, deadline_s))
        try:
            with self._watch.measure("predict"):
                predictions = iter(self.predictor.predict(pictures))
        except DeviceError as error:
            # records nothing: this process ends, and another predicts these rows
            if not self._ask("device_failed", first if one_by_one else None):
                raise
            print(f"the device failed, ending this process: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        finally:
            self._watchdog.stop()
        if one_by_one and pictures:
            self._ask("end_region", first)
        return [result_row(region, next(predictions) if region.pixels is not None else None) for region in batch]

    def _ask(self, method: str, *args: Any) -> Any:
        if self._quarantine is None:
            return None
        import ray

        with self._watch.measure("ray"):
            return ray.get(getattr(self._quarantine, method).remote(*args))

    def _regions(self, table: pa.Table) -> Iterator[Region]:
        if has_pixels(table):
            return unpack_pixels(table, self._watch)
        if self._reader is None:
            self._reader = RegionReader(self._read_options)
        return self._reader.read(table.to_pylist())


def _batches(regions: Iterable[tuple[int, Region]], size: int) -> Iterator[tuple[list[int], list[Region]]]:
    """Full batches of pictures of one shape, whatever order they come in; what is left over at the end in smaller ones.

    A region without pixels is a batch of its own.
    """
    waiting: dict[tuple[object, ...], list[tuple[int, Region]]] = {}
    held_px = 0
    for place, region in regions:
        if region.pixels is None:
            yield [place], [region]
            continue
        shape = (*region.pixels.shape, region.pixels.values.dtype.str)
        waiting.setdefault(shape, []).append((place, region))
        size_px = region.pixels.shape[0] * region.pixels.shape[1]
        held_px += size_px
        if len(waiting[shape]) == size or held_px > _MOST_HELD_PX:
            batch = waiting.pop(shape)
            held_px -= len(batch) * size_px
            yield [place for place, _ in batch], [region for _, region in batch]
    for batch in waiting.values():
        yield [place for place, _ in batch], [region for _, region in batch]
