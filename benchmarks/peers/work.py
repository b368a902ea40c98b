"""What every peer does with a picture, so that only what stands around it differs: the same predictor, the same row."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.models.checkpoint import load_checkpoint
from pipeline.prediction.predictor import Prediction, Predictor

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
    def rows(self) -> int:
        """How many pictures are handed over at once where that is not the batch of a forward pass."""
        return int(os.environ.get("THROUGHPUT_ROWS", "16"))

    @property
    def paths(self) -> list[str]:
        return sorted(str(path) for path in self.pictures.iterdir())

    def predictor(self) -> Predictor:
        model, spec = load_checkpoint(self.checkpoint)
        return Predictor(model, spec, device="cpu", threads=self.threads, batch_size=self.batch)


class PlainPredictor:
    """What somebody writes who follows a tutorial: pixels to floats, network, softmax, maximum; a batch of one size."""

    def __init__(self, job: Job) -> None:
        self.model, self.spec = load_checkpoint(job.checkpoint)
        self.mean, self.std = (torch.tensor(v)[:, None, None] for v in (self.spec.mean, self.spec.std))

    @torch.inference_mode()
    def predict(self, pictures: list[np.ndarray]) -> list[Prediction]:
        x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
        confidences, class_maps = self.model((x - self.mean) / self.std).softmax(1).max(1)
        return [self._prediction(*maps) for maps in zip(confidences, class_maps, strict=True)]

    def _prediction(self, confidence: torch.Tensor, class_map: torch.Tensor) -> Prediction:
        classes = self.spec.label_set.num_classes
        pixels = torch.bincount(class_map.flatten(), minlength=classes).numpy()
        sums = torch.bincount(class_map.flatten(), confidence.flatten().double(), minlength=classes).numpy()
        means = np.divide(sums, pixels, out=np.full(classes, np.nan), where=pixels > 0)
        low_share = float((confidence < 0.5).float().mean())
        return Prediction(class_map.to(torch.uint8).numpy(), pixels, float(confidence.mean()), means, low_share)


if os.environ.get("THROUGHPUT_TRACE"):
    import sitecustomize  # trace/, which notes the project's predictor by itself

    sitecustomize._wrap(PlainPredictor)


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
