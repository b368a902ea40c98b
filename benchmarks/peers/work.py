"""What every peer does with a picture, so that only what stands around it differs: the same predictor, the same row."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.checkpoint import load_checkpoint
from pipeline.predictor import Prediction, Predictor

TABLE = pa.schema(
    [
        ("path", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("mask", pa.large_binary()),
        ("class_pixels", pa.list_(pa.int64())),
        ("mean_confidence", pa.float32()),
        ("class_confidence", pa.list_(pa.float32())),
        ("low_confidence_share", pa.float32()),
    ]
)


@dataclass(frozen=True)
class Job:
    """One peer's work: `python PEER.py PICTURES CHECKPOINT OUTPUT PROCESSES THREADS BATCH`."""

    pictures: Path
    checkpoint: str
    output: Path
    processes: int
    threads: int
    batch: int

    @classmethod
    def from_arguments(cls) -> Job:
        pictures, checkpoint, output, *numbers = sys.argv[1:]
        return cls(Path(pictures), checkpoint, Path(output), *map(int, numbers))

    @property
    def paths(self) -> list[str]:
        return sorted(str(path) for path in self.pictures.iterdir())

    def predictor(self) -> Predictor:
        model, spec = load_checkpoint(self.checkpoint)
        return Predictor(model, spec, device="cpu", threads=self.threads, batch_size=self.batch)


def in_processes(predict: Callable[[Job, int], None], job: Job) -> None:
    """`predict(job, share)` in a process of its own for each share, to the end of all."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=predict, args=(job, share)) for share in range(job.processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def row(path: str, prediction: Prediction | Exception) -> dict[str, Any]:
    """A picture's row of `TABLE`."""
    assert isinstance(prediction, Prediction), prediction
    height, width = prediction.class_map.shape
    return {
        "path": path,
        "height": height,
        "width": width,
        "mask": prediction.class_map.tobytes(),
        "class_pixels": prediction.class_pixels.tolist(),
        "mean_confidence": prediction.mean_confidence,
        "class_confidence": [None if np.isnan(c) else float(c) for c in prediction.class_confidence],
        "low_confidence_share": prediction.low_confidence_share,
    }


def write(rows: list[dict[str, Any]], path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(rows, TABLE), path, compression="zstd")
