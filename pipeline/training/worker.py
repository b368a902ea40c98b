"""What surrounds the training loop in one process: its rank and device, its samples, its peers and its driver.

`ray_worker` is one of several on a cluster, `process_worker` the only one, in the job's own process. The loop knows
neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.training.samples.validation import ValidationPicture

Batch = dict[str, np.ndarray]


class Worker(ABC):
    """One training process as the loop sees it."""

    rank: int
    device: torch.device

    @abstractmethod
    def samples(self, first_step: int) -> Iterator[Batch]:
        """This worker's batches from `first_step` on, one per step.

        `pixels` n x H x W x 3 uint8, `truth` n x H x W, `failure` n texts, `step` n numbers. Raises RuntimeError where
        they cannot begin there.
        """

    @abstractmethod
    def validation_pictures(self) -> Iterator[ValidationPicture]:
        """This worker's share of the validation pictures."""

    @abstractmethod
    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call in a step: with several workers one that averages gradients."""

    @abstractmethod
    def from_first(self, value: int) -> int:
        """The first worker's `value`, the same on every worker."""

    @abstractmethod
    def report(self, status: dict[str, Any], notes: list[str]) -> bool:
        """Tell the driver where the run stands; True where it asks to save and stop. Only notes count from others
        than the first worker."""

    def older_state(self) -> bytes | None:
        """A state that version 0.1 left where only this kind of worker finds it."""
        return None
