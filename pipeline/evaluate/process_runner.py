"""Units of an evaluation scored on one machine, by processes of the job's own: without Ray, whose start takes longer
than scoring a hundred pictures does."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from typing import Any

import pyarrow as pa

from pipeline.catalog.manifest import Manifest
from pipeline.errors import PipelineError
from pipeline.evaluate.label_index import build_index
from pipeline.evaluate.predictions import Predictions
from pipeline.evaluate.scoring import Scoring, score_unit
from pipeline.runtime.process import end_with_parent, keep_pandas_out
from pipeline.runtime.progress import say

_POOLS = 3  # a process that dies ends its pool; the units that are left go to another, twice
_AHEAD = 2  # units that wait, for each process


def score_in_processes(
    predictions: Predictions, scoring: Scoring, manifest: Manifest, split: str | None
) -> tuple[int, Iterator[dict[str, Any]]]:
    """How many labels there are (of one split), and what `score_unit` returns for each unit, in any order.

    The label index is a file that the processes map into their memory. Raises PipelineError where processes die again
    and again.
    """
    keep_pandas_out()
    index = build_index(manifest, split)
    return index.num_rows, _score_all(predictions, scoring, index)


def _score_all(predictions: Predictions, scoring: Scoring, index: pa.Table) -> Iterator[dict[str, Any]]:
    left = dict(enumerate(predictions.units))
    with tempfile.TemporaryDirectory() as folder:
        uri = os.path.join(folder, "labels.arrow")
        with pa.OSFile(uri, "wb") as file, pa.ipc.new_file(file, index.schema) as writer:
            writer.write_table(index)
        for remaining in reversed(range(_POOLS)):
            try:
                for scored in _score_with_a_pool(left, scoring, uri):
                    del left[scored["unit"]]
                    yield scored
                return
            except BrokenProcessPool:
                if not remaining:
                    raise PipelineError(
                        f"processes that score died {_POOLS} times, the last time with {len(left)} of"
                        f" {len(predictions.units)} units to do; what is scored stays, the same command resumes"
                    ) from None
                say(f"a process that scores has died; {len(left)} of {len(predictions.units)} units go to others")


def _score_with_a_pool(left: dict[int, Any], scoring: Scoring, index_uri: str) -> Iterator[dict[str, Any]]:
    count = min(os.cpu_count() or 1, len(left))
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, initializer=_begin, initargs=(os.getpid(),))
    waiting = iter(list(left.items()))
    under_way: set[Future[dict[str, Any]]] = set()
    try:
        while True:
            for unit, pieces in waiting:
                under_way.add(pool.submit(_score, unit, pieces, scoring, index_uri))
                if len(under_way) >= _AHEAD * count:
                    break
            if not under_way:
                return
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise
    except BaseException:  # stopped, or a consumer that ends early: what is under way is not waited for
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# ---- in a process ----------------------------------------------------------------------------------------------------


def _begin(parent: int) -> None:
    end_with_parent(parent)
    keep_pandas_out()


def _score(unit: int, pieces: Any, scoring: Scoring, index_uri: str) -> dict[str, Any]:
    return score_unit(unit, pieces, scoring, _index(index_uri))


@cache
def _index(uri: str) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(uri)).read_all()
