"""The runner of one machine: predicted in processes of the job's own, without starting Ray.

Where there is no cluster, Ray's start takes longer than a few hundred pictures do, and its processes take some of the
cores. The same `Segmenter` predicts, and files go the same way to the sink. What kills or hangs one of these processes
ends them all (`ProcessDied`). Ray then does what is left, and finds the picture that did it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline.errors import PipelineError
from pipeline.runtime.process import end_with_parent, keep_pandas_out
from pipeline.segment.config import SegmentConfig
from pipeline.segment.runner import FileSize, Runner, SegmenterArguments, WrittenFiles, write_files

if TYPE_CHECKING:
    from pipeline.segment.segmenter import Segmenter

_NVIDIA = "/proc/driver/nvidia/version"
_AHEAD = 2  # files' rows that wait, a predictor


class ProcessDied(Exception):
    """A process died or was ended by its watchdog; what it had not handed over is still pending."""


def is_local(config: SegmentConfig, device: str) -> bool:
    """Whether a run stays in processes of its own: no cluster, and no GPU, which Ray would hand out.

    `device` is that of the run, or "auto".
    """
    ray = sys.modules.get("ray")
    joined = os.environ.get("RAY_ADDRESS") or (ray is not None and ray.is_initialized())
    on_cpu = device == "cpu" or (device == "auto" and not os.path.exists(_NVIDIA))
    return config.runner == "processes" or (config.runner == "auto" and on_cpu and not joined)


@dataclass(frozen=True)
class ProcessRunner(Runner):
    """Over processes of the job's own."""

    _counts: Any = field(default_factory=lambda: multiprocessing.get_context("spawn").RawArray("q", 2))

    def predicted(self) -> list[int]:
        return list(self._counts)

    def run(self, pending: np.ndarray, attempt_uri: str) -> Iterator[WrittenFiles]:
        """As `Runner.run`. Raises ProcessDied."""
        count = int(pending.sum())
        if not count:
            return
        processes = ProcessPoolExecutor(
            min(self.num_predictors, count),
            multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(os.getpid(), self._counts, self.segmenter_arguments),
        )
        file_size = self.file_size()
        block = self.rows_per_block(count)
        tables = self._tables(pending, count, block, file_size)
        under_way: set[Future[WrittenFiles]] = set()
        begun_s = time.monotonic()
        try:
            while True:
                for table in tables:
                    under_way.add(processes.submit(_segment, table, block, attempt_uri))
                    if len(under_way) >= _AHEAD * self.num_predictors:
                        break
                if not under_way:
                    return
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    written = future.result()
                    file_size.learn(written, (time.monotonic() - begun_s) * self.num_predictors)
                    yield written
        except BrokenProcessPool as error:
            raise ProcessDied(str(error)) from None
        except BaseException:  # stopped: what is under way is not waited for, as on Ray
            for process in list((processes._processes or {}).values()):
                process.kill()
            raise
        finally:
            processes.shutdown(wait=True, cancel_futures=True)

    def _tables(self, pending: np.ndarray, count: int, block: int, file_size: FileSize) -> Iterator[pa.Table]:
        """Pending rows of the manifest in its order, a table for each file to be; smaller ones towards the end."""
        left = count
        for unit in self.manifest.units():
            here = pending[unit.first_id : unit.first_id + unit.num_rows]
            if not here.any():
                continue
            rows = unit.read(self.columns_read).filter(pa.array(here))
            while rows.num_rows:
                # so that all predictors end at about the same time
                size = min(file_size.rows, max(block, left // (2 * _AHEAD * self.num_predictors)))
                yield rows.slice(0, size)
                left -= min(size, rows.num_rows)
                rows = rows.slice(size)


# ---- in a process ----------------------------------------------------------------------------------------------------

_segmenter: Segmenter | PipelineError | None = None
_counts: Any = None


def _begin(parent: int, counts: Any, arguments: SegmenterArguments) -> None:
    global _segmenter, _counts
    end_with_parent(parent)
    keep_pandas_out()
    from pipeline.segment.segmenter import Segmenter

    _counts = counts
    try:
        _segmenter = Segmenter(*arguments)
    except PipelineError as error:  # the pool would print it and say only that it is broken
        _segmenter = error


def _segment(table: pa.Table, block: int, attempt_uri: str) -> WrittenFiles:
    if isinstance(_segmenter, PipelineError):
        raise _segmenter
    assert _segmenter is not None
    blocks = []
    for first in range(0, table.num_rows, block):
        blocks.append(_segmenter(table.slice(first, block)))
        _counts[0] += blocks[-1].num_rows  # without a lock: they are only shown
        _counts[1] += sum(status != "ok" for status in blocks[-1]["status"].to_pylist())
    return write_files(pa.concat_tables(blocks), attempt_uri)
