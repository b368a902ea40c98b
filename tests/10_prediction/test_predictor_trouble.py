"""One picture's trouble is its own: what the network, the memory or the device does to a picture costs no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from local_network import SPEC, Local, assert_same, pictures, predict
from torch import Tensor, nn

from pipeline.prediction.predictor import DeviceError, Prediction, Predictor


class Troubled(nn.Module):
    """Gives its input as logits, after `trouble(input)` had its chance to raise."""

    def __init__(self, trouble) -> None:
        super().__init__()
        self.trouble = trouble

    def forward(self, x: Tensor) -> Tensor:
        self.trouble(x)
        return x


def test_a_picture_that_the_network_raises_on_costs_no_other():
    def trouble(x: Tensor) -> None:
        if (x.amax(dim=(1, 2, 3)) < 0).any():
            raise ValueError("cannot see in the dark")

    given = pictures(*[(20, 30)] * 6)
    given[2] = np.zeros_like(given[2])
    answers = Predictor(Troubled(trouble), SPEC, batch_size=4).predict(given)
    assert isinstance(answers[2], ValueError) and "dark" in str(answers[2])
    assert all(isinstance(answer, Prediction) for i, answer in enumerate(answers) if i != 2)


def test_a_picture_of_other_bands_is_an_answer():
    grey = np.zeros((20, 30, 1), dtype=np.uint8)
    flat = np.zeros((20, 30), dtype=np.uint8)
    empty = np.zeros((0, 30, 3), dtype=np.uint8)
    answers = Predictor(Local().eval(), SPEC).predict([grey, *pictures((20, 30)), flat, empty])
    assert isinstance(answers[0], ValueError) and "20x30x1; the network takes HxWx3" in str(answers[0])
    assert isinstance(answers[1], Prediction)
    assert isinstance(answers[2], ValueError) and isinstance(answers[3], ValueError)


@pytest.mark.parametrize("most", [0, 1, 2])
def test_a_batch_too_large_for_memory_is_halved(most):
    def trouble(x: Tensor) -> None:
        if len(x) > most:
            raise torch.OutOfMemoryError(f"{len(x)} are too many")

    given = pictures(*[(20, 30)] * 5)
    answers = Predictor(Troubled(trouble), SPEC, batch_size=4).predict(given)
    if most == 0:
        assert all(isinstance(answer, torch.OutOfMemoryError) for answer in answers)
    else:
        for answer, picture in zip(answers, given, strict=True):
            assert_same(answer, predict(Predictor(Troubled(lambda x: None), SPEC), [picture])[0])


def test_a_broken_device_is_not_the_picture():
    def trouble(x: Tensor) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(DeviceError, match="illegal memory access"):
        Predictor(Troubled(trouble), SPEC).predict(pictures((20, 30)))


def test_logits_that_are_no_numbers_or_no_logits_are_an_error():
    class Not(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float("nan") if x.shape[-1] == 30 else x[:, :2]

    answers = Predictor(Not(), SPEC).predict(pictures((20, 30), (20, 31)))
    assert isinstance(answers[0], FloatingPointError) and "no numbers" in str(answers[0])
    assert isinstance(answers[1], ValueError) and "(1, 2, 20, 31) instead of (1, 3, 20, 31)" in str(answers[1])


def test_a_process_that_also_trains_keeps_its_settings():
    seen = []
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    network = Troubled(lambda x: seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic)))
    Predictor(network, SPEC).predict(pictures((20, 30)))
    assert seen[-1] == (False, True)
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic)
