"""The segment job: every region of a collection through a network into Parquet, each exactly once.

manifest -> (pending rows) -> fetch, decode, predict -> write -> publish. Ray Data streams; the driver holds a bit per
region and moves finished files.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import cluster, schema, storage
from pipeline.checkpoint import load_checkpoint, weights_fingerprint
from pipeline.errors import PipelineError
from pipeline.labels import LabelSet
from pipeline.manifest import Manifest, Unit
from pipeline.manifest_job import manifest_of
from pipeline.progress import Progress, say
from pipeline.run import Run, open_run
from pipeline.segment_config import SegmentConfig, decisive
from pipeline.segmenter import Columns, PredictOptions, Segmenter, read_pixels
from pipeline.sink import PREDICTIONS, Sink, Written, metadata, write_rows
from pipeline.statistics import write_statistics
from pipeline.suspects import start_suspects

_ROWS_PER_SLICE = 1_000_000  # one Dataset keeps a record per block for as long as it lives
_RATE_LOOKED_AT_FROM = 200  # finished regions
_FILE_BYTES = 128 * 2**20
_FILE_WORK_S = 300.0


def segment(config: SegmentConfig) -> str:
    """Run the job; returns the line that says where the result lies."""
    started_s = time.monotonic()
    _, spec = load_checkpoint(config.checkpoint)  # whole: a damaged one is bad input here, a dead actor later
    result = decisive(config, spec.label_set, weights_fingerprint(config.checkpoint))
    with open_run(
        config.output, "segment", result, config, overwrite=config.overwrite, single_writer=config.single_writer
    ) as run:
        manifest = manifest_of(run, config.source, portion=config.portion)
        if run.summary is not None and not (config.retry_failed and run.summary["failed"]):
            return f"complete: {_told(run.summary)} in {run.at(PREDICTIONS)}"
        ids = config.portion.ids(manifest)
        cluster.connect([config.output], shared_filesystem=config.shared_filesystem)
        job = _Job(config, run, manifest, spec.label_set)
        summary = job.work(ids)
        summary["wall_s"] = round(time.monotonic() - started_s, 1)
        run.success(summary)
        job.sink.finish()
        return f"{_told(summary)} in {run.at(PREDICTIONS)}"


@dataclass
class _Tally:
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
    def __init__(self, config: SegmentConfig, run: Run, manifest: Manifest, label_set: LabelSet) -> None:
        self.config, self.run, self.manifest, self.label_set = config, run, manifest, label_set
        self.predict = self._predict_options()
        run.reopen()
        self.sink = Sink(run.output, run.lease.check, retry_failed=config.retry_failed)
        self.suspects = start_suspects()
        self.tally = _Tally()
        fingerprints = (run.record["result_fingerprint"], run.record["manifest_fingerprint"])
        self.columns = Columns(tuple(manifest.travelling), metadata(self.label_set, *fingerprints))

    def work(self, ids: np.ndarray) -> dict[str, Any]:
        """Do what is pending of `ids`, then once more what failed in passing, then publish, audit and sum up."""
        storage.write_json(self.run.at("labels.json"), self.label_set.to_json())
        done = self.sink.committed(self.manifest.num_rows)
        wanted = np.zeros(self.manifest.num_rows, bool)
        wanted[ids] = True
        pending = wanted & ~done
        before = int((wanted & done).sum())
        if before:
            say(f"resuming: {before} of {ids.size} regions are committed, {int(pending.sum())} remain")
        try:
            self._stream(pending, Progress("segment", ids.size, before))
            self._once_more()
            self._count_standing(ids)
            self.tally.check(self.config.max_failure_rate)
        finally:
            failed = self.sink.publish_failed()
        self.sink.audit(ids)
        whole = write_statistics(
            self.run.output, self.label_set.num_classes, [item.name for item in self.manifest.travelling]
        )
        statuses = {status: whole[status] for status in schema.STATUSES if whole[status]}
        return {"regions": int(ids.size), "ok": whole["ok"], "failed": failed, "statuses": statuses}

    def _once_more(self) -> None:
        """One last pass over the regions whose failure may have been passing."""
        passing = np.zeros(self.manifest.num_rows, bool)
        for table in self.sink.failed():
            transient = pa.compute.is_in(table["status"], pa.array(schema.TRANSIENT_STATUSES))
            passing[table.filter(transient)["region_id"].to_numpy()] = True
        if passing.any():
            say(f"trying {int(passing.sum())} regions once more that failed in passing")
            self._stream(passing, Progress("once more", int(passing.sum())), again=True)

    def _count_standing(self, ids: np.ndarray) -> None:
        """The tally of the whole run, earlier drivers' work included."""
        self.tally = _Tally(examples=self.tally.examples)
        for table in self.sink.failed():
            self.tally.statuses.update(table["status"].to_pylist())
            self.tally.examples |= dict(zip(table["status"].to_pylist(), table["error"].to_pylist(), strict=True))
        self.tally.statuses["ok"] = int(ids.size) - self.tally.finished

    def _stream(self, pending: np.ndarray, progress: Progress, again: bool = False) -> None:
        for written in self._written(pending):
            self.sink.publish(written)
            if not again:
                self.tally.add(written)
                if self.tally.finished >= _RATE_LOOKED_AT_FROM:
                    self.tally.check(self.config.max_failure_rate)
            progress.advance(written.rows, f"{self.tally.failed} failed")
        progress.close(f"{self.tally.failed} failed")

    def _written(self, pending: np.ndarray) -> Iterator[Written]:
        rows_per_file = self.config.rows_per_file
        for units, count in self._slices(pending):
            started_s, rows, size_bytes = time.monotonic(), 0, 0
            for written in self._dataset(units, pending, count, rows_per_file or 1024):
                yield written
                rows, size_bytes = rows + written.rows, size_bytes + written.size_bytes
            if self.config.rows_per_file is None and rows:
                by_work = rows / (time.monotonic() - started_s) * _FILE_WORK_S
                rows_per_file = int(max(64, min(_FILE_BYTES / max(size_bytes / rows, 1), by_work)))

    def _slices(self, pending: np.ndarray) -> Iterator[tuple[list[Unit], int]]:
        """The manifest's row groups that hold pending rows, and how many, in slices of `_ROWS_PER_SLICE`."""
        units: list[Unit] = []
        count = 0
        for unit in self.manifest.units():
            here = int(pending[unit.first_id : unit.first_id + unit.num_rows].sum())
            if here:
                units.append(unit)
                count += here
            if count >= _ROWS_PER_SLICE:
                yield units, count
                units, count = [], 0
        if units:
            yield units, count

    def _dataset(self, units: list[Unit], pending: np.ndarray, count: int, rows_per_file: int) -> Iterator[Written]:
        import ray
        from ray.data import ActorPoolStrategy

        columns = [name for name in self.columns.results.names if name in self.manifest.columns]
        actors = self._num_predictors()
        rows_per_block = int(np.clip(count // (4 * actors), 1, 64))
        on_gpu = self.predict.device == "cuda"
        # not read_parquet: Ray 2.60 starts 32 actors to read the footers of one small file
        data: Any = ray.data.from_arrow([pa.Table.from_pylist([vars(unit)]) for unit in units])
        data = data.map_batches(
            _read_pending,  # type: ignore[arg-type]  # Ray's own types leave keyword arguments out
            fn_kwargs={"bitmap": ray.put(np.packbits(pending)), "columns": list(dict.fromkeys([*columns, "kind"]))},
            batch_size=None,
            batch_format="pyarrow",
        )
        data = data.repartition(target_num_rows_per_block=rows_per_block)
        if on_gpu:  # a network of a GPU is fed from CPU workers
            data = data.map_batches(
                read_pixels,  # type: ignore[arg-type]
                fn_kwargs={"options": self.config.read_options},
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=1,
            )
        data = data.map_batches(
            Segmenter,
            fn_constructor_args=(
                storage.absolute(self.config.checkpoint),
                self.predict,
                self.config.read_options,
                self.columns,
                self.suspects,
            ),
            compute=ActorPoolStrategy(size=actors),
            batch_size=rows_per_block,
            batch_format="pyarrow",
            num_cpus=1,
            num_gpus=1 if on_gpu else None,
        )
        data = data.map_batches(
            _write,  # type: ignore[arg-type]
            fn_kwargs={"attempt_uri": self.sink.attempt_uri},
            batch_size=rows_per_file,
            batch_format="pyarrow",
            num_cpus=0.25,
        )
        for row in data.iter_rows():
            yield row["written"]

    def _predict_options(self) -> PredictOptions:
        """What this run predicts with; a resumed run uses what it began with, so that its masks are identical."""
        kept = self.run.record.get("predict")
        config = self.config
        if kept is None:
            device = config.device if config.device != "auto" else ("cuda" if cluster.num_gpus() else "cpu")
            kept = {
                "device": device,
                "precision": config.precision,
                "batch_size": config.batch_size or (8 if device == "cuda" else 1),
                "tile_px": config.tile_px,
                "overlap_px": config.overlap_px,
                "low_confidence": config.low_confidence,
                # n actors of one thread beat one of n threads by a fifth on a light network
                "threads": 1 if device == "cpu" else None,
            }
            self.run.remember(predict=kept)
        return PredictOptions(**kept, deadline_s=config.predict_deadline_s)

    def _num_predictors(self) -> int:
        if self.config.num_predictors:
            return self.config.num_predictors
        if self.predict.device == "cuda":
            return max(1, cluster.num_gpus())
        return cluster.num_cores()


def _read_pending(units: pa.Table, bitmap: Any, columns: list[str]) -> pa.Table:
    """The pending rows of row groups of the manifest."""
    import ray

    bits = ray.get(bitmap) if isinstance(bitmap, ray.ObjectRef) else bitmap
    table = pa.concat_tables([Unit(**unit).read(columns) for unit in units.to_pylist()])
    ids = table["region_id"].to_numpy()
    return table.filter(pa.array((bits[ids >> 3] >> (7 - (ids & 7))) & 1 == 1))


def _write(table: pa.Table, attempt_uri: str) -> dict[str, list[Any]]:
    return {"written": [write_rows(table, attempt_uri)]}


def _told(summary: dict[str, Any]) -> str:
    failed = {k: v for k, v in summary["statuses"].items() if k != "ok"}
    reasons = f" ({', '.join(f'{v} {k}' for k, v in failed.items())})" if failed else ""
    return f"{summary['ok']} of {summary['regions']} regions ok, {summary['failed']} failed{reasons}"
