"""What stands and drives in a street. Each function draws one figure whose foot is at (x, y), `s` px a unit of size.

`light` is -1 or 1, the side the sun shines from. A person is about 59 units tall, a car 44 long, a pole 9 wide.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.scenes.canvas import Canvas, Point, bands, flat, plaid, sheen
from pipeline.scenes.palette import CAR, PERSON, SIGN, TREE, Palette, shade

Generator = np.random.Generator


def tree(canvas: Canvas, palette: Palette, rng: Generator, light: int, x: float, y: float, s: float) -> None:
    """A trunk and a crown of many dabs of leaf, lighter towards the sun."""
    canvas.shadow(x - light * 6 * s, y, 16 * s, 4 * s)
    trunk, leaf = shade(palette.color(rng), 0.75), palette.color(rng, TREE)
    top = y - rng.uniform(20, 30) * s
    stem = [(x - 4 * s, y), (x - 3 * s, top), (x + 3 * s, top), (x + 4 * s, y)]
    canvas.fill(TREE, stem, flat(trunk))
    r = rng.uniform(15, 21) * s
    cy = top - r * 0.5
    crown = []
    for angle in np.linspace(0, 2 * math.pi, 40, endpoint=False):
        reach = r * (1 + 0.08 * math.sin(angle * 7 + x) + rng.normal(0, 0.03))
        crown.append((x + reach * math.cos(angle), cy + reach * math.sin(angle) * 1.05))
    canvas.fill(TREE, crown, flat(shade(leaf, 0.8)))
    draw = canvas.draw
    for _ in range(150):
        angle, reach = rng.uniform(0, 2 * math.pi), r * math.sqrt(rng.random()) * 0.93
        dx, dy, d = reach * math.cos(angle), reach * math.sin(angle), rng.uniform(1.0, 2.2) * s
        tone = 0.95 + 0.3 * (light * dx - dy) / r + rng.normal(0, 0.16)
        draw.ellipse((x + dx - d, cy + dy - d * 0.8, x + dx + d, cy + dy + d * 0.8), fill=shade(leaf, tone))


def car(canvas: Canvas, palette: Palette, rng: Generator, light: int, x: float, y: float, s: float) -> None:
    """From the side: hull, cabin, two windows, a lamp and two wheels."""
    length, tall, wheel = rng.uniform(40, 48) * s, rng.uniform(9, 11) * s, 4.7 * s
    face = rng.choice([-1, 1])
    body = palette.color(rng, CAR)
    canvas.shadow(x - light * 7 * s, y, length * 0.55, 3.5 * s)

    def at(*points: Point) -> list[Point]:
        """Shares of the length from the middle, and of the hull's height from its under side."""
        return [(x + face * px * length, y - wheel * 0.8 - py * tall) for px, py in points]

    canvas.fill(CAR, at((-0.36, 0.95), (-0.27, 1.75), (0.1, 1.75), (0.27, 0.95)), flat(shade(body, 0.9)))
    hull = at((-0.5, 0.1), (-0.5, 0.85), (-0.44, 1.0), (0.3, 1.0), (0.47, 0.8), (0.5, 0.5), (0.5, 0.1))
    canvas.fill(CAR, hull, sheen(body))
    glass = shade(palette.color(rng), rng.choice([0.4, 1.4]))
    canvas.draw.polygon(at((-0.31, 1.0), (-0.24, 1.6), (-0.09, 1.6), (-0.09, 1.0)), fill=glass)
    canvas.draw.polygon(at((-0.05, 1.0), (-0.05, 1.6), (0.08, 1.6), (0.21, 1.0)), fill=glass)
    canvas.draw.line(at((-0.07, 0.95), (-0.07, 0.2)), fill=shade(body, 0.65), width=max(1, int(0.7 * s)))
    canvas.dot(*at((0.45, 0.6))[0], 1.5 * s, (250, 240, 190))
    for px in (-0.29, 0.29):
        hub = x + face * px * length, y - wheel
        canvas.disc(CAR, *hub, wheel, (38, 36, 40))
        canvas.dot(*hub, wheel * 0.45, (170, 170, 175))


def person(canvas: Canvas, palette: Palette, rng: Generator, light: int, x: float, y: float, s: float) -> None:
    """Legs in mid-stride, a coat with two arms, a head with hair."""
    s *= 1.6
    canvas.shadow(x - light * 2.5 * s, y, 7 * s, 2.2 * s)
    coat, trousers = palette.color(rng, PERSON), shade(palette.color(rng, PERSON), 0.6)
    stride, reach = rng.uniform(1.5, 4), rng.uniform(1, 3)

    def at(*points: Point) -> list[Point]:
        return [(x + px * s, y - py * s) for px, py in points]

    for side in (-1, 1):
        foot = side * stride
        canvas.fill(PERSON, at((foot - 2, 0), (-2.6, 16), (2.6, 16), (foot + 2, 0)), flat(trousers))
    for side in (-1, 1):
        hand = side * (5.5 + reach)
        arm = at((side * 3, 28), (side * 5.6, 27), (hand + side, 16), (hand - side * 2, 16))
        canvas.fill(PERSON, arm, flat(shade(coat, 0.8)))
    canvas.fill(PERSON, at((-4.6, 14), (-5, 26), (-2.5, 29), (2.5, 29), (5, 26), (4.6, 14)), plaid(coat, 4 * s))
    canvas.disc(PERSON, x, y - 32.5 * s, 4.2 * s, shade((226, 178, 140), rng.uniform(0.45, 1.1)))
    head = (x - 4.2 * s, y - 36.7 * s, x + 4.2 * s, y - 28.3 * s)
    canvas.draw.pieslice(head, 170, 370, fill=shade(palette.color(rng), 0.5))


def sign(canvas: Canvas, palette: Palette, rng: Generator, light: int, x: float, y: float, s: float) -> None:
    """A striped pole with a plate: triangle, square, lozenge or disc."""
    s *= 1.5
    canvas.shadow(x - light * 2 * s, y, 5 * s, 1.6 * s)
    top, r = y - rng.uniform(30, 38) * s, rng.uniform(9.5, 11.5) * s
    pole = [(x - 3 * s, y), (x - 3 * s, top), (x + 3 * s, top), (x + 3 * s, y)]
    canvas.fill(SIGN, pole, bands(palette.color(rng, SIGN), 5 * s))
    corners = int(rng.choice([3, 4, 4, 24]))
    start = -math.pi / 2 if corners != 4 else float(rng.choice([0.0, math.pi / 4]))
    rim, face = palette.color(rng, SIGN), shade(palette.color(rng), rng.choice([0.5, 1.5]))

    def plate(reach: float) -> list[Point]:
        angles = start + np.arange(corners) * 2 * math.pi / corners
        return [(x + reach * math.cos(a), top + reach * math.sin(a)) for a in angles]

    canvas.fill(SIGN, plate(r), flat(rim))
    canvas.draw.polygon(plate(r * 0.72), fill=face)
    canvas.draw.rectangle((x - r * 0.32, top - r * 0.1, x + r * 0.32, top + r * 0.14), fill=rim)
