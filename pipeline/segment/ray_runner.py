"""The runner on Ray Data: pending rows of the manifest -> read, predict -> whole files written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.catalog.manifest import Unit
from pipeline.errors import PipelineError
from pipeline.segment.reading_stage import read_pixels
from pipeline.segment.runner import Runner, SegmenterArguments, WrittenFiles, write_files

_ROWS_PER_SLICE = 1_000_000  # one Dataset keeps a record per block for as long as it lives


@dataclass(frozen=True)
class RayRunner(Runner):
    """Over the actors of a cluster, or of a local Ray; `quarantine` is a handle of the register of that name."""

    quarantine: Any

    def run(self, pending: np.ndarray, attempt_uri: str) -> Iterator[WrittenFiles]:
        file_size = self.file_size()
        begun_s = time.monotonic()
        for units, count in self.slices(pending):
            for written in self._written(units, pending, count, file_size.rows, attempt_uri):
                yield written
                file_size.learn(written, time.monotonic() - begun_s)

    def predicted(self) -> list[int]:
        import ray

        done: list[int] = ray.get(self.quarantine.done.remote(), timeout=10)
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

    def _written(
        self, units: list[Unit], pending: np.ndarray, count: int, rows_per_file: int, attempt_uri: str
    ) -> Iterator[WrittenFiles]:
        import ray
        from ray.data import ActorPoolStrategy

        block = self.rows_per_block(count)
        on_gpu = self.predict.device == "cuda"
        # not read_parquet: Ray 2.60 starts 32 actors to read the footers of one small file
        data: Any = ray.data.from_arrow([pa.Table.from_pylist([vars(unit)]) for unit in units])
        data = data.map_batches(
            _read_pending,  # type: ignore[arg-type]  # Ray's own types leave keyword arguments out
            fn_kwargs={"bitmap": ray.put(np.packbits(pending)), "columns": self.columns_read},
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
            fn_constructor_args=(self.segmenter_arguments, self.quarantine),
            compute=ActorPoolStrategy(size=self.num_predictors),
            batch_size=block,
            batch_format="pyarrow",
            num_cpus=1 if on_gpu else self.predict.threads or 1,
            num_gpus=1 if on_gpu else None,
        )
        data = data.map_batches(
            _write,  # type: ignore[arg-type]
            fn_kwargs={"attempt_uri": attempt_uri},
            batch_size=rows_per_file,
            batch_format="pyarrow",
            num_cpus=0.25,
        )
        try:
            for row in data.iter_rows():
                yield row["written"]
        except Exception:
            if (error := ray.get(self.quarantine.why_not_started.remote())) is not None:
                raise error from None
            raise


class _Predict:
    """A `Segmenter`, made in the actor's process: the driver and the other workers need not load torch."""

    def __init__(self, arguments: SegmenterArguments, quarantine: Any) -> None:
        from pipeline.segment.segmenter import Segmenter

        self._error: PipelineError | None = None
        try:
            self._segmenter = Segmenter(*arguments, quarantine)
        except PipelineError as error:
            # Ray tells the driver a text, the register keeps the error; an actor that dies here is started again
            self._error = error
            quarantine.cannot_start.remote(error)

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


def _write(table: pa.Table, attempt_uri: str) -> dict[str, list[Any]]:
    return {"written": [write_files(table, attempt_uri)]}
