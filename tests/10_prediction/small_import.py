"""The import of a small network, and what its masks must be: those of a forward written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exported import ANY, Small, export
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pipeline.models.checkpoint import load_checkpoint
from pipeline.prediction.import_config import ImportConfig
from pipeline.prediction.predictor import Prediction, Predictor

FOUR = {"name": "four", "classes": ["a", "b", "c", "d"]}
MEAN, STD = (0.6, 0.45, 0.3), (0.2, 0.25, 0.3)


def four_classes(folder: Path) -> str:
    """A label set's file."""
    (folder / "four.yaml").write_text(json.dumps(FOUR))
    return str(folder / "four.yaml")


def import_options(folder: Path) -> Callable[..., ImportConfig]:
    """The options of an import of `Small`, its sizes left open, into `folder / "out"`; changed by those given."""
    model = export(Small(), folder / "net.pt2", torch.rand(2, 3, 32, 48), dynamic=ANY)
    label_set = four_classes(folder)

    def make(**options: Any) -> ImportConfig:
        numbers = {"mean": ",".join(map(str, MEAN)), "std": ",".join(map(str, STD))}
        return ImportConfig(
            **{"model": model, "label_set": label_set, "output": str(folder / "out"), **numbers, **options}
        )

    return make


def drawn(*sizes: tuple[int, int]) -> list[np.ndarray]:
    """Pictures of soft noise: neighbours resemble each other, as in photographs."""
    rng = np.random.default_rng(7)
    coarse = [rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), np.uint8) for height, width in sizes]
    return [
        np.asarray(Image.fromarray(pixels).resize((width, height)))
        for pixels, (height, width) in zip(coarse, sizes, strict=True)
    ]


def by_hand(
    picture: np.ndarray,
    network: Callable[[Tensor], Tensor],
    *,
    scale: float = 255.0,
    bgr: bool = False,
    size: tuple[int, int] | None = None,
    mean: tuple[float, ...] = MEAN,
    std: tuple[float, ...] = STD,
) -> np.ndarray:
    """K x H x W probabilities of one picture, every step in the plainest words."""
    x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
    if size:
        x = functional.interpolate(x, size=size, mode="bilinear", antialias=True)
    x = x.float() / scale
    if bgr:
        x = x[:, [2, 1, 0]]
    x = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.no_grad():
        logits = functional.interpolate(network(x), size=x.shape[-2:], mode="bilinear")
        logits = functional.interpolate(logits, size=picture.shape[:2], mode="bilinear")
    return logits.softmax(1)[0].numpy()


def predicted(uri: str, *pictures: np.ndarray, **options: Any) -> list[Prediction]:
    found = Predictor(*load_checkpoint(uri), device="cpu", **options).predict(pictures)
    assert all(isinstance(one, Prediction) for one in found), found
    return found  # type: ignore[return-value]


def agree(found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal but where rounding may decide between two classes."""
    return bool((found != expected).mean() <= 1e-3)
