"""Losses and schedules: against torch's and against the definitions, and where everything is ignored."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.training.optimization.losses import (
    LOSSES,
    cross_entropy,
    cross_entropy_dice,
    focal,
    ohem_cross_entropy,
    soft_dice,
    with_auxiliary,
)
from pipeline.training.optimization.schedules import SCHEDULES, factor

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


def test_focal_is_its_definition():
    logits, target = example()
    p = logits.softmax(1).permute(0, 2, 3, 1)[target != IGNORE]
    of_truth = p.gather(1, target[target != IGNORE][:, None])[:, 0]
    torch.testing.assert_close(focal(logits, target), (-((1 - of_truth) ** 2) * of_truth.log()).mean())
    torch.testing.assert_close(focal(logits, target, gamma=0.0), cross_entropy(logits, target))


def test_focal_has_gradients_where_everything_is_right():
    target = torch.zeros(1, 2, 2, dtype=torch.long)
    logits = torch.tensor([500.0, 0, 0, 0])[None, :, None, None].expand(1, K, 2, 2).clone().requires_grad_()
    focal(logits, target, gamma=0.5).backward()
    assert torch.isfinite(logits.grad).all()


def test_ohem_is_cross_entropy_over_the_hard_pixels():
    logits, target = example()
    logits = logits.detach() * 4
    per_pixel = functional.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    hard = (target != IGNORE) & (per_pixel > -torch.tensor(0.7).log())
    assert 0 < hard.sum() < (target != IGNORE).sum()
    torch.testing.assert_close(ohem_cross_entropy(logits, target, least_share=0.0), per_pixel[hard].mean())


def test_ohem_takes_the_hardest_where_few_are_hard():
    logits, target = example()
    per_pixel = functional.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    known = int((target != IGNORE).sum())
    hardest = per_pixel.flatten().topk(-(-known // 4)).values
    found = ohem_cross_entropy(logits, target, threshold=1e-9, least_share=0.25)
    torch.testing.assert_close(found, hardest.mean())


def test_auxiliary_heads_are_added_by_their_weight():
    (main, target), (side, _), (other, _) = example(), example(1), example(2)
    expected = soft_dice(main, target) + 0.4 * (soft_dice(side, target) + soft_dice(other, target))
    torch.testing.assert_close(with_auxiliary(soft_dice, (main, side, other), target), expected)
    torch.testing.assert_close(with_auxiliary(soft_dice, main, target), soft_dice(main, target))


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


@given(
    schedule=st.sampled_from(["poly", "cosine"]),
    power=st.floats(0.1, 3),
    max_steps=st.integers(1, 1000),
    warmup=st.integers(0, 50),
)
def test_the_rate_falls_to_zero_behind_its_warmup(schedule, power, max_steps, warmup):
    factors = [factor(schedule, step, max_steps, power, warmup) for step in range(max_steps + 2)]
    assert all(0 <= value <= 1 for value in factors) and factors[max_steps] == factors[-1] == 0
    falling = factors[warmup:]
    assert falling == sorted(falling, reverse=True)
    if warmup:
        assert factors[0] <= 1 / warmup + 1e-9


def test_poly_is_the_papers():
    assert factor("poly", 0, 100, 0.95) == 1
    assert factor("poly", 30, 100, 0.95) == pytest.approx(0.7**0.95)
    assert factor("poly", 30, 100) == pytest.approx(0.7**0.9)


def test_cosine_is_torchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(20):
        assert factor("cosine", step, 20) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_a_constant_rate_only_warms_up():
    assert [factor("constant", step, 4, warmup_steps=2) for step in range(5)] == [0.5, 1, 1, 1, 0]


@pytest.mark.parametrize(("arguments", "message"), [(("poly", 0, 0), "max_steps=0"), (("poli", 0, 1), "did you mean")])
def test_a_schedule_out_of_range_is_named(arguments, message):
    assert set(SCHEDULES) == {"poly", "cosine", "constant"}
    with pytest.raises(InputError, match=message):
        factor(*arguments)
