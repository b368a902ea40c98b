"""A run of a few hundred pictures on one machine, in processes of the job's own: Ray is not started for it.

Starting Ray and its workers takes longer than such a run. The same `Segmenter` predicts, and files go the same way to
the sink. What kills or hangs one of these processes ends them all (`Broken`); what is pending then goes over Ray, which
finds the picture that did it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.decode.child import end_with_parent
from pipeline.errors import PipelineError
from pipeline.manifest import Manifest, read_rows_at
from pipeline.predict_options import PredictOptions, read_options
from pipeline.regions import ReadOptions
from pipeline.schema import Columns
from pipeline.segment_config import SegmentConfig
from pipeline.segment_stream import Landed, land

if TYPE_CHECKING:
    from pipeline.segmenter import Segmenter

_FILES_PER_PREDICTOR = 4  # each is committed as it ends
_NVIDIA = "/proc/driver/nvidia/version"


class Broken(Exception):
    """A process died or was ended by its watchdog; what it had not handed over is still pending."""


def is_short(config: SegmentConfig, device: str, count: int) -> bool:
    """Whether `count` pictures are done here: few, no cluster to be had, and no GPU, which Ray would hand out.

    `device` is that of the run, or "auto".
    """
    ray = sys.modules.get("ray")
    joined = os.environ.get("RAY_ADDRESS") or (ray is not None and ray.is_initialized())
    on_cpu = device == "cpu" or (device == "auto" and not os.path.exists(_NVIDIA))
    return count <= config.short_run and on_cpu and not joined


@dataclass
class ShortStream:
    """How pending rows become files of an attempt; stands in for `SegmentStream`."""

    config: SegmentConfig
    manifest: Manifest
    columns: Columns
    predict: PredictOptions
    num_predictors: int
    num_cores: int
    _done: list[int] = field(default_factory=lambda: [0, 0])

    def predicted(self) -> list[int]:
        """Regions done so far, and how many of them failed; for showing."""
        return self._done

    def run(self, pending: np.ndarray, attempt_uri: str) -> Iterator[Landed]:
        """Do the regions of a bitmap (bool, one a region of the manifest). Raises Broken."""
        ids = np.flatnonzero(pending)
        if not ids.size:
            return
        tables = self._tables(ids)
        read = read_options(self.config, self.num_predictors, self.num_cores)
        options = (storage.absolute(self.config.checkpoint), self.predict, read, self.columns)
        processes = ProcessPoolExecutor(
            min(self.num_predictors, len(tables)),
            multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(os.getpid(), options),
        )
        try:
            for future in as_completed([processes.submit(_segment, table, attempt_uri) for table in tables]):
                landed = future.result()
                failed = landed.written.rows - landed.written.statuses.get("ok", 0)
                self._done = [self._done[0] + landed.written.rows, self._done[1] + failed]
                yield landed
        except BrokenProcessPool as error:
            raise Broken(str(error)) from None
        except BaseException:  # stopped: what is under way is not waited for, as on Ray
            for process in list((processes._processes or {}).values()):
                process.kill()
            raise
        finally:
            processes.shutdown(wait=True, cancel_futures=True)

    def _tables(self, ids: np.ndarray) -> list[pa.Table]:
        """The rows of the manifest, a table for each file to be."""
        columns = [name for name in self.columns.results.names if name in self.manifest.columns]
        rows = read_rows_at(list(self.manifest.units()), ids, list(dict.fromkeys([*columns, "kind"])))
        most = self.config.rows_per_file or rows.num_rows
        if self.columns.planes > 1:
            most = min(most, max(1, 64 // self.columns.planes))
        each = min(most, -(-rows.num_rows // (_FILES_PER_PREDICTOR * self.num_predictors)))
        return [rows.slice(first, each) for first in range(0, rows.num_rows, each)]


_Options = tuple[str, PredictOptions, ReadOptions, Columns]
_segmenter: Segmenter | PipelineError | None = None


def _begin(parent: int, options: _Options) -> None:
    global _segmenter
    end_with_parent(parent)
    from pipeline.segmenter import Segmenter

    try:
        _segmenter = Segmenter(*options)
    except PipelineError as error:  # the pool would print it and say only that it is broken
        _segmenter = error


def _segment(table: pa.Table, attempt_uri: str) -> Landed:
    if isinstance(_segmenter, PipelineError):
        raise _segmenter
    assert _segmenter is not None
    return land(_segmenter(table), attempt_uri)
