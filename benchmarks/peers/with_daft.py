"""Daft's own way: a glob, `download`, `decode_image`, a class of its own processes, `write_parquet`."""

from __future__ import annotations

from typing import Any

import daft
from daft import DataType, col
from work import Job, row

ROW = DataType.struct(
    {
        "height": DataType.int32(),
        "width": DataType.int32(),
        "mask": DataType.binary(),
        "class_pixels": DataType.list(DataType.int64()),
        "mean_confidence": DataType.float32(),
        "class_confidence": DataType.list(DataType.float32()),
        "low_confidence_share": DataType.float32(),
    }
)


class Predict:
    def __init__(self, job: Job) -> None:
        self.predictor = job.predictor()

    @daft.method.batch(return_dtype=ROW)
    def __call__(self, paths: Any, images: Any) -> list[dict[str, Any]]:
        answers = self.predictor.predict(images.to_pylist())
        rows = [row(path, answer) for path, answer in zip(paths.to_pylist(), answers, strict=True)]
        return [{name: value for name, value in one.items() if name != "path"} for one in rows]


if __name__ == "__main__":
    job = Job.from_arguments()
    predict: Any = daft.cls(Predict, cpus=1, use_process=True, max_concurrency=job.processes)(job)
    frame = daft.from_glob_path(f"{job.pictures}/*").select("path")
    frame = frame.with_column("image", col("path").download().decode_image(mode="RGB")).into_batches(job.rows)
    frame = frame.with_column("row", predict(col("path"), col("image")))
    frame = frame.select("path", *(col("row")[name].alias(name) for name in ROW.fields))
    frame.write_parquet(str(job.output), compression="zstd")
