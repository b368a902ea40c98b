"""Ray Data's documented recipe: `read_images` -> `map_batches` with an actor pool -> `write_parquet`.

https://docs.ray.io/en/latest/data/batch_inference.html. THROUGHPUT_RECIPE=best lets each actor keep one thread and
passes pixels on without a copy; THROUGHPUT_RECIPE=own predicts as the page does, in plain torch, a batch at once.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import ray
from work import Job, PlainPredictor, row


class Predict:
    def __init__(self, job: Job) -> None:
        own = os.environ.get("THROUGHPUT_RECIPE") == "own"
        self.predictor: Any = PlainPredictor(job) if own else job.predictor()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        pictures = [np.ascontiguousarray(pixels) for pixels in batch["image"]]
        answers = self.predictor.predict(pictures)
        rows = [row(path, answer) for path, answer in zip(batch["path"], answers, strict=True)]
        return {name: [one[name] for one in rows] for name in rows[0]}


if __name__ == "__main__":
    job = Job.from_arguments()
    ray.init(address="local", num_cpus=max(4, job.processes), include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    best = os.environ.get("THROUGHPUT_RECIPE") == "best"
    data: Any = ray.data.read_images(str(job.pictures), include_paths=True, mode="RGB")
    data = data.map_batches(
        Predict,
        fn_constructor_args=(job,),
        batch_size=job.batch if best else job.rows,
        concurrency=job.processes,
        **({"num_cpus": 1, "zero_copy_batch": True} if best else {}),
    )
    data.write_parquet(str(job.output), **({"compression": "zstd"} if best else {}))
