"""Which stream a segment run goes through, and with what: chosen once, kept in the run's record."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline import cluster, storage
from pipeline.batch_size import probe
from pipeline.labels import LabelSet
from pipeline.local_stream import LocalStream, is_local
from pipeline.manifest import Manifest
from pipeline.predict_options import PredictOptions, num_predictors, predict_options
from pipeline.progress import say
from pipeline.run import Run
from pipeline.schema import Columns
from pipeline.segment_config import SegmentConfig
from pipeline.segment_stream import SegmentStream
from pipeline.sink import metadata
from pipeline.suspects import start_suspects

_PROBED_FROM = 2000  # regions: looking for the batch size takes a few seconds
_PROBED = 8  # pictures
Found = tuple[int, dict[int, float]] | None


@dataclass(frozen=True)
class Streams:
    """The ways from the pending rows of a run to files; `ids` are the regions of the whole run."""

    config: SegmentConfig
    run: Run
    manifest: Manifest
    label_set: LabelSet
    ids: np.ndarray

    def open(self) -> SegmentStream | LocalStream:
        """The stream that fits; joins or starts Ray where that is the one of Ray."""
        device = self.run.record.get("predict", {}).get("device", self.config.device)
        return self._here() if is_local(self.config, device) else self.on_ray()

    def on_ray(self) -> SegmentStream:
        """The stream on a cluster or a local Ray, whichever there is."""
        cluster.connect([self.config.output], shared_filesystem=self.config.shared_filesystem)
        gpus, cores = cluster.num_gpus(), cluster.num_cores()
        predict = self._predict(gpus, _on_a_worker)
        predictors = num_predictors(self.config, predict.device, gpus, cores)
        return SegmentStream(self.config, self.manifest, self._columns(), predict, predictors, cores, start_suspects())

    def _here(self) -> LocalStream:
        cluster.stop_on_sigterm()
        cluster.calm_threads()
        cores = cluster.num_cores()
        predict = self._predict(0, _in_a_process)
        predictors = num_predictors(self.config, predict.device, 0, cores)
        return LocalStream(self.config, self.manifest, self._columns(), predict, predictors, cores)

    def _predict(self, num_gpus: int, run_probe: Callable[..., Found]) -> PredictOptions:
        """What the run began with, or begins with now."""
        fresh = "predict" not in self.run.record
        if fresh:
            self.run.remember(predict=predict_options(self.config, num_gpus))
        predict = PredictOptions(**self.run.record["predict"], deadline_s=self.config.predict_deadline_s)
        if fresh and self.config.batch_size is None and predict.engine == "eager" and self.ids.size > _PROBED_FROM:
            rows = self.manifest.sampled(self.ids, _PROBED)
            found = run_probe(storage.absolute(self.config.checkpoint), predict, self.config.read_options, rows)
            if found is not None:
                size, rates = found
                say(f"batch size {size}: " + ", ".join(f"{rate:.1f} pictures/s at {n}" for n, rate in rates.items()))
                self.run.remember(predict=self.run.record["predict"] | {"batch_size": size})
                predict = replace(predict, batch_size=size)
        return predict

    def _columns(self) -> Columns:
        record, mask_format = self.run.record, self.config.mask_format
        told = metadata(self.label_set, record["result_fingerprint"], record["manifest_fingerprint"], mask_format)
        planes = 1 + self.label_set.num_classes * self.config.probabilities
        return Columns(tuple(self.manifest.travelling), told, mask_format, planes)


def _on_a_worker(checkpoint: str, predict: PredictOptions, *rest: Any) -> Found:
    import ray

    where = ray.remote(num_cpus=1, num_gpus=1 if predict.device == "cuda" else 0, max_retries=0)
    try:
        found: Found = ray.get(where(probe).remote(checkpoint, predict, *rest))
    except ray.exceptions.RayError:  # the predictors will meet it too, and know what to do
        return None
    return found


def _in_a_process(*arguments: Any) -> Found:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(probe, *arguments).result()
        except Exception:  # as above
            return None
