"""A small labelled collection: pictures of which the right part is light, in two splits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.labels import LabelSet

LABELS = LabelSet("two", ("dark", "light"), ((0, 0, 0), (255, 255, 255)))


def draw_collection(root: Path) -> Path:
    """8 pictures to train on and 3 to validate with, 48 x 40 px, in the CamVid layout."""
    draw(root, "train", 8)
    draw(root, "val", 3)
    return root


def draw(root: Path, split: str, count: int, size: tuple[int, int] = (40, 48)) -> None:
    """Pictures whose right part is light, and their labels: 0 dark, 1 light, 255 void in the last row."""
    random = np.random.default_rng(len(split))
    for index in range(count):
        truth = np.zeros(size, np.uint8)
        truth[:, int(random.integers(10, size[1] - 10)) :] = 1
        noise = random.integers(0, 60, (*size, 3))
        pixels = (truth[..., None] * 150 + noise).astype(np.uint8)
        truth[-1] = 255
        for folder, array in ((split, pixels), (f"{split}annot", truth)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / folder / f"{index:03d}.png")
