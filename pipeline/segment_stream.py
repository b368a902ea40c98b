"""The stream of a segment run on Ray Data: pending rows of the manifest -> read, predict -> whole files written.

What comes back to the driver is one small `Written` a file, with the times of the blocks in it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.errors import PipelineError
from pipeline.manifest import Manifest, Unit
from pipeline.pixel_stage import read_pixels
from pipeline.predict_options import PredictOptions, read_options
from pipeline.regions import ReadOptions
from pipeline.schema import Columns
from pipeline.segment_config import SegmentConfig
from pipeline.sink import Written, write_rows
from pipeline.timings import without_times

_ROWS_PER_SLICE = 1_000_000  # one Dataset keeps a record per block for as long as it lives
_FILE_BYTES = 128 * 2**20
_FILE_WORK_S = 300.0
_RAW_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Landed:
    """One task's files, and what the blocks in them took."""

    written: Written
    blocks: list[dict[str, Any]]  # `timings.TIMES`
    write_s: float
    raw_bytes: int  # of the rows in memory


def rows_per_block(count: int, num_predictors: int, planes: int) -> int:
    """How many of `count` rows a predictor takes at once; `planes` as in `Columns`."""
    return int(np.clip(count // (4 * num_predictors), 1, max(1, 64 // planes)))


class FileSize:
    """How many rows a file gets: as asked for, or by what was seen of earlier files.

    128 MiB or five minutes of work, and no more than fit into a worker's memory as they are before compression.
    """

    def __init__(self, asked: int | None, planes: int) -> None:
        self.rows = asked or max(1, 1024 // planes)
        self._asked, self._least = asked, max(1, 64 // planes)
        self._seen_rows = self._seen_bytes = self._seen_raw_bytes = 0

    def saw(self, landed: Landed, work_s: float) -> None:
        """Files landed; `work_s` is the time since the first were begun, as far as they were made one after another."""
        self._seen_rows += landed.written.rows
        self._seen_bytes += landed.written.size_bytes
        self._seen_raw_bytes += landed.raw_bytes
        if self._asked is None and self._seen_rows:
            by_file = _FILE_BYTES * self._seen_rows / max(self._seen_bytes, 1)
            by_memory = _RAW_BYTES * self._seen_rows / max(self._seen_raw_bytes, 1)
            by_work = _FILE_WORK_S * self._seen_rows / max(work_s, 1e-3)
            self.rows = int(max(self._least, min(by_file, by_memory, by_work)))


@dataclass(frozen=True)
class SegmentStream:
    """How pending rows become files of an attempt."""

    config: SegmentConfig
    manifest: Manifest
    columns: Columns
    predict: PredictOptions
    num_predictors: int
    num_cores: int
    suspects: Any

    def run(self, pending: np.ndarray, attempt_uri: str) -> Iterator[Landed]:
        """Do the regions of a bitmap (bool, one a region of the manifest)."""
        rows_per_file = FileSize(self.config.rows_per_file, self.columns.planes)
        begun_s = time.monotonic()
        for units, count in self.slices(pending):
            for landed in self._landed(units, pending, count, rows_per_file.rows, attempt_uri):
                yield landed
                rows_per_file.saw(landed, time.monotonic() - begun_s)

    def predicted(self) -> list[int]:
        """Regions that the actors have done so far, and how many of them failed; files follow minutes later."""
        import ray

        done: list[int] = ray.get(self.suspects.done.remote(), timeout=10)
        return done

    def slices(self, pending: np.ndarray) -> Iterator[tuple[list[Unit], int]]:
        """The manifest's row groups that hold pending rows, and how many, in slices of `_ROWS_PER_SLICE`."""
        units: list[Unit] = []
        count = 0
        for unit in self.manifest.units():
            here = int(pending[unit.first_id : unit.first_id + unit.num_rows].sum())
            if here:
                units.append(unit)
                count += here
            if count >= _ROWS_PER_SLICE:
                yield units, count
                units, count = [], 0
        if units:
            yield units, count

    def _landed(
        self, units: list[Unit], pending: np.ndarray, count: int, rows_per_file: int, attempt_uri: str
    ) -> Iterator[Landed]:
        import ray
        from ray.data import ActorPoolStrategy

        columns = [name for name in self.columns.results.names if name in self.manifest.columns]
        block = rows_per_block(count, self.num_predictors, self.columns.planes)
        on_gpu = self.predict.device == "cuda"
        # not read_parquet: Ray 2.60 starts 32 actors to read the footers of one small file
        data: Any = ray.data.from_arrow([pa.Table.from_pylist([vars(unit)]) for unit in units])
        data = data.map_batches(
            _read_pending,  # type: ignore[arg-type]  # Ray's own types leave keyword arguments out
            fn_kwargs={"bitmap": ray.put(np.packbits(pending)), "columns": list(dict.fromkeys([*columns, "kind"]))},
            batch_size=None,
            batch_format="pyarrow",
        )
        data = data.repartition(target_num_rows_per_block=block)
        if on_gpu:  # a network of a GPU is fed from CPU workers
            data = data.map_batches(
                read_pixels,  # type: ignore[arg-type]
                fn_kwargs={"options": self.config.read_options},
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=1,
            )
        data = data.map_batches(
            _Predict,
            fn_constructor_args=(
                storage.absolute(self.config.checkpoint),
                self.predict,
                read_options(self.config, self.num_predictors, self.num_cores),
                self.columns,
                self.suspects,
            ),
            compute=ActorPoolStrategy(size=self.num_predictors),
            batch_size=block,
            batch_format="pyarrow",
            num_cpus=1 if on_gpu else self.predict.threads or 1,
            num_gpus=1 if on_gpu else None,
        )
        data = data.map_batches(
            _land,  # type: ignore[arg-type]
            fn_kwargs={"attempt_uri": attempt_uri},
            batch_size=rows_per_file,
            batch_format="pyarrow",
            num_cpus=0.25,
        )
        try:
            for row in data.iter_rows():
                yield row["landed"]
        except Exception:
            if (error := ray.get(self.suspects.why_not_started.remote())) is not None:
                raise error from None
            raise


class _Predict:
    """A `Segmenter`, made in the actor's process: the driver and the other workers need not load torch."""

    def __init__(
        self, checkpoint: str, predict: PredictOptions, read: ReadOptions, columns: Columns, suspects: Any
    ) -> None:
        from pipeline.segmenter import Segmenter

        self._error: PipelineError | None = None
        try:
            self._segmenter = Segmenter(checkpoint, predict, read, columns, suspects)
        except PipelineError as error:
            # Ray tells the driver a text, the register keeps the error; an actor that dies here is started again
            self._error = error
            suspects.cannot_start.remote(error)

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._error is not None:
            raise self._error
        return self._segmenter(table)


def _read_pending(units: pa.Table, bitmap: Any, columns: list[str]) -> pa.Table:
    """The pending rows of row groups of the manifest."""
    import ray

    bits = ray.get(bitmap) if isinstance(bitmap, ray.ObjectRef) else bitmap
    table = pa.concat_tables([Unit(**unit).read(columns) for unit in units.to_pylist()])
    ids = table["region_id"].to_numpy()
    return table.filter(pa.array((bits[ids >> 3] >> (7 - (ids & 7))) & 1 == 1))


def _land(table: pa.Table, attempt_uri: str) -> dict[str, list[Any]]:
    return {"landed": [land(table, attempt_uri)]}


def land(table: pa.Table, attempt_uri: str) -> Landed:
    """Put a segmenter's rows as whole files into an attempt's folder."""
    begin_s = time.monotonic()
    rows, blocks = without_times(table)
    written = write_rows(rows, attempt_uri)
    return Landed(written, blocks, time.monotonic() - begin_s, table.nbytes)
