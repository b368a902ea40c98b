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
from pipeline.engines import require_engine
from pipeline.manifest import Manifest, Unit
from pipeline.segment_config import SegmentConfig
from pipeline.segmenter import Columns, PredictOptions, Segmenter, read_pixels
from pipeline.sink import Written, write_rows
from pipeline.timings import without_times

_ROWS_PER_SLICE = 1_000_000  # one Dataset keeps a record per block for as long as it lives
_FILE_BYTES = 128 * 2**20
_FILE_WORK_S = 300.0


@dataclass(frozen=True)
class Landed:
    """One task's files, and what the blocks in them took."""

    written: Written
    blocks: list[dict[str, Any]]  # `timings.TIMES`
    write_s: float


@dataclass(frozen=True)
class SegmentStream:
    """How pending rows become files of an attempt."""

    config: SegmentConfig
    manifest: Manifest
    columns: Columns
    predict: PredictOptions
    num_predictors: int
    suspects: Any

    def run(self, pending: np.ndarray, attempt_uri: str) -> Iterator[Landed]:
        """Do the regions of a bitmap (bool, one a region of the manifest)."""
        rows_per_file = self.config.rows_per_file
        for units, count in self.slices(pending):
            started_s, rows, size_bytes = time.monotonic(), 0, 0
            for landed in self._dataset(units, pending, count, rows_per_file or 1024, attempt_uri):
                yield landed
                rows, size_bytes = rows + landed.written.rows, size_bytes + landed.written.size_bytes
            if self.config.rows_per_file is None and rows:
                by_work = rows / (time.monotonic() - started_s) * _FILE_WORK_S
                rows_per_file = int(max(64, min(_FILE_BYTES / max(size_bytes / rows, 1), by_work)))

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

    def _dataset(
        self, units: list[Unit], pending: np.ndarray, count: int, rows_per_file: int, attempt_uri: str
    ) -> Iterator[Landed]:
        import ray
        from ray.data import ActorPoolStrategy

        columns = [name for name in self.columns.results.names if name in self.manifest.columns]
        rows_per_block = int(np.clip(count // (4 * self.num_predictors), 1, 64))
        on_gpu = self.predict.device == "cuda"
        # not read_parquet: Ray 2.60 starts 32 actors to read the footers of one small file
        data: Any = ray.data.from_arrow([pa.Table.from_pylist([vars(unit)]) for unit in units])
        data = data.map_batches(
            _read_pending,  # type: ignore[arg-type]  # Ray's own types leave keyword arguments out
            fn_kwargs={"bitmap": ray.put(np.packbits(pending)), "columns": list(dict.fromkeys([*columns, "kind"]))},
            batch_size=None,
            batch_format="pyarrow",
        )
        data = data.repartition(target_num_rows_per_block=rows_per_block)
        if on_gpu:  # a network of a GPU is fed from CPU workers
            data = data.map_batches(
                read_pixels,  # type: ignore[arg-type]
                fn_kwargs={"options": self.config.read_options},
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=1,
            )
        data = data.map_batches(
            Segmenter,
            fn_constructor_args=(
                storage.absolute(self.config.checkpoint),
                self.predict,
                self.config.read_options,
                self.columns,
                self.suspects,
            ),
            compute=ActorPoolStrategy(size=self.num_predictors),
            batch_size=rows_per_block,
            batch_format="pyarrow",
            num_cpus=1,
            num_gpus=1 if on_gpu else None,
        )
        data = data.map_batches(
            _write,  # type: ignore[arg-type]
            fn_kwargs={"attempt_uri": attempt_uri},
            batch_size=rows_per_file,
            batch_format="pyarrow",
            num_cpus=0.25,
        )
        for row in data.iter_rows():
            yield row["landed"]


def predict_options(config: SegmentConfig, num_gpus: int) -> dict[str, Any]:
    """What a run predicts with, to be kept: resumed with the same, its masks are identical."""
    device = config.device if config.device != "auto" else ("cuda" if num_gpus else "cpu")
    require_engine(config.engine, device, config.precision)
    return {
        "device": device,
        "precision": config.precision,
        "engine": config.engine,
        "batch_size": config.batch_size or (8 if device == "cuda" else 1),
        "tile_px": config.tile_px,
        "overlap_px": config.overlap_px,
        "low_confidence": config.low_confidence,
        "flip": config.flip,
        "scales": config.view_scales,
        "keep_confidence": config.confidence,
        # n actors of one thread beat one of n threads by a fifth on a light network
        "threads": 1 if device == "cpu" else None,
    }


def num_predictors(config: SegmentConfig, device: str, num_gpus: int, num_cores: int) -> int:
    return config.num_predictors or (max(1, num_gpus) if device == "cuda" else num_cores)


def _read_pending(units: pa.Table, bitmap: Any, columns: list[str]) -> pa.Table:
    """The pending rows of row groups of the manifest."""
    import ray

    bits = ray.get(bitmap) if isinstance(bitmap, ray.ObjectRef) else bitmap
    table = pa.concat_tables([Unit(**unit).read(columns) for unit in units.to_pylist()])
    ids = table["region_id"].to_numpy()
    return table.filter(pa.array((bits[ids >> 3] >> (7 - (ids & 7))) & 1 == 1))


def _write(table: pa.Table, attempt_uri: str) -> dict[str, list[Any]]:
    begin_s = time.monotonic()
    rows, blocks = without_times(table)
    written = write_rows(rows, attempt_uri)
    return {"landed": [Landed(written, blocks, time.monotonic() - begin_s)]}
