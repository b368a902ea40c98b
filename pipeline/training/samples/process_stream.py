"""Samples read ahead by processes of the job's own, through torch's DataLoader: one machine, no Ray."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.errors import PipelineError
from pipeline.reading.regions import RegionReader
from pipeline.runtime.process import end_with_parent
from pipeline.runtime.progress import say
from pipeline.training.samples.loader import SampleLoader

_AHEAD_BYTES = 256 << 20  # of samples, for each process
_AHEAD_STEPS = 16  # at most
_STARTS = 3
_NICENESS = 19  # training goes first: what is read ahead bridges the wait


class Steps(Dataset[dict[str, Any]]):
    """The batch of every step, by its number. Copied to a process it opens a reader there, at the first batch."""

    def __init__(self, table: pa.Table, loader: SampleLoader) -> None:
        self._table, self._loader = table, loader
        self._reader: RegionReader | None = None

    def __len__(self) -> int:
        return self._loader.plan.total_steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        if self._reader is None:
            self._reader = RegionReader(self._loader.options, self._loader.label_set)
        size = self._loader.plan.batch_size
        loaded = self._loader.load(self._table, range(step * size, (step + 1) * size), self._reader)
        # as tensors they travel in shared memory
        return {**loaded, "pixels": torch.from_numpy(loaded["pixels"]), "truth": torch.from_numpy(loaded["truth"])}


def read_steps(table: pa.Table, loader: SampleLoader, first_step: int, processes: int) -> Iterator[dict[str, Any]]:
    """The batches from `first_step` on, in order.

    Where a reading process dies (memory ran out, somebody killed it), others begin again at the step that was due; the
    third time that is raised as PipelineError.
    """
    step = first_step
    for left in reversed(range(_STARTS)):
        try:
            for batch in _batches(table, loader, step, processes):
                yield batch
                step += 1
            return
        except (RuntimeError, OSError) as error:  # the DataLoader's own word, or a pipe that broke
            if not left:
                raise PipelineError(f"the processes that read samples died {_STARTS} times: {error}") from None
            say(f"a process that reads samples died; reading on from step {step}")


def _batches(table: pa.Table, loader: SampleLoader, first_step: int, processes: int) -> Iterator[dict[str, Any]]:
    batch_bytes = loader.sample_bytes * loader.plan.batch_size
    batches = DataLoader(
        Steps(table, loader),
        batch_size=None,
        sampler=range(first_step, loader.plan.total_steps),
        num_workers=processes,
        prefetch_factor=max(2, min(_AHEAD_STEPS, _AHEAD_BYTES // batch_bytes)),
        multiprocessing_context="spawn",  # a forked process would inherit the threads of the S3 client half-dead
        worker_init_fn=_Begin(os.getpid()),
    )
    for step, batch in enumerate(batches, first_step):
        count = len(batch["failure"])
        yield {
            "step": np.full(count, step, np.int64),
            "pixels": batch["pixels"].numpy(),
            "truth": batch["truth"].numpy(),
            "failure": batch["failure"],
        }


class _Begin:
    """What a reading process does first."""

    def __init__(self, parent: int) -> None:
        self._parent = parent

    def __call__(self, number: int) -> None:
        end_with_parent(self._parent)
        torch.set_num_threads(1)
        with contextlib.suppress(OSError):
            os.nice(_NICENESS)
