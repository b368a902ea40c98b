"""Training on Ray Train: workers on a cluster or a local Ray, fed by Ray Data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.train
import ray.train.torch
import torch
import torch.distributed
from torch import nn

from pipeline import storage
from pipeline.training.loop import train_loop
from pipeline.training.monitor import start_monitor, watch
from pipeline.training.samples.plan import SamplePlan
from pipeline.training.samples.ray_streams import train_stream, unpack, validation_stream
from pipeline.training.samples.validation import ValidationPicture
from pipeline.training.state import POSITION
from pipeline.training.task import Task, TrainingData
from pipeline.training.worker import Batch, Worker

_AHEAD_BYTES = 1 << 30  # of samples, for each worker


class RayWorker(Worker):
    """One worker of Ray Train; `monitor` is the handle of the driver's `Monitor`."""

    def __init__(self, task: Task, monitor: Any) -> None:
        self.rank = ray.train.get_context().get_world_rank()
        self.device = ray.train.torch.get_device()
        self._plan, self._mask_dtype, self._monitor = task.plan, task.spec.label_set.mask_dtype, monitor

    def samples(self, first_step: int) -> Iterator[Batch]:
        """The worker's shard. Steps that are done already (the stream was made before the latest save) are skipped."""
        batches = ray.train.get_dataset_shard("train").iter_batches(
            batch_size=self._plan.worker_batch, batch_format="numpy", prefetch_batches=2, drop_last=True
        )
        begun = False
        for batch in batches:
            step = int(batch["step"].min())
            if not begun and step > first_step:
                raise RuntimeError(f"samples from step {step} on, but the saved state is of step {first_step}")
            begun = begun or step == first_step
            if begun:
                yield batch

    def validation_pictures(self) -> Iterator[ValidationPicture]:
        shard = ray.train.get_dataset_shard("validation")
        for batch in shard.iter_batches(batch_size=8, batch_format="pyarrow", prefetch_batches=1):
            yield from unpack(batch, self._mask_dtype)

    def wrap(self, model: nn.Module) -> nn.Module:
        return ray.train.torch.prepare_model(model, move_to_device=False)

    def from_first(self, value: int) -> int:
        if self._plan.num_workers == 1:
            return value
        shared = torch.tensor([value], dtype=torch.int64, device=self.device)
        torch.distributed.broadcast(shared, src=0)
        return int(shared)

    def report(self, status: dict[str, Any], notes: list[str]) -> bool:
        if self.rank:
            if notes:
                self._monitor.add.remote(notes)
            return False
        return bool(ray.get(self._monitor.post.remote(status, notes)))

    def older_state(self) -> bytes | None:
        """Version 0.1 kept its state in Ray Train's own checkpoints."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return Path(folder, "state.pt").read_bytes()


def train_on_ray(task: Task, data: TrainingData, *, on_gpu: bool, cpus: int | None) -> dict[str, Any]:
    """Train to the end; `cpus` are reserved for each worker. Returns the last status that the first worker reported.

    Raises what the workers raise, and Stopped once they have saved their state.
    """
    # Ray Train's default gives a worker group one minute to start; spot machines take several
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1800")
    fs, path = storage.arrow_filesystem(storage.join(task.output, "_train"))
    fs.create_dir(path, recursive=True)
    position, plan, loader = storage.join(task.output, POSITION), task.plan, data.loader

    def first_step() -> int:
        try:
            return int(storage.read_json(position)["step"])
        except FileNotFoundError:
            return 0

    monitor = start_monitor()
    trainer = ray.train.torch.TorchTrainer(
        _run_worker,
        train_loop_config={"task": task, "monitor": monitor},
        datasets={
            "train": train_stream(ray.put(data.train), loader, first_step),
            "validation": validation_stream(data.validation, plan.num_workers, loader.label_set, loader.options),
        },
        dataset_config=ray.train.DataConfig(execution_options=_reading_ahead(plan, loader.sample_bytes)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.num_workers,
            use_gpu=on_gpu,
            resources_per_worker={"CPU": float(cpus or 1), **({"GPU": 1.0} if on_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name="run",
            storage_path=path,
            storage_filesystem=fs,
            failure_config=ray.train.FailureConfig(max_failures=2),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]  # v2's, at run time
        ),
    )
    return watch(trainer.fit, monitor)


def _run_worker(config: dict[str, Any]) -> None:
    """The function that Ray Train runs on every worker."""
    train_loop(config["task"], RayWorker(config["task"], config["monitor"]))


def _reading_ahead(plan: SamplePlan, sample_bytes: int) -> Any:
    """Ray Data's options: keep the order, and read ahead some batches, not as far as the object store allows."""
    from ray.data import ExecutionOptions, ExecutionResources

    ahead_bytes = max(_AHEAD_BYTES * plan.num_workers, 16 * plan.batch_size * sample_bytes)
    limits = ExecutionResources.for_limits(object_store_memory=ahead_bytes)
    return ExecutionOptions(preserve_order=True, resource_limits=limits)
