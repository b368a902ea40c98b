"""Drawn street scenes with their class maps: the demo's own data set, made from nothing but a seed.

They are drawings, not photographs: shapes, textures, light, shadow and noise. The classes share their colours, so that
colour alone says little about the class; texture, shape and place say the rest.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.scenes.canvas import Canvas
from pipeline.scenes.palette import Palette
from pipeline.scenes.street import Street

__all__ = ["FIRST_UNSEEN_SEED", "HEIGHT_PX", "WIDTH_PX", "draw_scene", "write_scenes"]

WIDTH_PX, HEIGHT_PX = 192, 144
FIRST_UNSEEN_SEED = 1_000_000  # training scenes have the seeds from 0 up
SCENES_VERSION = 1  # counts up whenever the same seed begins to draw another scene


def draw_scene(seed: int, *, width: int = WIDTH_PX, height: int = HEIGHT_PX) -> tuple[np.ndarray, np.ndarray]:
    """One scene: picture uint8 H x W x 3 and class map uint8 H x W (ids of the label set `scenes`).

    The same seed draws the same scene; layout, colours, light and figures all follow from it.
    """
    rng = np.random.default_rng([seed, SCENES_VERSION])
    canvas = Canvas(width, height)
    street = Street(canvas, Palette.of(rng), rng)
    street.sky()
    street.buildings()
    street.ground()
    street.figures()
    return street.finished()


def write_scenes(folder: str, train: int, unseen: int) -> bool:
    """Draw `train` and `unseen` scenes into a local folder in the CamVid layout: train/, trainannot/, val/, valannot/.

    Nothing is drawn, and the answer is False, where the folder holds these scenes already; other contents are removed.
    """
    root = Path(folder)
    made = {"version": SCENES_VERSION, "train": train, "unseen": unseen}
    stamp = root / "scenes.json"
    if stamp.is_file() and json.loads(stamp.read_text()) == made:
        return False
    shutil.rmtree(root, ignore_errors=True)
    for split, first, count in (("train", 0, train), ("val", FIRST_UNSEEN_SEED, unseen)):
        pictures, labels = root / split, root / f"{split}annot"
        pictures.mkdir(parents=True)
        labels.mkdir()
        for seed in range(first, first + count):
            picture, classes = draw_scene(seed)
            Image.fromarray(picture).save(pictures / f"{seed:07d}.png")
            Image.fromarray(classes).save(labels / f"{seed:07d}.png")
    stamp.write_text(json.dumps(made))  # last: without it, the folder is drawn again
    return True
