"""What a segment run would do, how much of it, how long it would take and what that would cost. Nothing is written.

The time comes from the rate that an earlier run into the same output measured, or else from a few of the pending
pictures, read and predicted in this process.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.catalog.job import manifest_of, refuse_other_source, subset_of
from pipeline.catalog.manifest import Manifest, open_manifest
from pipeline.catalog.manifest_writer import build_manifest
from pipeline.errors import InputError
from pipeline.reading.regions import RegionReader
from pipeline.runtime import cluster
from pipeline.runtime.progress import duration
from pipeline.runtime.run import Run, inspect_run
from pipeline.segment.config import SegmentConfig
from pipeline.segment.predict_options import PredictOptions, num_predictors, predict_options
from pipeline.tables.increment import carried_ids
from pipeline.tables.prediction_table import PREDICTIONS, committed_ids

_PROBED = 8  # pictures


def forecast(config: SegmentConfig, result: dict[str, Any]) -> str:
    """The text of `--dry-run`; `result` is what decides a run. Raises InputError wherever the run would."""
    run = inspect_run(config.output, "segment", result, overwrite=config.overwrite)
    if run.record.get("increment"):
        raise InputError(
            "an increment was interrupted half-way",
            where=run.output,
            todo="give the same command without --dry-run first",
        )
    with tempfile.TemporaryDirectory() as scratch:
        manifest, ids, done = _committed(config, run, scratch)
        pending = np.zeros(manifest.num_rows, bool)
        pending[ids] = True
        pending &= ~done
        work = Work.of(manifest, pending)
        lines = [f"{work.summary(int(ids.size))}"]
        if work.regions:
            lines += _how_long(config, run, manifest, pending, work.regions)
    return "\n".join([*lines, f"dry run: nothing was written; the results would lie in {run.at(PREDICTIONS)}"])


def _committed(config: SegmentConfig, run: Run, scratch: str) -> tuple[Manifest, np.ndarray, np.ndarray]:
    """The manifest that the run would work off, the ids it would select, and bool[num_rows]: what needs no work."""
    if config.incremental and "manifest" in run.record:
        config.subset.require_to_hold(subset_of(run), run.output)
        given = open_manifest(config.source)
        if given is None:
            refuse_other_source(run, config.source)
        manifest = given or build_manifest(config.source, scratch, scenes=config)
        ids = config.subset.ids(manifest)
        return manifest, ids, carried_ids(run, manifest, ids, retry_failed=config.retry_failed)
    manifest = manifest_of(run, config.source, subset=config.subset, keep_at=scratch, scenes=config)
    ids = config.subset.ids(manifest)
    if run.fresh:
        return manifest, ids, np.zeros(manifest.num_rows, bool)
    return manifest, ids, committed_ids(run.output, manifest.num_rows, retry_failed=config.retry_failed)


@dataclass
class Work:
    """How much is pending, counted from the manifest's columns."""

    regions: int = 0
    size_bytes: int = 0
    unknown_sizes: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, manifest: Manifest, pending: np.ndarray) -> Work:
        work = cls()
        for table in manifest.read_parts(["region_id", "kind", "split", "size_bytes"]):
            rows = table.filter(pa.array(pending[table["region_id"].to_numpy()]))
            work.regions += rows.num_rows
            work.size_bytes += pa.compute.sum(rows["size_bytes"]).as_py() or 0
            work.unknown_sizes += rows["size_bytes"].null_count
            for counter, name in ((work.kinds, "kind"), (work.splits, "split")):
                for pair in rows[name].value_counts().to_pylist():
                    counter[pair["values"] or "no split"] += pair["counts"]
        return work

    def summary(self, selected: int) -> str:
        if not self.regions:
            return f"nothing to do: all {selected} regions are committed"
        parts = [", ".join(f"{count} {kind}s" for kind, count in sorted(self.kinds.items()))]
        if set(self.splits) != {"no split"}:
            parts.append(", ".join(f"{name}: {count}" for name, count in sorted(self.splits.items())))
        unknown = f" and {self.unknown_sizes} files of unknown size" if self.unknown_sizes else ""
        parts.append(f"{self.size_bytes / 1e6:,.1f} MB to fetch{unknown}")
        done = f"; {selected - self.regions} are committed" if selected > self.regions else ""
        return f"would segment {self.regions} of {selected} regions ({'; '.join(parts)}){done}"


def _how_long(config: SegmentConfig, run: Run, manifest: Manifest, pending: np.ndarray, regions: int) -> list[str]:
    gpus, cores = _machine(config)
    options = run.record.get("predict") or predict_options(config, gpus)
    predictors = num_predictors(config, options["device"], options["threads"], gpus, cores)
    speed = None if run.fresh else run.record.get("speed")
    if speed:
        rate: float | None = speed["pictures_per_s"] / speed["predictors"] * predictors
        how = f"measured over {speed['pictures']} pictures with {speed['predictors']} predictors by the run there"
    else:
        rate, how = _probe(config, manifest, pending, options, predictors, cores)
    on = f"with {predictors} predictor{'s' * (predictors > 1)} on {options['device']}"
    if not rate:
        return [f"{on}; how long is not known: {how}"]
    lines = [f"{on}: about {rate:.1f} pictures/s, {duration(regions / rate)} after the start-up ({how})"]
    if config.price_per_hour is not None:
        price, cost = config.price_per_hour, config.price_per_hour / 3600 / rate
        lines.append(f"at {price:g} an hour: {regions * cost:.2f}, a million pictures {1e6 * cost:.2f}")
    return lines


def _machine(config: SegmentConfig) -> tuple[int, int]:
    """GPUs and cores that a run would find: of the cluster where there is one, else of this machine, without Ray."""
    if os.environ.get("RAY_ADDRESS"):
        cluster.connect([config.output], shared_filesystem=config.shared_filesystem)
        return cluster.num_gpus(), cluster.num_cores()
    import torch

    return torch.cuda.device_count(), os.cpu_count() or 1


def _probe(
    config: SegmentConfig, manifest: Manifest, pending: np.ndarray, options: dict[str, Any], predictors: int, cores: int
) -> tuple[float | None, str]:
    """Pictures a second of the whole run, from a few of its pictures done here, and how that was estimated."""
    if options["device"] == "cuda":
        import torch

        if not torch.cuda.is_available():
            return None, "the predictors run on GPUs and this machine has none; a run with --limit measures it"
    predictor = PredictOptions(**options).predictor(config.checkpoint)
    reader = RegionReader(config.read_options)
    try:
        rows = manifest.sampled(np.flatnonzero(pending), _PROBED)
        list(reader.read(rows[:1]))  # starts the decoder
        reader.take_busy()
        regions = list(reader.read(rows))
        busy = reader.take_busy()
    finally:
        reader.close()
    pictures = [region.pixels for region in regions if region.pixels is not None]
    if not pictures:
        return None, f"none of {len(regions)} sampled pictures could be read; {regions[0].error}"
    predictor.predict(pictures[:1])  # warms up
    begin_s = time.monotonic()
    predictor.predict(pictures)
    predict_s = (time.monotonic() - begin_s) / len(pictures)
    fetch_s, decode_s = busy["fetch"] / len(regions), busy["decode"] / len(regions)
    on_cpu = options["device"] == "cpu"
    rate = min(
        predictors / predict_s,
        cores / (decode_s + predict_s * on_cpu),  # cores are shared with the decoders
        predictors * config.read_options.threads / max(fetch_s, 1e-9),
    )
    each = f"fetch {1000 * fetch_s:.0f} ms, decode {1000 * decode_s:.0f} ms, predict {1000 * predict_s:.0f} ms"
    return rate, f"estimated from {len(pictures)} pictures done here: {each}"
