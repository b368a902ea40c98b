"""The confusion matrix against two independent implementations, and by properties."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.classification as oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics import ConfusionMatrix, confusion_matrix

IGNORE = 255


@st.composite
def pictures(draw: st.DrawFn, max_classes: int = 6) -> tuple[int, np.ndarray, np.ndarray]:
    """(K, truth with ignored pixels, prediction with pixels that have none); classes are often absent."""
    num_classes = draw(st.integers(1, max_classes))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    truth = random.choice([*range(draw(st.integers(1, num_classes))), IGNORE], (height, width))
    prediction = random.choice([*range(num_classes), IGNORE], (height, width))
    return num_classes, truth.astype(np.uint8), prediction.astype(np.uint8)


def count(num_classes: int, truth: np.ndarray, prediction: np.ndarray | None) -> ConfusionMatrix:
    return ConfusionMatrix(num_classes).update(truth, prediction)


def names(num_classes: int) -> list[str]:
    return [f"class {i}" for i in range(num_classes)]


def naive(num_classes: int, truth: np.ndarray, prediction: np.ndarray) -> ConfusionMatrix:
    """The definition, one pixel at a time."""
    result = ConfusionMatrix(num_classes)
    for t, p in zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if t == IGNORE:
            result.ignored += 1
        elif p < num_classes:
            result.matrix[t, p] += 1
        else:
            result.unpredicted[t] += 1
    return result


def test_a_case_small_enough_to_do_on_paper() -> None:
    truth = np.array([[0, 0, 1, 1], [2, 255, 0, 1]], dtype=np.uint8)
    prediction = np.array([[0, 1, 1, 1], [255, 0, 0, 0]], dtype=np.uint8)
    found = count(4, truth, prediction).metrics(["sky", "road", "car", "boat"])
    assert found["confusion_matrix"] == [[2, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert found["unpredicted"] == [0, 0, 1, 0]
    assert (found["pixels"], found["ignored"]) == (7, 1)
    assert found["pixel_accuracy"] == pytest.approx(4 / 7)
    assert found["mean_pixel_accuracy"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)
    assert found["miou"] == pytest.approx((2 / 4 + 2 / 4 + 0) / 3)
    assert found["fwiou"] == pytest.approx(3 / 7 * 0.5 + 3 / 7 * 0.5)
    assert found["dice"] == pytest.approx((4 / 6 + 4 / 6 + 0) / 3)
    assert (found["classes_counted"], found["classes_in_truth"], found["num_classes"]) == (3, 3, 4)
    assert found["per_class"]["car"]["iou"] == 0.0  # in truth, never predicted
    assert [found["per_class"]["boat"][key] for key in ("iou", "accuracy", "dice")] == [None] * 3


def test_predicted_but_absent_from_truth_counts_as_zero() -> None:
    found = count(3, np.zeros((2, 2), np.uint8), np.array([[0, 0], [0, 1]], np.uint8)).metrics(names(3))
    assert found["per_class"]["class 1"] | {"truth_pixels": 0} == {
        "iou": 0.0,
        "accuracy": None,
        "dice": 0.0,
        "truth_pixels": 0,
        "predicted_pixels": 1,
        "unpredicted_pixels": 0,
    }
    assert (found["classes_counted"], found["classes_in_truth"]) == (2, 1)
    assert found["miou"] == pytest.approx((3 / 4 + 0) / 2)
    assert found["mean_pixel_accuracy"] == pytest.approx(3 / 4)


@pytest.mark.parametrize("matrix", [ConfusionMatrix(3), count(3, np.full((2, 2), IGNORE, np.uint8), None)])
def test_nothing_to_measure_is_null_everywhere(matrix: ConfusionMatrix) -> None:
    found = matrix.metrics(names(3))
    for key in ("pixel_accuracy", "mean_pixel_accuracy", "miou", "fwiou", "dice"):
        assert found[key] is None
    assert (found["classes_counted"], found["classes_in_truth"], found["pixels"]) == (0, 0, 0)
    assert all(row["iou"] is row["accuracy"] is row["dice"] is None for row in found["per_class"].values())


@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")
@settings(max_examples=40, deadline=None)
@given(pictures())
def test_against_torchmetrics_and_scikit_learn(case: tuple[int, np.ndarray, np.ndarray]) -> None:
    num_classes, truth, prediction = case
    prediction = np.where(prediction == IGNORE, 0, prediction).astype(np.uint8)  # unknown to both
    found = count(num_classes, truth, prediction)
    kept = truth != IGNORE
    t, p = truth[kept], prediction[kept]
    if num_classes > 1:
        args: dict[str, Any] = {"num_classes": num_classes, "ignore_index": IGNORE}
        theirs = oracle.MulticlassConfusionMatrix(**args)(
            torch.from_numpy(prediction.astype(np.int64)), torch.from_numpy(truth.astype(np.int64))
        )
        np.testing.assert_array_equal(found.matrix, theirs.numpy())
    if not len(t):
        assert found.pixels == 0
        return
    labels = list(range(num_classes))
    np.testing.assert_array_equal(found.matrix, sklearn.metrics.confusion_matrix(t, p, labels=labels))
    seen = np.isin(labels, np.union1d(t, p))
    jaccard = sklearn.metrics.jaccard_score(t, p, labels=labels, average=None, zero_division=0)
    dice = sklearn.metrics.f1_score(t, p, labels=labels, average=None, zero_division=0)
    recall = sklearn.metrics.recall_score(t, p, labels=labels, average=None, zero_division=0)
    np.testing.assert_allclose(found.iou, np.where(seen, jaccard, np.nan))
    np.testing.assert_allclose(found.dice, np.where(seen, dice, np.nan))
    np.testing.assert_allclose(found.accuracy, np.where(np.isin(labels, t), recall, np.nan))
    values = found.metrics(names(num_classes))
    assert values["miou"] == pytest.approx(jaccard[seen].mean())
    assert values["dice"] == pytest.approx(dice[seen].mean())
    assert values["pixel_accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(t, p))
    assert values["fwiou"] == pytest.approx(
        sklearn.metrics.jaccard_score(t, p, labels=labels, average="weighted", zero_division=0)
    )
    assert values["mean_pixel_accuracy"] == pytest.approx(recall[np.isin(labels, t)].mean())


@settings(max_examples=60, deadline=None)
@given(pictures())
def test_every_way_of_counting_gives_the_definition(case: tuple[int, np.ndarray, np.ndarray]) -> None:
    num_classes, truth, prediction = case
    expected = naive(num_classes, truth, prediction)
    assert count(num_classes, truth, prediction) == expected
    for dtype in (np.int64, np.uint16, np.int32):
        assert count(num_classes, truth.astype(dtype), prediction.astype(dtype)) == expected
    assert count(num_classes, truth.T, prediction.T) == expected  # not contiguous
    assert count(num_classes, truth, None).unpredicted.tolist() == expected.truth_pixels.tolist()
    pairs, rest = expected.sparse(), (expected.unpredicted.tolist(), expected.ignored)
    assert ConfusionMatrix.from_sparse(*pairs, *rest) == expected
    truth_ids, prediction_ids, pixels = pairs
    twice = ConfusionMatrix.from_sparse(truth_ids * 2, prediction_ids * 2, pixels * 2, *rest)
    np.testing.assert_array_equal(twice.matrix, 2 * expected.matrix)


@settings(max_examples=60, deadline=None)
@given(pictures(), st.integers(0, 9), st.randoms(use_true_random=False))
def test_merging_parts_in_any_order_is_the_whole(
    case: tuple[int, np.ndarray, np.ndarray], cut: int, random: Any
) -> None:
    num_classes, truth, prediction = case
    whole = count(num_classes, truth, prediction)
    rows = [count(num_classes, truth[i : i + 1], prediction[i : i + 1]) for i in range(len(truth))]
    random.shuffle(rows)
    assert sum(rows, ConfusionMatrix(num_classes)) == whole
    upper, lower = (count(num_classes, truth[s], prediction[s]) for s in (slice(cut), slice(cut, None)))
    assert upper + lower == lower + upper == whole
    order = np.random.default_rng(random.randint(0, 2**31)).permutation(truth.size)
    assert count(num_classes, truth.ravel()[order], prediction.ravel()[order]) == whole


@settings(max_examples=60, deadline=None)
@given(pictures(), st.integers(0, 2**31))
def test_renaming_the_classes_changes_no_mean(case: tuple[int, np.ndarray, np.ndarray], seed: int) -> None:
    num_classes, truth, prediction = case
    new_id = np.full(256, IGNORE, dtype=np.uint8)
    new_id[:num_classes] = np.random.default_rng(seed).permutation(num_classes)
    before = count(num_classes, truth, prediction)
    after = count(num_classes, new_id[truth], new_id[prediction])
    order = new_id[:num_classes].astype(np.int64)
    np.testing.assert_array_equal(after.matrix[np.ix_(order, order)], before.matrix)
    np.testing.assert_array_equal(after.iou[order], before.iou)
    old, new = before.metrics(names(num_classes)), after.metrics(names(num_classes))
    for key in ("pixel_accuracy", "mean_pixel_accuracy", "miou", "fwiou", "dice"):
        assert new[key] == (None if old[key] is None else pytest.approx(old[key], rel=1e-12))
    for key in ("classes_counted", "classes_in_truth", "pixels", "ignored"):
        assert new[key] == old[key]


@settings(max_examples=60, deadline=None)
@given(pictures())
def test_figures_are_fractions_and_the_json_is_strict(case: tuple[int, np.ndarray, np.ndarray]) -> None:
    num_classes, truth, prediction = case
    found = count(num_classes, truth, prediction).metrics(names(num_classes))
    text = json.dumps(found, allow_nan=False)  # raises on NaN and on numpy scalars
    assert json.loads(text) == found
    for key in ("pixel_accuracy", "mean_pixel_accuracy", "miou", "fwiou", "dice"):
        assert found[key] is None or 0.0 <= found[key] <= 1.0
    assert found["pixels"] + found["ignored"] == truth.size
    for row in found["per_class"].values():
        if row["iou"] is not None:
            assert row["dice"] == pytest.approx(2 * row["iou"] / (1 + row["iou"]))
    perfect = count(num_classes, truth, truth).metrics(names(num_classes))
    assert perfect["miou"] in (1.0, None)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    truth = random.choice([0, 1, 2, IGNORE], (37, 41)).astype(np.uint8)
    prediction = random.integers(0, 4, (37, 41)).astype(np.uint8)
    whole = count(3, truth, prediction)
    monkeypatch.setattr(confusion_matrix, "CHUNK_PX", 100)
    assert count(3, truth, prediction) == whole == naive(3, truth, prediction)


def test_more_than_254_classes() -> None:
    random = np.random.default_rng(2)
    truth = random.integers(0, 300, (50, 60)).astype(np.uint16)
    prediction = truth.copy()
    truth[0], prediction[1] = 65535, 65535
    found = ConfusionMatrix(300).update(truth, prediction, ignore_value=65535)
    assert (found.ignored, int(found.unpredicted.sum()), int(np.trace(found.matrix))) == (60, 60, 48 * 60)


def test_counts_beyond_32_bits_stay_exact() -> None:
    big = ConfusionMatrix.from_counts(np.array([[2**53 + 1, 0], [0, 1]]))
    assert (big + big).matrix[0, 0] == 2**54 + 2
    assert big.metrics(["a", "b"])["confusion_matrix"][0][0] == 2**53 + 1


def test_mistakes_are_refused() -> None:
    square = np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match="4 pixels, prediction 6"):
        count(2, square, np.zeros((2, 3), np.uint8))
    for dtype in (np.uint8, np.int64):
        with pytest.raises(ValueError, match="truth holds 7"):
            count(2, np.full((2, 2), 7, dtype), square)
    with pytest.raises(ValueError, match="2 and 3 classes"):
        ConfusionMatrix(2) + ConfusionMatrix(3)
    with pytest.raises(ValueError, match="1 names for 2 classes"):
        ConfusionMatrix(2).metrics(["only"])
