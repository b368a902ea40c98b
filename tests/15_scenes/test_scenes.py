"""The drawn scenes: the same from the same seed, unseen ones unlike the others, and not to be told by colour alone."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.labels import load_label_set
from pipeline.metrics import ConfusionMatrix
from pipeline.scenes import FIRST_UNSEEN_SEED, draw_scene, palette, write_scenes

LABELS = load_label_set("scenes")


@pytest.fixture(scope="module")
def seen():
    return [draw_scene(seed) for seed in range(60)]


@pytest.fixture(scope="module")
def unseen():
    return [draw_scene(FIRST_UNSEEN_SEED + i) for i in range(24)]


def test_a_seed_is_a_scene():
    picture, classes = draw_scene(3)
    assert picture.shape == (144, 192, 3) and picture.dtype == np.uint8
    assert classes.shape == (144, 192) and classes.dtype == np.uint8
    again, same = draw_scene(3)
    assert np.array_equal(picture, again) and np.array_equal(classes, same)
    assert not np.array_equal(classes, draw_scene(4)[1])


def test_any_size():
    picture, classes = draw_scene(3, width=100, height=64)
    assert picture.shape == (64, 100, 3) and classes.shape == (64, 100)


def test_classes_are_those_of_the_label_set(seen):
    names = [name.upper() for name in LABELS.names]
    assert [getattr(palette, name) for name in names] == list(range(8))
    pixels = np.bincount(np.concatenate([classes.ravel() for _, classes in seen]), minlength=8)
    assert len(pixels) == 8
    assert (pixels / pixels.sum()).min() > 0.02  # none is rare


def test_unseen_layouts_are_others(seen, unseen):
    """The nearest training layout still differs in an eighth of the pixels or more, mostly in far more."""
    layouts = np.stack([classes for _, classes in seen])
    nearest = [(layouts != classes).mean(axis=(1, 2)).min() for _, classes in unseen]
    assert min(nearest) > 0.12
    assert np.median(nearest) > 0.2


def test_colour_alone_does_not_tell_the_classes(seen, unseen):
    """Logistic regression on a pixel's red, green and blue stays at or below a mIoU of 0.50 on unseen scenes."""
    from sklearn.linear_model import LogisticRegression

    colors = np.concatenate([picture.reshape(-1, 3)[::53] for picture, _ in seen]) / 255
    truth = np.concatenate([classes.ravel()[::53] for _, classes in seen])
    for class_weight in (None, "balanced"):
        by_color = LogisticRegression(max_iter=300, class_weight=class_weight).fit(colors, truth)
        matrix = ConfusionMatrix(8)
        for picture, classes in unseen:
            found = by_color.predict(picture.reshape(-1, 3) / 255).astype(np.uint8)
            matrix.update(classes, found.reshape(classes.shape))
        miou = matrix.metrics(LABELS.names)["miou"]
        print(f"logistic regression on colour, class_weight={class_weight}: mIoU {miou:.3f}")
        assert miou <= 0.50


def test_folders_of_scenes(tmp_path):
    folder = tmp_path / "scenes"
    assert write_scenes(str(folder), 3, 2)
    names = {split: sorted(p.name for p in (folder / split).iterdir()) for split in ("train", "val")}
    assert [len(names[split]) for split in ("train", "val")] == [3, 2]
    for split in ("train", "val"):
        assert sorted(p.name for p in (folder / f"{split}annot").iterdir()) == names[split]
    picture, classes = draw_scene(FIRST_UNSEEN_SEED)
    assert np.array_equal(np.array(Image.open(folder / "val" / names["val"][0])), picture)
    assert np.array_equal(np.array(Image.open(folder / "valannot" / names["val"][0])), classes)
    made = (folder / "scenes.json").stat().st_mtime_ns
    assert not write_scenes(str(folder), 3, 2)
    assert (folder / "scenes.json").stat().st_mtime_ns == made
    (folder / "scenes.json").unlink()  # broken off before it was complete
    assert write_scenes(str(folder), 2, 2)
    assert len(list((folder / "train").iterdir())) == 2
