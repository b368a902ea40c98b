"""A surface that is painted and labelled at once, and the textures it is painted with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pipeline.scenes.palette import Color

Point = tuple[float, float]
Texture = Callable[[int, int], np.ndarray]  # (height, width) -> H x W x 3, values 0..255

_FINE = 3  # painted so many times larger and then averaged: soft edges


class Canvas:
    """`picture` RGB and `classes`, both `_FINE` times the size asked for; `unit` is one px of the finished picture."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height, self.unit = width * _FINE, height * _FINE, height * _FINE / 144
        self.picture = Image.new("RGB", (self.width, self.height))
        self.classes = Image.new("L", (self.width, self.height))

    @property
    def draw(self) -> ImageDraw.ImageDraw:
        """For details that keep the class of what they lie on."""
        return ImageDraw.Draw(self.picture)

    def fill(self, class_id: int, points: Sequence[Point], texture: Texture) -> None:
        """A polygon of a class."""
        xs, ys = [p[0] for p in points], [p[1] for p in points]
        left, top = max(0, math.floor(min(xs))), max(0, math.floor(min(ys)))
        right, bottom = min(self.width, math.ceil(max(xs)) + 1), min(self.height, math.ceil(max(ys)) + 1)
        if right <= left or bottom <= top:
            return
        mask = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in points], fill=255)
        paint = np.clip(texture(bottom - top, right - left), 0, 255).astype(np.uint8)
        self.picture.paste(Image.fromarray(paint), (left, top), mask)
        self.classes.paste(class_id, (left, top, right, bottom), mask)

    def disc(self, class_id: int, x: float, y: float, r: float, color: Color) -> None:
        angles = np.linspace(0, 2 * math.pi, 24, endpoint=False)
        self.fill(class_id, [(x + r * math.cos(a), y + r * math.sin(a)) for a in angles], flat(color))

    def dot(self, x: float, y: float, r: float, color: Color) -> None:
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=color)

    def shadow(self, x: float, y: float, rx: float, ry: float) -> None:
        """A soft dark patch; the ground under it keeps its class."""
        mask = Image.new("L", (int(3.2 * rx), int(4.4 * ry)))
        cx, cy = mask.width / 2, mask.height / 2
        ImageDraw.Draw(mask).ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=120)
        self.picture.paste((15, 12, 30), (int(x - cx), int(y - cy)), mask.filter(ImageFilter.GaussianBlur(ry * 0.4)))

    def finished(self) -> tuple[np.ndarray, np.ndarray]:
        """Picture float32 H x W x 3 and class map uint8 H x W at the size asked for."""
        size = (self.width // _FINE, self.height // _FINE)
        picture = np.asarray(self.picture.resize(size, Image.Resampling.BOX), dtype=np.float32)
        middle = slice(_FINE // 2, None, _FINE)
        return picture, np.ascontiguousarray(np.asarray(self.classes)[middle, middle])


def flat(color: Color) -> Texture:
    return lambda height, width: np.broadcast_to(np.array(color), (height, width, 3))


def fade(top: Color, bottom: Color) -> Texture:
    """From one colour to another, downwards."""

    def paint(height: int, width: int) -> np.ndarray:
        down = np.linspace(0, 1, height)[:, None, None] * np.ones((1, width, 1))
        return np.array(top) + (np.array(bottom) - np.array(top)) * down

    return paint


def sheen(color: Color) -> Texture:
    """Lighter above, darker below."""
    return lambda height, width: np.array(color) * np.linspace(1.2, 0.8, height)[:, None, None] * np.ones((1, width, 1))


def bands(color: Color, period: float) -> Texture:
    """Level stripes, dark and light."""

    def paint(height: int, width: int) -> np.ndarray:
        dark = (np.arange(height) % period < period / 2)[:, None, None]
        return np.array(color) * np.where(dark, 0.75, 1.1) * np.ones((1, width, 1))

    return paint


def plaid(color: Color, period: float) -> Texture:
    """Stripes across stripes."""

    def paint(height: int, width: int) -> np.ndarray:
        y, x = np.mgrid[:height, :width]
        tone = 0.72 + 0.28 * (y % period < period / 2) + 0.28 * (x % period < period / 2)
        return np.array(color) * tone[..., None]

    return paint


def bricks(color: Color, course: float, rng: np.random.Generator) -> Texture:
    """Courses of bricks, each of its own tone, with darker joints."""

    def paint(height: int, width: int) -> np.ndarray:
        y, x = np.mgrid[:height, :width]
        row = y // course
        joint = (y % course < 0.28 * course) | ((x + row % 2 * course) % (2 * course) < 0.25 * course)
        tone = 1 + 0.06 * rng.standard_normal((int(height // course) + 1, 1))[row[:, 0].astype(int)] - 0.2 * joint
        return np.array(color) * tone[..., None]

    return paint


def grain(color: Color, px: float, rng: np.random.Generator) -> Texture:
    """Noise in squares of `px`, the same at every distance."""

    def paint(height: int, width: int) -> np.ndarray:
        noise = rng.standard_normal((int(height // px) + 1, int(width // px) + 1))
        y, x = (np.arange(height) // px).astype(int), (np.arange(width) // px).astype(int)
        return np.array(color) * (0.97 + 0.11 * noise[y][:, x])[..., None]

    return paint


def slabs(color: Color, vanishing_x: float, unit: float) -> Texture:
    """Paving in perspective: joints that meet at the vanishing point, courses that crowd towards the horizon."""

    def paint(height: int, width: int) -> np.ndarray:
        y, x = np.mgrid[:height, :width].astype(float)
        below = y + 10 * unit
        across, along = (x - vanishing_x) / below * 5, 8 * np.log(below / unit)
        joint = (np.abs(across % 1 - 0.5) > 0.44) | (np.abs(along % 1 - 0.5) > 0.42)
        checker = (np.floor(across) + np.floor(along)) % 2
        return np.array(color) * (1.03 + 0.12 * checker - 0.32 * joint)[..., None]

    return paint
