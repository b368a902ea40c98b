"""Which stream a segment run goes through, and with what: chosen once, kept in the run's record."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pipeline import cluster, storage
from pipeline.batch_size import probe
from pipeline.labels import LabelSet
from pipeline.manifest import Manifest
from pipeline.predict_options import PredictOptions, num_predictors, predict_options
from pipeline.progress import say
from pipeline.run import Run
from pipeline.schema import Columns
from pipeline.segment_config import SegmentConfig
from pipeline.segment_stream import SegmentStream
from pipeline.short_run import ShortStream, is_short
from pipeline.sink import metadata
from pipeline.suspects import start_suspects

_PROBED_FROM = 2000  # regions: looking for the batch size takes a few seconds
_PROBED = 8  # pictures


@dataclass(frozen=True)
class Streams:
    """The ways from the pending rows of a run to files; `ids` are the regions of the whole run."""

    config: SegmentConfig
    run: Run
    manifest: Manifest
    label_set: LabelSet
    ids: np.ndarray

    def open(self) -> SegmentStream | ShortStream:
        """The stream that fits; joins or starts Ray where that is the one of Ray."""
        device = self.run.record.get("predict", {}).get("device", self.config.device)
        return self._here() if is_short(self.config, device, self.ids.size) else self.on_ray()

    def on_ray(self) -> SegmentStream:
        """The stream on a cluster or a local Ray, whichever there is."""
        cluster.connect([self.config.output], shared_filesystem=self.config.shared_filesystem)
        gpus, cores = cluster.num_gpus(), cluster.num_cores()
        fresh = "predict" not in self.run.record
        predict = self._predict(gpus)
        if fresh and self.config.batch_size is None and predict.engine == "eager" and self.ids.size > _PROBED_FROM:
            predict = self._find_batch_size(predict)
        predictors = num_predictors(self.config, predict.device, gpus, cores)
        return SegmentStream(self.config, self.manifest, self._columns(), predict, predictors, cores, start_suspects())

    def _here(self) -> ShortStream:
        cluster.stop_on_sigterm()
        cluster.calm_threads()
        cores = cluster.num_cores()
        predict = self._predict(num_gpus=0)
        predictors = num_predictors(self.config, predict.device, 0, cores)
        return ShortStream(self.config, self.manifest, self._columns(), predict, predictors, cores)

    def _predict(self, num_gpus: int) -> PredictOptions:
        """What the run began with, or begins with now."""
        if "predict" not in self.run.record:
            self.run.remember(predict=predict_options(self.config, num_gpus))
        return PredictOptions(**self.run.record["predict"], deadline_s=self.config.predict_deadline_s)

    def _find_batch_size(self, predict: PredictOptions) -> PredictOptions:
        import ray

        where = ray.remote(num_cpus=1, num_gpus=1 if predict.device == "cuda" else 0, max_retries=0)
        checkpoint, rows = storage.absolute(self.config.checkpoint), self.manifest.sampled(self.ids, _PROBED)
        try:
            found = ray.get(where(probe).remote(checkpoint, predict, self.config.read_options, rows))
        except ray.exceptions.RayError as error:  # the predictors will meet it too, and know what to do
            say(f"the batch size stays at {predict.batch_size}: {' '.join(str(error).split())[:200]}")
            found = None
        if found is None:
            return predict
        size, rates = found
        say(f"batch size {size}: {', '.join(f'{rate:.1f} pictures/s at {tried}' for tried, rate in rates.items())}")
        self.run.remember(predict=self.run.record["predict"] | {"batch_size": size})
        return replace(predict, batch_size=size)

    def _columns(self) -> Columns:
        record, mask_format = self.run.record, self.config.mask_format
        told = metadata(self.label_set, record["result_fingerprint"], record["manifest_fingerprint"], mask_format)
        planes = 1 + self.label_set.num_classes * self.config.probabilities
        return Columns(tuple(self.manifest.travelling), told, mask_format, planes)
