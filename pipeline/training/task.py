"""What the driver hands to every training worker, and what a checkpoint keeps beside the tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.models.spec import ModelSpec
from pipeline.training.samples.plan import SamplePlan

POSITION = "_train/position.json"  # the step of the latest checkpoint, read when the sample stream is made


@dataclass(frozen=True)
class Task:
    """All that a worker needs to know; made by the driver, the same for every worker."""

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
    monitor: Any


@dataclass
class State:
    """What a checkpoint holds beside the tensors."""

    step: int = 0
    best: float = -1.0
    history: list[dict[str, Any]] = field(default_factory=list)
    failed_samples: int = 0
