"""A network that sees no further than its surroundings, and the pictures it is asked about."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.labels import LabelSet
from pipeline.models.spec import ModelSpec
from pipeline.prediction.predictor import Prediction, Predictor

LABELS = LabelSet("three", ("a", "b", "c"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
SPEC = ModelSpec("local", {}, LABELS)


class Local(nn.Sequential):
    """A fully convolutional network that sees 15 pixels around each pixel, partly on a grid of stride 4."""

    def __init__(self, classes: int = 3) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Upsample(scale_factor=4, mode="bilinear"),
            nn.Conv2d(8, classes, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return super().forward(x)[..., :height, :width]


def pictures(*sizes: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def predict(predictor: Predictor, given: list[np.ndarray]) -> list[Prediction]:
    answers = predictor.predict(given)
    assert all(isinstance(answer, Prediction) for answer in answers), answers
    return answers


def assert_same(first: Prediction, second: Prediction) -> None:
    for field in dataclasses.fields(Prediction):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name), err_msg=field.name)
