"""Many trainings by Ray Tune, several at a time, each in a process of its own and as a run of its own."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray import tune

from pipeline import storage
from pipeline.errors import PipelineError
from pipeline.models.spec import read_spec
from pipeline.runtime.progress import duration, say
from pipeline.storage import folders
from pipeline.training.job import TrainConfig, train
from pipeline.training.studies.study import METRICS


def fit_all(trainings: dict[str, TrainConfig], scratch_uri: str, parallel: int) -> dict[str, dict[str, float]]:
    """The metrics (fractions) that each training's last weights reach on its validation pictures.

    Tune keeps its notes at `scratch_uri`, which is removed at the end. Raises PipelineError when some trainings have
    failed and the others are done.
    """
    fs, path = storage.arrow_filesystem(scratch_uri)
    fs.create_dir(path, recursive=True)
    tuner = tune.Tuner(
        # the trial itself only waits for its training, whose worker reserves what it computes on
        tune.with_resources(_trial, {"CPU": 0.01}),
        param_space={"name": tune.grid_search(list(trainings)), "trainings": ray.put(trainings)},
        tune_config=tune.TuneConfig(max_concurrent_trials=parallel),
        run_config=tune.RunConfig(
            name="trials",
            storage_path=path,
            storage_filesystem=fs,
            verbose=0,
            callbacks=[_Report(len(trainings))],
        ),
    )
    found = tuner.fit()
    if found.num_errors:
        raise PipelineError(
            f"{found.num_errors} of {len(trainings)} trainings failed, such as: {found.errors[0]};"
            " the same command goes on with them"
        )
    results = [dict(found[i].metrics or {}) for i in range(len(found))]
    folders.remove_tree(scratch_uri)
    return {result["name"]: {metric: float(result[metric]) for metric in METRICS} for result in results}


def _trial(parameters: dict[str, Any]) -> dict[str, Any]:
    training: TrainConfig = ray.get(parameters["trainings"])[parameters["name"]]
    train(training)
    metrics = read_spec(storage.join(training.output, "last")).metrics["validation"]
    return {"name": parameters["name"], **{metric: metrics[metric] for metric in METRICS}}


class _Report(tune.Callback):
    """A line whenever a training has ended."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.started_s = total, 0, time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.done += 1
        left_s = (time.monotonic() - self.started_s) / self.done * (self.total - self.done)
        result = trial.last_result
        say(
            f"{self.done}/{self.total} {trial.config['name']}: mIoU {result['miou']:.4f}, "
            f"pixel accuracy {result['pixel_accuracy']:.4f}; {duration(left_s)} left"
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.done += 1
        say(f"{self.done}/{self.total} {trial.config['name']} failed")
