"""Losses and schedules: against torch's and against the definitions, and where everything is ignored."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.losses import LOSSES, cross_entropy, cross_entropy_dice, soft_dice
from pipeline.schedules import poly

K, IGNORE = 4, 255


def example(seed: int = 0, ignored: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, K, 5, 7, generator=generator)
    target = torch.randint(0, K, (2, 5, 7), generator=generator)
    target[torch.rand(target.shape, generator=generator) < ignored] = IGNORE
    return logits.requires_grad_(), target


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5, 0.0])])
def test_cross_entropy_is_torchs(weights):
    logits, target = example()
    theirs = functional.cross_entropy(logits, target, weight=weights, ignore_index=IGNORE)
    torch.testing.assert_close(cross_entropy(logits, target, weights, IGNORE), theirs)


def test_soft_dice_is_its_definition():
    logits, target = example()
    p = logits.softmax(1).permute(0, 2, 3, 1)[target != IGNORE]
    truth = functional.one_hot(target[target != IGNORE], K).float()
    expected = (1 - 2 * (p * truth).sum(0) / (p.sum(0) + truth.sum(0))).mean()
    torch.testing.assert_close(soft_dice(logits, target), expected)


def test_soft_dice_averages_over_the_classes_present_only():
    logits, target = example(ignored=0)
    perfect = 50 * functional.one_hot(target % 2, K).permute(0, 3, 1, 2).float()
    assert soft_dice(perfect, target % 2) == pytest.approx(0, abs=1e-6)  # classes 2 and 3 do not occur
    assert soft_dice(perfect.flip(1), target % 2) == pytest.approx(1, abs=1e-6)


def test_the_sum_is_the_sum():
    logits, target = example()
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(
        cross_entropy_dice(logits, target, weights), cross_entropy(logits, target, weights) + soft_dice(logits, target)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_to_learn_from_is_zero_and_not_nan(name):
    logits, target = example(ignored=1.1)
    loss = LOSSES[name](logits, target, torch.zeros(K))
    loss.backward()
    assert loss == 0 and logits.grad is not None and not logits.grad.any()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), name=st.sampled_from(sorted(LOSSES)))
def test_what_is_predicted_where_the_truth_is_ignored_changes_nothing(seed, name):
    logits, target = example(seed, ignored=0.5)
    loss = LOSSES[name](logits, target)
    loss.backward()
    ignored = (target == IGNORE)[:, None].expand_as(logits)
    assert not logits.grad[ignored].any()
    other = torch.where(ignored, torch.full_like(logits, 3.0), logits)
    torch.testing.assert_close(LOSSES[name](other, target), loss)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_logits_are_met_in_float32(name):
    logits, target = example()
    loss = LOSSES[name](logits.detach().bfloat16() * 100, target)
    assert loss.dtype == torch.float32 and torch.isfinite(loss)


@given(power=st.floats(0.1, 3), max_steps=st.integers(1, 1000), warmup=st.integers(0, 50))
def test_poly_falls_to_zero_behind_its_warmup(power, max_steps, warmup):
    factors = [poly(step, max_steps, power, warmup) for step in range(max_steps + 2)]
    assert all(0 <= factor <= 1 for factor in factors) and factors[max_steps] == factors[-1] == 0
    falling = factors[warmup:]
    assert falling == sorted(falling, reverse=True)
    if warmup:
        assert factors[0] <= 1 / warmup + 1e-9


def test_poly_is_the_papers():
    assert poly(0, 100, 0.95) == 1
    assert poly(30, 100, 0.95) == pytest.approx(0.7**0.95)
    with pytest.raises(InputError, match="max_steps=0"):
        poly(0, 0)
