"""Training on one machine without Ray: one worker, the job's own process, fed by processes that read ahead.

Ray's start alone takes longer than reading the first hundred pictures, and its idle processes take cores from training.
The steps are the same as on Ray: what a sample holds follows from its number.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import nn

from pipeline.errors import Stopped
from pipeline.reading.regions import RegionReader
from pipeline.runtime.progress import ProgressLine
from pipeline.training.loop import train_loop
from pipeline.training.samples.process_stream import read_steps
from pipeline.training.samples.validation import ValidationPicture, read_validation
from pipeline.training.task import Task, TrainingData
from pipeline.training.worker import Batch, Worker

_CORES_PER_READER = 4  # decoding and augmenting a picture takes a few per cent of what a step on it takes a CPU


class ProcessWorker(Worker):
    """The only worker. SIGTERM and Ctrl-C ask it to save and stop, a second one ends it at once."""

    rank = 0

    def __init__(self, data: TrainingData, device: torch.device) -> None:
        self.device = device
        self.status: dict[str, Any] = {}
        self._data = data
        self._line = ProgressLine()
        self._stop = False

    def samples(self, first_step: int) -> Iterator[Batch]:
        processes = max(1, (os.cpu_count() or 1) // _CORES_PER_READER)
        return read_steps(self._data.train, self._data.loader, first_step, processes)

    def validation_pictures(self) -> Iterator[ValidationPicture]:
        reader = RegionReader(self._data.loader.options, self._data.loader.label_set)
        try:
            yield from read_validation(reader, self._data.validation.to_pylist())
        finally:
            reader.close()

    def wrap(self, model: nn.Module) -> nn.Module:
        return model

    def from_first(self, value: int) -> int:
        return value

    def report(self, status: dict[str, Any], notes: list[str]) -> bool:
        self.status = status
        for note in notes:
            self._line.note(note)
        self._line.show(status["text"])
        return self._stop

    @contextlib.contextmanager
    def stoppable(self) -> Iterator[None]:
        """While the block runs, a first signal to stop is kept for the loop, which saves before it ends."""

        def ask(signum: int, frame: FrameType | None) -> None:
            if self._stop:
                raise Stopped("stopped on request, twice: nothing was saved since the last checkpoint")
            self._stop = True
            self._line.note("stopping: saving a checkpoint first")

        before = {}
        with contextlib.suppress(ValueError):  # not the main thread: the caller has handlers of its own
            for one in (signal.SIGTERM, signal.SIGINT):
                before[one] = signal.signal(one, ask)
        try:
            yield
        finally:
            for one, handler in before.items():
                signal.signal(one, handler)
            self._line.end()


def train_in_process(task: Task, data: TrainingData, device: str) -> dict[str, Any]:
    """Train to the end, or to a request to stop, after which the state is saved. Returns the last status."""
    worker = ProcessWorker(data, torch.device(device))
    with worker.stoppable():
        train_loop(task, worker)
    return worker.status
