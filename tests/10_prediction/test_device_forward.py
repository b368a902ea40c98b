"""What runs on a GPU gives what the definition gives: tried on a CPU, where graphs and pinned memory are missing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from local_network import SPEC, Local, assert_same, pictures
from torch import Tensor, nn

from pipeline.prediction import predictor as predictor_file
from pipeline.prediction.device_forward import DeviceForward
from pipeline.prediction.predictor import Prediction, Predictor


def predictors(monkeypatch, model, spec=SPEC, **options) -> tuple[Predictor, Predictor]:
    plain = Predictor(model, spec, device="cpu", **options)
    monkeypatch.setattr(predictor_file, "forward_for", lambda device: DeviceForward)
    return plain, Predictor(model, spec, device="cpu", **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"keep_confidence": True, "flip": True},
        {"tile_px": 128, "overlap_px": 32, "keep_confidence": True},
        {"keep_probabilities": True},
    ],
)
def test_the_same_predictions_as_by_the_plain_way(monkeypatch, options):
    plain, device = predictors(monkeypatch, Local().eval(), batch_size=4, **options)
    given = pictures(*[(90, 230)] * 7, (20, 30), (1, 1))
    for found, expected in zip(device.predict(given), plain.predict(given), strict=True):
        assert_same(found, expected)
    again = device.predict(given)  # buffers are used again, and what was given out is not overwritten
    for found, expected in zip(again, plain.predict(given), strict=True):
        assert_same(found, expected)


def test_channels_without_a_class_and_bgr(monkeypatch):
    spec = replace(SPEC, class_map=(1, None, 0), channel_order="bgr")
    plain, device = predictors(monkeypatch, Local().eval(), spec, batch_size=2)
    given = pictures((33, 40), (33, 40), (33, 40))
    for found, expected in zip(device.predict(given), plain.predict(given), strict=True):
        assert_same(found, expected)
        assert isinstance(found, Prediction) and (found.class_map == spec.label_set.ignore_value).any()


def test_what_fails_costs_its_own_picture_only(monkeypatch):
    class Troubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 2:
                raise torch.OutOfMemoryError(f"{len(x)} are too many")
            if (x.amax(dim=(1, 2, 3)) < 0).any():
                raise ValueError("cannot see in the dark")
            return x / (x.amax(dim=(1, 2, 3), keepdim=True) > 2.2)

    _, device = predictors(monkeypatch, Troubled(), batch_size=8)
    given = pictures(*[(20, 30)] * 9)
    given[3] = np.zeros_like(given[3])
    given[5] = np.full_like(given[5], 128)
    found = device.predict(given)
    assert isinstance(found[3], ValueError) and isinstance(found[5], FloatingPointError)
    assert sum(isinstance(one, Prediction) for one in found) == 7
    assert device.batch_size_of(given[0]) == 2
