"""What the driver hands to every training worker: what to train, and on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.models.spec import ModelSpec
from pipeline.training.samples.loader import SampleLoader
from pipeline.training.samples.plan import SamplePlan


@dataclass(frozen=True)
class Task:
    """All that the loop needs to know; the same for every worker."""

    output: str
    model: str
    options: dict[str, Any]
    spec: ModelSpec  # of the checkpoints; options without weights
    plan: SamplePlan
    class_weights: list[float]
    loss: str
    auxiliary_weight: float
    learning_rate: float
    backbone_rate: float
    weight_decay: float
    warmup_steps: int
    schedule: str
    power: float | None
    ema_decay: float
    validate_every: int
    checkpoint_minutes: float
    precision: str
    threads: int


@dataclass(frozen=True)
class TrainingData:
    """The rows to train on and to validate with, and how a sample is read."""

    train: pa.Table
    validation: pa.Table
    loader: SampleLoader
