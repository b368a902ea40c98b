"""A hand-written loop over a PyTorch DataLoader, in so many processes, each with a loader worker that decodes ahead."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader, Dataset
from work import Job, in_processes, row, write

from pipeline.decode.picture import decode

ROWS_PER_FILE = 64  # of 512, a short run's would all be written after its last prediction


class Pictures(Dataset):  # type: ignore[type-arg]
    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[str, Any]:
        with open(self.paths[i], "rb") as file:
            return self.paths[i], decode(file.read())


def as_it_is(batch: list[Any]) -> list[Any]:
    return batch


def predict(job: Job, share: int) -> None:
    predictor = job.predictor()
    loader = DataLoader(
        Pictures(job.paths[share :: job.processes]),
        batch_size=job.batch,
        num_workers=1,
        collate_fn=as_it_is,
        prefetch_factor=8,
        multiprocessing_context="spawn",
    )
    rows: list[dict[str, Any]] = []
    files = 0
    for batch in loader:
        answers = predictor.predict([pixels for _, pixels in batch])
        rows += [row(path, answer) for (path, _), answer in zip(batch, answers, strict=True)]
        if len(rows) >= ROWS_PER_FILE:
            write(rows, job.output / f"{share}-{files}.parquet")
            rows, files = [], files + 1
    if rows:
        write(rows, job.output / f"{share}-{files}.parquet")


if __name__ == "__main__":
    job = Job.from_arguments()
    job.output.mkdir(parents=True)
    in_processes(predict, job)
