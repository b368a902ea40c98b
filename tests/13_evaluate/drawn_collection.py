"""A drawn collection with its labels and predictions, and what the evaluate job says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline import storage
from pipeline.catalog import schema
from pipeline.catalog.manifest import region_key
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.job import evaluate
from pipeline.labels import LabelSet
from pipeline.metrics import ConfusionMatrix
from pipeline.tables.prediction_table import metadata

SET = LabelSet("drawn", ("sky", "road", "car"), ((90, 160, 220), (80, 80, 80), (200, 30, 30)), {}, (255,))
HEIGHT, WIDTH = 12, 16


class Drawn:
    """A collection `images/*.jpg` with `masks/*.png` beside it, and predictions that miss by a known share."""

    def __init__(self, root: Path, count: int = 6, label_set: LabelSet = SET, seed: int = 0) -> None:
        self.root, self.label_set = root, label_set
        random = np.random.default_rng(seed)
        self.truth: dict[str, np.ndarray] = {}
        self.masks: dict[str, np.ndarray | None] = {}
        for i in range(count):
            name = f"scene {i:03d}"
            truth = np.repeat(random.integers(0, label_set.num_classes, (HEIGHT // 4, WIDTH)), 4, axis=0)
            truth = np.where(random.random(truth.shape) < 0.05, label_set.ignore_value, truth)
            wrong = random.integers(0, label_set.num_classes, truth.shape)
            mask = np.where(random.random(truth.shape) < 0.1 * i, wrong, truth % label_set.num_classes)
            self.truth[name] = truth.astype(label_set.mask_dtype)
            self.masks[name] = mask.astype(label_set.mask_dtype)
        for folder in ("images", "masks"):
            (root / folder).mkdir(parents=True)
        for name, truth in self.truth.items():
            Image.fromarray(random.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(root / "images" / f"{name}.jpg")
            Image.fromarray(truth).save(root / "masks" / f"{name}.png")

    @property
    def matrix(self) -> ConfusionMatrix:
        """What an evaluation of all of it must find."""
        whole = ConfusionMatrix(self.label_set.num_classes)
        for name, truth in self.truth.items():
            whole.update(truth, self.masks[name], self.label_set.ignore_value)
        return whole

    def predict(self, output: Path, *, files: int = 2, root: str = "images/", split: str | None = None) -> Path:
        """Predictions as the segment job leaves them, `files` of them and one of failed rows."""
        city = pa.field("city", pa.string())
        table_schema = schema.predictions_schema(
            [schema.MANIFEST.field("split"), city], metadata(self.label_set, "weights", "pictures")
        )
        rows: list[dict[str, Any]] = []
        for i, (name, mask) in enumerate(self.masks.items()):
            row = {
                "region_id": i,
                "region_key": region_key(f"{root}{name}.jpg"),
                "path": f"{root}{name}.jpg",
                "uri": str(self.root / "images" / f"{name}.jpg"),
                "split": split,
                "city": ["Bern", "Ulm"][i % 2],
                "height": HEIGHT,
                "width": WIDTH,
                "status": "ok" if mask is not None else "decode_error",
                "error": None if mask is not None else "DecodeError: not a picture",
                "mask": None if mask is None else mask.tobytes(),
                "mask_dtype": None if mask is None else self.label_set.mask_dtype,
            }
            rows.append(row)
        (output / "predictions").mkdir(parents=True)
        for number in range(files):
            part = pa.Table.from_pylist(rows[number::files], schema=table_schema)
            pq.write_table(part, output / "predictions" / f"ok-0001-{number:04d}.parquet", row_group_size=2)
        return output


def metrics_of(predictions: Path | str, labels: Path | str, output: Path | str, **options: Any) -> dict[str, Any]:
    """The job in this process; what metrics.json holds."""
    evaluate(EvaluateConfig(str(predictions), str(labels), str(output), **options))
    found: dict[str, Any] = storage.read_json(storage.join(str(output), "metrics.json"))
    return found
