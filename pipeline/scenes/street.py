"""How a street lies in its picture: sky, buildings, pavement, road, and where the figures stand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pipeline.scenes import figures
from pipeline.scenes.canvas import Canvas, Point, bands, bricks, fade, grain, slabs
from pipeline.scenes.palette import BUILDING, CAR, PAVEMENT, PERSON, ROAD, SIGN, SKY, TREE, Palette, shade

Edges = Callable[[float], tuple[float, float]]  # y -> left and right edge of the road


class Street:
    """One layout: an avenue to the horizon, a bend, or a road across, seen from the pavement."""

    def __init__(self, canvas: Canvas, palette: Palette, rng: np.random.Generator) -> None:
        self.canvas, self.palette, self.rng = canvas, palette, rng
        self.unit, self.width, self.height = canvas.unit, canvas.width, canvas.height
        self.kind = str(rng.choice(["avenue", "avenue", "bend", "across"]))
        self.horizon = self.height * rng.uniform(0.36, 0.52)
        self.vanishing = self.width * rng.uniform(0.3, 0.7)
        self.light = int(rng.choice([-1, 1]))  # the side the sun shines from
        self.road: Edges = lambda y: (0.0, float(self.width))
        self.road_top, self.road_bottom = self.horizon, float(self.height)

    def sky(self) -> None:
        rng, unit, (top, bottom) = self.rng, self.unit, (self.palette.color(self.rng, SKY) for _ in range(2))
        self.canvas.fill(SKY, self._box(0, 0, self.width, self.height), fade(top, bottom))
        clouds = Image.new("L", (self.width, self.height))
        draw = ImageDraw.Draw(clouds)
        for _ in range(rng.integers(0, 5)):
            x, y = rng.uniform(0, self.width), rng.uniform(0, self.horizon * 0.8)
            for _ in range(6):
                puff, r = x + rng.normal(0, 22 * unit), rng.uniform(4, 10) * unit
                draw.ellipse((puff - 2 * r, y - r, puff + 2 * r, y + r), fill=int(rng.uniform(90, 170)))
        self.canvas.picture.paste(shade(bottom, 1.35), None, clouds.filter(ImageFilter.GaussianBlur(4 * unit)))
        if rng.random() < 0.4:
            sun = rng.uniform(0, self.width), rng.uniform(0, self.horizon * 0.6)
            self.canvas.dot(*sun, 9 * unit, shade(top, 1.5))

    def buildings(self) -> None:
        """A far row to close the view, and a near one with gaps."""
        rng, unit = self.rng, self.unit
        for far in (True, False):
            x = rng.uniform(-40, 0) * unit
            while x < self.width:
                wide = rng.uniform(*((14, 30) if far else (26, 58))) * unit
                tall = self.horizon * rng.uniform(*((0.2, 0.5) if far else (0.4, 0.95)))
                open_view = abs(x + wide / 2 - self.vanishing) < rng.uniform(20, 45) * unit and self.kind == "avenue"
                if far or not (open_view or rng.random() < 0.12):
                    self._building(x, wide, tall, far)
                x += wide + (0 if rng.random() < 0.7 else rng.uniform(2, 12) * unit)

    def _building(self, x: float, wide: float, tall: float, far: bool) -> None:
        rng, unit, canvas = self.rng, self.unit, self.canvas
        top, bottom = self.horizon - tall, self.horizon + 1
        wall = self.palette.color(rng, BUILDING)
        gable = not far and rng.random() < 0.4
        if gable:
            peak = (x + wide / 2, top - wide * rng.uniform(0.2, 0.4))
            tiles = bands(shade(self.palette.color(rng), 0.8), 3 * unit)
            canvas.fill(BUILDING, [(x - 1, top), peak, (x + wide + 1, top)], tiles)
        canvas.fill(BUILDING, self._box(x, top, x + wide, bottom), bricks(wall, rng.uniform(3, 4.5) * unit, rng))
        step = (7.5 if far else rng.uniform(9, 13)) * unit
        glass = shade(self.palette.color(rng), rng.choice([0.45, 0.6, 1.5]))
        columns, floors = max(1, int(wide / step)), max(1, int((tall - step * 0.5) / (step * 1.2)))
        w, h, frame = step * 0.27, step * 0.38, 0.8 * unit
        for i in range(columns):
            for j in range(floors):
                cx, cy = x + wide * (i + 0.5) / columns, top + step * (0.9 + j * 1.2)
                if cy + h < bottom:
                    outer = (cx - w - frame, cy - h - frame, cx + w + frame, cy + h + frame)
                    canvas.draw.rectangle(outer, fill=shade(wall, 1.35))
                    canvas.draw.rectangle((cx - w, cy - h, cx + w, cy + h), fill=glass)
        if not far and not gable:
            canvas.draw.rectangle((x, top, x + wide, top + 2 * unit), fill=shade(wall, 0.7))

    def ground(self) -> None:
        """Pavement over all of it, and the road upon that."""
        rng, depth = self.rng, self.height - self.horizon
        paving = slabs(self.palette.color(rng, PAVEMENT), self.vanishing, self.unit)
        self.canvas.fill(PAVEMENT, self._box(0, self.horizon, self.width, self.height), paving)
        outline: list[Point]
        if self.kind == "across":
            self.road_top = self.horizon + depth * rng.uniform(0.12, 0.3)
            bottom, tilt = self.horizon + depth * rng.uniform(0.75, 1.05), rng.normal(0, 4 * self.unit)
            self.road_bottom = min(bottom, float(self.height))
            outline = [(0, self.road_top), (self.width, self.road_top + tilt), (self.width, bottom + tilt), (0, bottom)]
        else:
            self.road = self._edges()
            ys = np.linspace(self.horizon, self.height, 12)
            outline = [(self.road(y)[0], y) for y in ys] + [(self.road(y)[1], y) for y in ys[::-1]]
        self.canvas.fill(ROAD, outline, grain(self.palette.color(rng, ROAD), 1.6 * self.unit, rng))
        self._dashes()

    def _edges(self) -> Edges:
        """A road that narrows towards the vanishing point, bowed to a side in a bend."""
        rng, half = self.rng, self.rng.uniform(3, 14) * self.unit
        left, right = self.width * rng.uniform(-0.35, 0.25), self.width * rng.uniform(0.75, 1.35)
        bow = self.width * rng.uniform(-0.25, 0.25) if self.kind == "bend" else 0.0

        def edges(y: float) -> tuple[float, float]:
            near = (y - self.horizon) / (self.height - self.horizon)
            middle = (1 - near) * self.vanishing + bow * math.sin(math.pi * near)
            return middle - (1 - near) * half + near * left, middle + (1 - near) * half + near * right

        return edges

    def _dashes(self) -> None:
        """The line along the middle of the road; painted road is road."""
        draw, unit, paint = self.canvas.draw, self.unit, shade(self.palette.color(self.rng), 1.5)
        if self.kind == "across":
            y = (self.road_top + self.road_bottom) / 2
            for x in np.arange(self.rng.uniform(0, 20) * unit, self.width, 26 * unit):
                draw.rectangle((x, y, x + 14 * unit, y + 2.2 * unit), fill=paint)
            return
        near = 0.04
        while near < 1:
            far, near = near, near * 1.35 + 0.01
            corners = []
            for t, side in ((far, -1), (far, 1), (near, 1), (near, -1)):
                y = self.horizon + (self.height - self.horizon) * t
                left, right = self.road(y)
                corners.append(((left + right) / 2 + side * ((right - left) * 0.012 + 0.3 * unit), y))
            draw.polygon(corners, fill=paint)
            near = near * 1.25 + 0.01

    def figures(self) -> None:
        """Trees, cars, persons and signs, the far ones first."""
        rng, depth = self.rng, self.height - self.horizon
        draw_one = {TREE: figures.tree, CAR: figures.car, PERSON: figures.person, SIGN: figures.sign}
        standing = []
        for kind, most in ((TREE, 2), (CAR, 3), (PERSON, 2), (SIGN, 2)):
            for _ in range(rng.integers(1, most + 1)):
                standing.append((rng.uniform(0.18 if kind == CAR else 0.15, 0.9), kind))
        taken: list[float] = []
        for near, kind in sorted(standing):
            y = self.horizon + depth * near
            if kind == CAR:
                y = min(max(y, self.road_top + 4 * self.unit), self.road_bottom - 2 * self.unit)
            size = (0.85 + 0.6 * near) * self.unit * rng.uniform(0.9, 1.15)
            # of a few places the freest: figures may overlap, but seldom hide each other
            places = [self._place(kind, y) for _ in range(5)]
            x = max(places, key=lambda place: min((abs(place - other) for other in taken), default=0.0))
            taken.append(x)
            draw_one[kind](self.canvas, self.palette, rng, self.light, x, y, size)

    def _place(self, kind: int, y: float) -> float:
        """x of a figure: cars on the road, the others mostly beside it."""
        rng = self.rng
        left, right = self.road(y)
        if kind == CAR:
            return float(rng.uniform(max(left, 0), min(right, self.width)))
        if self.kind != "across" and rng.random() < 0.8:
            margin = rng.uniform(3, 30) * self.unit
            x = left - margin if rng.random() < 0.5 else right + margin
            if 0 < x < self.width:
                return float(x)
        return float(rng.uniform(0.04, 0.96) * self.width)

    def finished(self) -> tuple[np.ndarray, np.ndarray]:
        """The light of the hour, falling from one side, and the noise of a sensor."""
        rng = self.rng
        picture, classes = self.canvas.finished()
        from_side = 1 + 0.1 * self.light * np.linspace(-1, 1, picture.shape[1])[None, :, None]
        picture = picture * rng.uniform(0.9, 1.1, 3) * rng.uniform(0.9, 1.1) * from_side
        picture += rng.normal(0, rng.uniform(2, 5), picture.shape)
        return np.clip(picture, 0, 255).astype(np.uint8), classes

    @staticmethod
    def _box(left: float, top: float, right: float, bottom: float) -> list[Point]:
        return [(left, top), (right, top), (right, bottom), (left, bottom)]
