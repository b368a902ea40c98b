"""The segment job: every region of a collection through a network into Parquet, each exactly once.

manifest -> (pending rows) -> fetch, decode, predict -> write (a runner) -> publish. The driver holds a bit per
region and moves finished files.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.catalog import schema
from pipeline.catalog.job import manifest_of
from pipeline.catalog.manifest import Manifest
from pipeline.errors import PipelineError
from pipeline.labels import LabelSet
from pipeline.models.spec import read_checkpoint, weights_fingerprint
from pipeline.runtime import cluster
from pipeline.runtime.progress import Progress, say
from pipeline.runtime.run import Run, open_run
from pipeline.segment.config import SegmentConfig, decisive
from pipeline.segment.fit import require_fit
from pipeline.segment.forecast import forecast
from pipeline.segment.process_runner import ProcessDied
from pipeline.segment.runners import Runners, result_columns
from pipeline.segment.timings import Timings, command_started_at, describe
from pipeline.tables.increment import recover, take_increment
from pipeline.tables.prediction_table import PREDICTIONS
from pipeline.tables.sink import Sink, Written
from pipeline.tables.statistics import write_statistics

_RATE_LOOKED_AT_FROM = 200  # finished regions


def segment(config: SegmentConfig) -> str:
    """Run the job; returns the line that says where the result lies."""
    started_s, started_at = time.monotonic(), command_started_at()
    spec, *_ = read_checkpoint(config.checkpoint)  # whole, but not into a network: torch takes seconds to load
    spec = config.fed(spec)
    result = decisive(config, spec.label_set, weights_fingerprint(config.checkpoint))
    if config.dry_run:
        return forecast(config, result)
    with open_run(
        config.output, "segment", result, config, overwrite=config.overwrite, single_writer=config.single_writer
    ) as run:
        recover(run)
        manifest = _manifest(config, run, spec.label_set)
        if run.summary is not None and not (config.retry_failed and run.summary["failed"]):
            return f"complete: {_describe(run.summary)} in {run.at(PREDICTIONS)}"
        require_fit(manifest, spec)
        ids = config.subset.ids(manifest)
        job = _Job(config, run, manifest, spec.label_set, ids, started_at)
        summary = job.work()
        summary["wall_s"] = round(time.monotonic() - started_s, 1)
        run.success(summary)
        job.sink.finish()
        for line in describe(summary["speed"], config.price_per_hour) if summary["speed"] else []:
            say(line)
        return f"{_describe(summary)} in {run.at(PREDICTIONS)}"


def _manifest(config: SegmentConfig, run: Run, label_set: LabelSet) -> Manifest:
    if not config.incremental or "manifest" not in run.record:
        return manifest_of(run, config.source, subset=config.subset, scenes=config)

    def results(manifest: Manifest, manifest_fingerprint: str) -> pa.Schema:
        fingerprints = run.record["result_fingerprint"], manifest_fingerprint
        return result_columns(config, label_set, manifest, *fingerprints).results

    def connect() -> None:
        cluster.connect([config.output], shared_filesystem=config.shared_filesystem)

    return take_increment(run, config.source, config.subset, results, connect, scenes=config)


@dataclass
class _Counts:
    """What has finished in this run of the driver and before, for the failure rate and the summary."""

    statuses: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def finished(self) -> int:
        return sum(self.statuses.values())

    @property
    def failed(self) -> int:
        return self.finished - self.statuses["ok"]

    def add(self, written: Written) -> None:
        self.statuses.update(written.statuses)
        self.examples |= written.errors

    def check(self, most: float) -> None:
        """Raises PipelineError where more than `most` of the finished regions have failed."""
        if self.failed > most * self.finished:
            status = max((s for s in self.statuses if s != "ok"), key=lambda s: self.statuses[s])
            raise PipelineError(
                f"{self.failed} of {self.finished} regions failed, more than --max-failure-rate {most:g};"
                f" the commonest reason is {status} ({self.statuses[status]}), such as:"
                f" {self.examples.get(status, 'no text')}; finished rows stay, the same command resumes"
            )


class _Job:
    def __init__(
        self,
        config: SegmentConfig,
        run: Run,
        manifest: Manifest,
        label_set: LabelSet,
        ids: np.ndarray,
        started_at: float,
    ) -> None:
        self.config, self.run, self.manifest, self.label_set = config, run, manifest, label_set
        self.ids = ids
        self.runners = Runners(config, run, manifest, label_set, ids)
        self.runner = self.runners.choose()
        self.timings = Timings(
            started_at, fetch_threads=config.read_options.threads, reads_apart=self.runner.predict.device == "cuda"
        )
        run.reopen()
        self.sink = Sink(run.output, run.lease.check, retry_failed=config.retry_failed)
        self.counts = _Counts()

    def work(self) -> dict[str, Any]:
        """Do what is pending, retry what may have failed for a passing reason, then publish, audit and sum up."""
        ids = self.ids
        storage.write_json(self.run.at("labels.json"), self.label_set.to_json())
        done = self.sink.committed(self.manifest.num_rows)
        wanted = np.zeros(self.manifest.num_rows, bool)
        wanted[ids] = True
        pending = wanted & ~done
        before = int((wanted & done).sum())
        if before:
            say(f"resuming: {before} of {ids.size} regions are committed, {int(pending.sum())} remain")
        try:
            self._work_off(pending, Progress("segment", ids.size, before))
            self._retry_transient()
            self._count_all(ids)
            self.counts.check(self.config.max_failure_rate)
        finally:
            failed = self.sink.publish_failed()
            speed = self._keep_speed()
        self.sink.audit(ids)
        whole = write_statistics(
            self.run.output, self.label_set.num_classes, [item.name for item in self.manifest.travelling]
        )
        statuses = {status: whole[status] for status in schema.STATUSES if whole[status]}
        return {"regions": int(ids.size), "ok": whole["ok"], "failed": failed, "statuses": statuses, "speed": speed}

    def _retry_transient(self) -> None:
        """One last pass over the regions whose failure may have been temporary."""
        transient = np.zeros(self.manifest.num_rows, bool)
        for table in self.sink.failed():
            may_pass = pa.compute.is_in(table["status"], pa.array(schema.TRANSIENT_STATUSES))
            transient[table.filter(may_pass)["region_id"].to_numpy()] = True
        if transient.any():
            say(f"trying {int(transient.sum())} regions again whose failure may have been temporary")
            self._work_off(transient, Progress("retry", int(transient.sum())), again=True)

    def _count_all(self, ids: np.ndarray) -> None:
        """The counts of the whole run, earlier drivers' work included."""
        self.counts = _Counts(examples=self.counts.examples)
        for table in self.sink.failed():
            self.counts.statuses.update(table["status"].to_pylist())
            self.counts.examples |= dict(zip(table["status"].to_pylist(), table["error"].to_pylist(), strict=True))
        self.counts.statuses["ok"] = int(ids.size) - self.counts.finished

    def _work_off(self, pending: np.ndarray, progress: Progress, again: bool = False) -> None:
        runner = self.runner
        before = runner.predicted()

        def predicted() -> tuple[int, str]:
            rows, failed = runner.predicted()
            return rows - before[0], f"{failed} failed"

        done = progress.done
        try:
            with progress.following(predicted):
                for written in runner.run(pending, self.sink.attempt_uri):
                    self.sink.publish(written.files)
                    done += written.files.rows
                    self.timings.add(written.blocks, written.write_s)
                    if not again:
                        self.counts.add(written.files)
                        if self.counts.finished >= _RATE_LOOKED_AT_FROM:
                            self.counts.check(self.config.max_failure_rate)
        except ProcessDied:
            say("a process that predicts has died; going on with Ray, which finds the picture that killed it")
            self.runner = self.runners.on_ray()
            progress.done = done
            self._work_off(pending & ~self.sink.committed(self.manifest.num_rows), progress, again)
            return
        progress.close(f"{self.counts.failed} failed", done)

    def _keep_speed(self) -> dict[str, Any] | None:
        """Keep what was measured for `--dry-run`; a few warm-up blocks do not replace a better measurement."""
        speed, before = self.timings.speed(), self.run.record.get("speed")
        if speed and (before is None or speed["steady"]):
            self.run.lease.check()
            self.run.remember(speed=speed)
        return speed


def _describe(summary: dict[str, Any]) -> str:
    failed = {k: v for k, v in summary["statuses"].items() if k != "ok"}
    reasons = f" ({', '.join(f'{v} {k}' for k, v in failed.items())})" if failed else ""
    return f"{summary['ok']} of {summary['regions']} regions ok, {summary['failed']} failed{reasons}"
