"""Augmentation: reproducible, picture and truth together, nothing invented; normalisation against torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional

from pipeline.labels import CAMVID
from pipeline.models.normalization import Normalization
from pipeline.models.spec import ModelSpec
from pipeline.training.samples.augmentation import Augmentation

IGNORE = 255


def checkered(height: int, width: int, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """A picture of squares of four greys, and the truth that goes with it: grey = 50 x class."""
    rows, columns = np.indices((height, width)) // side
    truth = ((rows * 3 + columns) % 4).astype(np.uint8)
    return np.repeat((truth * 50)[..., None], 3, axis=2), truth


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(20, 90),
    width=st.integers(20, 90),
    crop=st.tuples(st.integers(16, 100), st.integers(16, 100)),
    scale=st.sampled_from([(0.5, 2.0), (1.0, 1.0), (0.25, 0.5), (2.0, 4.0)]),
    seed=st.tuples(st.integers(0, 2**40), st.integers(0, 100)),
)
def test_any_size_gives_the_crop_and_the_same_seed_the_same_view(height, width, crop, scale, seed) -> None:
    pixels, truth = checkered(height, width)
    augment = Augmentation(crop, scale=scale, aspect=1.2, jitter=0.4)
    first = augment(pixels, truth, ignore_value=IGNORE, seed=seed)
    again = augment(pixels, truth, ignore_value=IGNORE, seed=seed)
    assert first[0].shape == (*crop, 3) and first[0].dtype == np.uint8
    assert first[1].shape == crop and first[1].dtype == np.uint8
    assert set(np.unique(first[1])) <= {0, 1, 2, 3, IGNORE}
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_picture_and_truth_move_together(scale: float) -> None:
    pixels, truth = checkered(120, 160, side=32)
    augment = Augmentation((64, 80), scale=(scale, scale), jitter=0, fill=7)
    for seed in range(8):
        view, classes = augment(pixels, truth, ignore_value=IGNORE, seed=(seed,))
        known = classes != IGNORE
        assert (view[~known] == 7).all()
        # bilinear mixes greys at the squares' borders only
        agree = np.abs(view[..., 0].astype(int) - 50 * classes.astype(int))[known] <= 2
        assert agree.mean() > 0.7


def test_at_its_own_size_the_view_is_an_exact_crop() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    truth = random.integers(0, 5, (40, 50), dtype=np.uint8)
    augment = Augmentation((16, 24), scale=(1, 1), flip=False)
    view, classes = augment(pixels, truth, ignore_value=IGNORE, seed=(3,))
    places = [(y, x) for y in range(25) for x in range(27) if np.array_equal(pixels[y : y + 16, x : x + 24], view)]
    assert len(places) == 1
    (y, x) = places[0]
    assert np.array_equal(truth[y : y + 16, x : x + 24], classes)


def test_a_smaller_picture_is_padded_not_stretched() -> None:
    pixels, truth = checkered(20, 30)
    augment = Augmentation((64, 64), scale=(1, 1), flip=False)
    view, classes = augment(pixels, truth, ignore_value=IGNORE, seed=(1, 2))
    known = classes != IGNORE
    assert known.sum() == truth.size
    rows, columns = np.nonzero(known)
    inside = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
    assert np.array_equal(view[inside], pixels) and np.array_equal(classes[inside], truth)


def test_seeds_differ_and_the_process_feels_none_of_it() -> None:
    pixels, truth = checkered(90, 90)
    augment = Augmentation((48, 48), jitter=0.3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    views = [augment(pixels, truth, ignore_value=IGNORE, seed=(0, 0, region))[0].tobytes() for region in range(10)]
    assert len(set(views)) == 10
    assert torch.equal(before, torch.get_rng_state())


def test_wide_labels_stay_exact() -> None:
    truth = np.full((32, 32), 40_000, np.uint16)
    truth[:16] = 65_534
    pixels = np.zeros((32, 32, 5), np.uint8)  # five bands: no jitter, no complaint
    augment = Augmentation((64, 64), scale=(0.9, 1.1), jitter=0.5)
    view, classes = augment(pixels, truth, ignore_value=65_535, seed=(0,))
    assert view.shape == (64, 64, 5) and classes.dtype == np.uint16
    assert set(np.unique(classes)) == {40_000, 65_534, 65_535}


def test_normalize_agrees_with_torchvision_and_is_channels_last() -> None:
    pixels = torch.randint(0, 256, (2, 9, 7, 3), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    spec = ModelSpec("local", {}, CAMVID, mean=mean, std=std)
    ours = Normalization(spec, "cpu")(pixels)
    theirs = functional.normalize(pixels.permute(0, 3, 1, 2).float() / 255, list(mean), list(std))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
