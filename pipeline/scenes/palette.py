"""The classes of a scene and the colours they come in."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

SKY, BUILDING, ROAD, PAVEMENT, TREE, CAR, PERSON, SIGN = range(8)  # ids of the label set `scenes`

Color = tuple[int, int, int]

# What a class looks like by day: (hue, its spread), (least, largest) saturation, (least, largest) value.
_BY_DAY = {
    SKY: ((0.57, 0.04), (0.2, 0.55), (0.8, 1.0)),
    BUILDING: ((0.05, 0.05), (0.3, 0.65), (0.45, 0.85)),
    ROAD: ((0.65, 0.2), (0.02, 0.1), (0.22, 0.42)),
    PAVEMENT: ((0.1, 0.04), (0.08, 0.25), (0.6, 0.9)),
    TREE: ((0.29, 0.04), (0.5, 0.8), (0.3, 0.6)),
    CAR: ((0.0, 0.3), (0.75, 0.95), (0.6, 1.0)),
    PERSON: ((0.75, 0.06), (0.4, 0.7), (0.35, 0.75)),
    SIGN: ((0.03, 0.04), (0.85, 1.0), (0.85, 1.0)),
}
_BY_DAY_SHARE = 0.9  # of the things; the others take one of the scene's own hues, whatever they are


@dataclass(frozen=True)
class Palette:
    """The few hues of a scene, which every class may take."""

    hues: tuple[float, ...]
    saturation: tuple[float, float]
    value: tuple[float, float]

    @classmethod
    def of(cls, rng: np.random.Generator) -> Palette:
        """Neighbours and opposites of one hue, pale or strong, dark or light."""
        base = rng.random()
        hues = (base, base + 0.08, base + 0.5, base + 0.42, base + 0.25 * rng.integers(1, 4))
        pale, dark = rng.uniform(0.1, 0.25), rng.uniform(0.35, 0.6)
        saturation, value = pale + rng.uniform(0.2, 0.4), dark + rng.uniform(0.3, 0.45)
        return cls(hues, (pale, saturation), (dark, min(1.0, value)))

    def color(self, rng: np.random.Generator, class_id: int | None = None) -> Color:
        """A colour for one thing of a class (None: a detail of any colour)."""
        (hue, spread), saturation, value = (float(rng.choice(self.hues)), 0.02), self.saturation, self.value
        if class_id is not None and rng.random() < _BY_DAY_SHARE:
            (hue, spread), saturation, value = _BY_DAY[class_id]
        rgb = colorsys.hsv_to_rgb(rng.normal(hue, spread) % 1, rng.uniform(*saturation), rng.uniform(*value))
        return shade((255, 255, 255), np.array(rgb))


def shade(color: Color, factor: float | np.ndarray) -> Color:
    """Lighter above 1, darker below; 0..255 a channel."""
    red, green, blue = np.clip(np.array(color) * factor, 0, 255).astype(int)
    return int(red), int(green), int(blue)
