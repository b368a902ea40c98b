"""Which runner works off a segment run, and with what: chosen once, kept in the run's record."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.catalog.manifest import Manifest
from pipeline.catalog.schema import Columns
from pipeline.labels import LabelSet
from pipeline.reading.regions import ReadOptions
from pipeline.runtime import cluster
from pipeline.runtime.progress import say
from pipeline.runtime.run import Run
from pipeline.segment.config import SegmentConfig
from pipeline.segment.predict_options import PredictOptions, num_predictors, predict_options
from pipeline.segment.process_runner import ProcessRunner, is_local
from pipeline.segment.quarantine import start_quarantine
from pipeline.segment.ray_runner import RayRunner
from pipeline.segment.runner import Runner
from pipeline.segment.tuning import Tuning, probe
from pipeline.tables.prediction_table import metadata

_PROBED_FROM = 2000  # regions: looking for the best batch size takes a few seconds
_PROBED = 8  # pictures


@dataclass(frozen=True)
class Runners:
    """Makes the runner of a run; `ids` are the regions of the whole run."""

    config: SegmentConfig
    run: Run
    manifest: Manifest
    label_set: LabelSet
    ids: np.ndarray

    @property
    def columns(self) -> Columns:
        fingerprints = self.run.record["result_fingerprint"], self.run.record["manifest_fingerprint"]
        return result_columns(self.config, self.label_set, self.manifest, *fingerprints)

    def choose(self) -> Runner:
        """The runner that `--runner` and the machine ask for. Joins or starts Ray where it needs Ray."""
        device = self.run.record.get("predict", {}).get("device", self.config.device)
        return self._here() if is_local(self.config, device) else self.on_ray()

    def on_ray(self) -> RayRunner:
        """The runner on a cluster or a local Ray, whichever there is."""
        cluster.connect([self.config.output], shared_filesystem=self.config.shared_filesystem)
        gpus, cores = cluster.num_gpus(), cluster.num_cores()
        predict = self._predict(gpus, cores, _on_a_worker)
        predictors = num_predictors(self.config, predict.device, predict.threads, gpus, cores)
        return RayRunner(self.config, self.manifest, self.columns, predict, predictors, cores, start_quarantine())

    def _here(self) -> ProcessRunner:
        cluster.stop_on_sigterm()
        cluster.wait_passively()
        cores = cluster.num_cores()
        predict = self._predict(0, cores, _in_a_process)
        predictors = num_predictors(self.config, predict.device, predict.threads, 0, cores)
        return ProcessRunner(self.config, self.manifest, self.columns, predict, predictors, cores)

    def _predict(self, num_gpus: int, num_cores: int, run_probe: Callable[..., Tuning | None]) -> PredictOptions:
        """What the run began with, or begins with now."""
        fresh = "predict" not in self.run.record
        if fresh:
            self.run.remember(predict=predict_options(self.config, num_gpus))
        predict = PredictOptions(**self.run.record["predict"], deadline_s=self.config.predict_deadline_s)
        asked = self.config.batch_size is not None or predict.engine != "eager"
        if not fresh or asked or self.ids.size <= _PROBED_FROM:
            return predict
        own_threads = predict.device == "cpu" and self.config.threads is None and self.config.num_predictors is None
        rows = self.manifest.sampled(self.ids, _PROBED)
        checkpoint = storage.absolute(self.config.checkpoint)
        found = run_probe(checkpoint, predict, self.config.read_options, rows, num_cores if own_threads else 1)
        if found is None:
            return predict
        say(found.summary())
        size, threads = found.batch_size, found.threads
        self.run.remember(predict=self.run.record["predict"] | {"batch_size": size, "threads": threads})
        return replace(predict, batch_size=size, threads=threads)


def result_columns(
    config: SegmentConfig, label_set: LabelSet, manifest: Manifest, result_fingerprint: str, manifest_fingerprint: str
) -> Columns:
    """The columns of a run's predictions."""
    described = metadata(label_set, result_fingerprint, manifest_fingerprint, config.mask_format)
    planes = 1 + label_set.num_classes * config.probabilities
    return Columns(tuple(manifest.travelling), described, config.mask_format, planes)


def _on_a_worker(checkpoint: str, predict: PredictOptions, read: ReadOptions, rows: Any, cores: int) -> Tuning | None:
    import ray

    cores = min(cores, cluster.cores_of_a_node())
    # one call and its worker ends: the next task there would find a heap and threads that were set for a predictor
    where = ray.remote(num_cpus=cores, num_gpus=int(predict.device == "cuda"), max_retries=0, max_calls=1)
    try:
        found: Tuning | None = ray.get(where(probe).remote(checkpoint, predict, read, rows, cores))
    except ray.exceptions.RayError:  # the predictors will meet it too, and know what to do
        return None
    return found


def _in_a_process(*arguments: Any) -> Tuning | None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(probe, *arguments).result()
        except Exception:  # as above
            return None
