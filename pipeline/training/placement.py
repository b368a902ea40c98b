"""Where a training run computes: on Ray or in the job's own process, on which device, with how many threads."""

from __future__ import annotations

import os

from pipeline import storage
from pipeline.errors import InputError
from pipeline.runtime.run import Run
from pipeline.training.config import TrainConfig

_OLDER_STATE = "_train/run"  # where version 0.1, which always trained on Ray, kept what a run resumes from


def uses_ray(config: TrainConfig, run: Run | None = None) -> bool:
    """Whether a run uses Ray. Raises InputError for `processes` where only Ray can do it.

    `auto` is Ray where there is a cluster, where there are several workers, and where a run of version 0.1 is resumed.
    """
    several = config.num_workers > 1
    if config.runner == "processes" and several:
        raise InputError(
            "--runner processes trains with one worker",
            found=f"--num-workers {config.num_workers}",
            todo="--runner ray",
        )
    if config.runner != "auto":
        return config.runner == "ray"
    if several or bool(os.environ.get("RAY_ADDRESS")):
        return True
    return run is not None and _has_older_state(run)


def ray_resources(config: TrainConfig) -> tuple[bool, int]:
    """(a GPU for each worker?, CPU threads of a worker). Raises InputError where Ray cannot hold the workers."""
    import ray

    have = ray.cluster_resources()
    gpus = int(have.get("GPU", 0))
    on_gpu = config.device == "cuda" or (config.device == "auto" and gpus > 0)
    local = "RAY_ADDRESS" not in os.environ
    if on_gpu and gpus < config.num_workers and local:
        raise InputError("not enough GPUs", found=gpus, expected=f"{config.num_workers}, one for each worker")
    cpus = config.cpus_per_worker or 1
    if local:
        if config.num_workers * cpus >= have.get("CPU", 0):
            raise InputError(
                "no CPU is left to read pictures with",
                found=f"{config.num_workers} workers of {cpus} CPU",
                expected=f"less than the {have.get('CPU', 0):g} logical CPUs of this Ray",
            )
        if config.cpus_per_worker is None and not on_gpu:
            # reserving one CPU and computing on all of them: reading needs little, and yields
            cpus = max(1, _cores() // config.num_workers)
    return on_gpu, cpus


def process_resources(config: TrainConfig) -> tuple[bool, int]:
    """The same for the job's own process."""
    import torch

    on_gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    if on_gpu and not torch.cuda.is_available():
        raise InputError("not enough GPUs", found=0, expected="1", todo="--device cpu")
    return on_gpu, config.cpus_per_worker or (1 if on_gpu else _cores())


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _has_older_state(run: Run) -> bool:
    return storage.exists(run.at(_OLDER_STATE)) and not storage.exists(run.at("_train/state.pt"))
