"""TensorBoard's event files of a training run."""

from __future__ import annotations

import os
import tempfile
from typing import Any

from pipeline import storage


class EventFiles:
    """Event files under OUTPUT/tensorboard; for a remote output written beside and uploaded now and then."""

    def __init__(self, output: str, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.uri = storage.join(output, "tensorboard")
        self.remote = not storage.is_local(output)
        self.folder = tempfile.mkdtemp(prefix="tensorboard-") if self.remote else storage.local_path(self.uri)
        self.writer = SummaryWriter(self.folder, purge_step=step or None, flush_secs=30)

    def step(self, step: int, loss: float, rate: float, wait_share: float) -> None:
        """`rate` is the learning rate, `wait_share` the share of time waited for samples since the last validation."""
        self.writer.add_scalar("train/loss", loss, step)
        self.writer.add_scalar("train/learning_rate", rate, step)
        self.writer.add_scalar("train/wait_share", wait_share, step)

    def validation(self, step: int, record: dict[str, Any]) -> None:
        for name in ("miou", "pixel_accuracy"):
            if record[name] is not None:
                self.writer.add_scalar(f"validation/{name}", record[name], step)
        for name, iou in record["iou"].items():
            if iou is not None:
                self.writer.add_scalar(f"validation_iou/{name}", iou, step)

    def upload(self) -> None:
        self.writer.flush()
        if self.remote:
            for name in os.listdir(self.folder):
                with open(os.path.join(self.folder, name), "rb") as file:
                    storage.write_bytes(storage.join(self.uri, name), file.read())

    def close(self) -> None:
        self.writer.close()
        if self.remote:
            self.upload()
