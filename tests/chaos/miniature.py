"""The segment job's driver without its workers: rows are made here instead of predicted, everything else is the job's.

Its steps are in the order of `pipeline.segment.job`, so the commit protocol can be killed at each of them in a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.catalog import schema
from pipeline.catalog.job import manifest_of
from pipeline.catalog.manifest import Manifest
from pipeline.catalog.subset import Subset
from pipeline.labels import CAMVID
from pipeline.runtime.cli import main
from pipeline.runtime.run import open_run
from pipeline.tables.increment import recover, take_increment
from pipeline.tables.prediction_table import metadata
from pipeline.tables.sink import Sink, write_rows
from pipeline.tables.statistics import write_statistics

ROWS_PER_FILE = 4
PAUSE_S = 0.0  # before each file
HEIGHT, WIDTH = 4, 6


@dataclass
class MiniatureConfig:
    """The options of the segment job that the miniature knows."""

    source: str
    output: str
    retry_failed: bool = False
    incremental: bool = False
    overwrite: bool = False


def miniature_job(argv: list[str]) -> None:
    """The miniature as a command: exit codes, messages and logs as `jobs/segment.py` has them."""
    main(run_miniature, MiniatureConfig, argv)


def run_miniature(config: MiniatureConfig) -> str:
    with open_run(config.output, "segment", {"rows": 1}, config, overwrite=config.overwrite) as run:
        recover(run)
        if config.incremental and "manifest" in run.record:
            manifest = take_increment(run, config.source, Subset(), _columns, lambda: None)
        else:
            manifest = manifest_of(run, config.source)
        if run.summary is not None and not config.retry_failed:
            return "complete"
        run.reopen()
        sink = Sink(run.output, run.lease.check, retry_failed=config.retry_failed)
        storage.write_json(run.at("labels.json"), CAMVID.to_json())
        pending = np.flatnonzero(~sink.committed(manifest.num_rows))
        for ids in _chunks(pending):
            time.sleep(PAUSE_S)
            sink.publish(write_rows(rows(manifest, ids), sink.attempt_uri))
        failed = sink.publish_failed()
        sink.audit(np.arange(manifest.num_rows))
        write_statistics(run.output, CAMVID.num_classes, [item.name for item in manifest.travelling])
        run.success({"regions": manifest.num_rows, "failed": failed})
        sink.finish()
        return f"{manifest.num_rows - failed} of {manifest.num_rows} ok"


def rows(manifest: Manifest, ids: Iterable[int]) -> pa.Table:
    """Result rows of these regions, the same in every run: one in eight is broken, and one was too slow."""
    columns = _columns(manifest, "m")
    wanted = manifest.table([name for name in columns.names if name in manifest.columns]).take(pa.array(list(ids)))
    made = []
    for row in wanted.to_pylist():
        number = int(row["region_key"][:8], 16)
        status = {3: "decode_error", 6: "timeout"}.get(number % 8, "ok")
        result = {"status": status, "error": None if status == "ok" else f"{status} of {row['path']}"}
        if status == "ok":
            mask = np.random.default_rng(number).integers(0, 11, (HEIGHT, WIDTH), np.uint8)
            result |= {"mask": mask.tobytes(), "mask_dtype": "uint8", "height": HEIGHT, "width": WIDTH}
            result |= {"class_pixels": np.bincount(mask.ravel(), minlength=11).tolist(), "mean_confidence": 0.5}
            result |= {"class_confidence": [0.5] * 11, "low_confidence_share": 0.0}
        made.append(row | result)
    return pa.Table.from_pylist(made, columns)


def _columns(manifest: Manifest, manifest_fingerprint: str) -> pa.Schema:
    return schema.predictions_schema(manifest.travelling, metadata(CAMVID, "r", manifest_fingerprint))


def _chunks(ids: np.ndarray) -> Iterator[list[int]]:
    for start in range(0, len(ids), ROWS_PER_FILE):
        yield ids[start : start + ROWS_PER_FILE].tolist()
