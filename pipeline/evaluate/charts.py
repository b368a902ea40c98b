"""SVG drawings of a confusion matrix and of a distribution, as text for a page that stands alone.

They carry no colours: the page's style sheet gives `hit`, `miss`, `well` and the text classes theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from pipeline.metrics import ConfusionMatrix

NUMBERED_CLASSES = 24  # up to here the heat map's cells have room for their share in print
LABELLED_CLASSES = 60  # up to here its rows and columns have room for names


def heat_map(matrix: ConfusionMatrix, names: Sequence[str]) -> str:
    """SVG: one rectangle for each entry that is not 0; the unpredicted column stands apart, where there is one."""
    k = len(names)
    with_missing = bool(matrix.unpredicted.any())
    named = k <= LABELLED_CLASSES
    cell = max(4.6, min(92.0, 600 / k))
    size = min(12.5, max(6.5, cell * 0.62))
    longest = max(map(len, names)) if named else 0
    left = 8 + min(longest, 24) * size * 0.56 if named else 26
    top = 8 + min(longest, 24) * size * 0.44 if named else 26
    missing_x = left + k * cell + 10
    width = (missing_x + cell if with_missing else left + k * cell) + (top * 0.8 if named else 4)
    height = top + k * cell + 4
    truth = matrix.truth_pixels
    parts = [f'<rect class="well" x="{left:.1f}" y="{top:.1f}" width="{k * cell:.1f}" height="{k * cell:.1f}" rx="3"/>']
    if with_missing:
        parts.append(
            f'<rect class="well" x="{missing_x:.1f}" y="{top:.1f}" width="{cell:.1f}" height="{k * cell:.1f}" rx="3"/>'
        )
    wide = np.concatenate([matrix.matrix, matrix.unpredicted[:, None]], axis=1)
    labels = []
    parts.append(f'<g transform="translate({left:.1f} {top:.1f}) scale({cell:.3f})">')  # one cell is one unit here
    for t, p in zip(*np.nonzero(wide), strict=True):
        pixels, share = int(wide[t, p]), float(wide[t, p] / truth[t])
        column = (missing_x - left) / cell if p == k else p
        # the root keeps a confusion of 1 % visible beside a hit of 90 %
        opacity = share**0.6
        what = "no prediction" if p == k else f"predicted {names[p]}"
        parts.append(
            f'<rect class="{"hit" if t == p else "miss"}" x="{column:.4g}" y="{t}" width=".97" height=".97" '
            f'fill-opacity="{opacity:.2g}"><title>truth {escape(names[t])}, {escape(what)}: {pixels:,} px, '
            f"{percent(share)} of the row</title></rect>"
        )
        if k <= NUMBERED_CLASSES and share >= 0.005:
            x, y = left + (column + 0.485) * cell, top + (t + 0.485) * cell
            tone = "on" if opacity > 0.6 else "off"
            number = "&gt;99" if 0.995 <= share < 1 else f"{100 * share:.0f}"
            labels.append(
                f'<text class="{tone}" x="{x:.1f}" y="{y:.1f}" font-size="{min(15.0, cell * 0.32):.1f}">{number}</text>'
            )
    parts += ["</g>", *labels]
    if named:
        for i, name in enumerate(names):
            short = escape(name if len(name) <= 24 else name[:23] + "…")
            middle = (i + 0.5) * cell
            parts.append(
                f'<text class="row" x="{left - 6:.1f}" y="{top + middle:.1f}" font-size="{size:.1f}">{short}</text>'
            )
            parts.append(_column_name(short, left + middle, top - 6, size))
        if with_missing:
            parts.append(_column_name("no prediction", missing_x + cell / 2, top - 6, size))
    else:
        for i in range(0, k, 10):
            middle = (i + 0.5) * cell
            parts.append(f'<text class="row soft" x="{left - 4:.1f}" y="{top + middle:.1f}" font-size="8">{i}</text>')
            parts.append(f'<text class="soft" x="{left + middle:.1f}" y="{top - 8:.1f}" font-size="8">{i}</text>')
    view = f"{width:.0f} {height:.0f}"
    return (
        f'<svg class="heat" viewBox="0 0 {view}" style="max-width:{width:.0f}px" role="img" '
        f'aria-label="Confusion matrix">{"".join(parts)}</svg>'
    )


def _column_name(name: str, x: float, y: float, size: float) -> str:
    return (
        f'<text class="column" font-size="{size:.1f}" transform="translate({x:.1f} {y:.1f}) rotate(-45)">{name}</text>'
    )


def histogram(counts: Sequence[int]) -> str:
    bins, top = len(counts), max(counts)
    bar, height = 640 / bins, 120.0
    parts = []
    for i, n in enumerate(counts):
        tall = height * n / top
        if n:
            parts.append(
                f'<rect class="hit" x="{i * bar + 1:.1f}" y="{14 + height - tall:.1f}" width="{bar - 2:.1f}" '
                f'height="{max(tall, 1.5):.1f}" rx="1.5">'
                f"<title>mIoU {i / bins:.2f} to {(i + 1) / bins:.2f}: {n:,} pictures</title></rect>"
                f'<text class="soft" x="{(i + 0.5) * bar:.1f}" y="{8 + height - tall:.1f}" font-size="10">{n:,}</text>'
            )
    parts.append(f'<line x1="0" x2="640" y1="{15 + height}" y2="{15 + height}"/>')
    parts += [
        f'<text class="{anchor} soft" x="{x}" y="{below + height}" font-size="10">{text}</text>'
        for anchor, x, below, text in (
            ("start", 0, 28, "0"),
            ("", 320, 28, "0.5"),
            ("row", 640, 28, "1"),
            ("", 320, 42, "mIoU of the picture"),
        )
    ]
    return (
        f'<svg class="histogram" viewBox="0 0 640 {50 + height:.0f}" role="img" aria-label="Pictures by mIoU">'
        f"{''.join(parts)}</svg>"
    )


def percent(share: float) -> str:
    percent = 100 * share
    return (
        f"{percent:.1f} %"
        if percent >= 0.1 or percent == 0
        else f"{percent:.1g} %"
        if percent >= 0.001
        else "< 0.001 %"
    )


def number(value: float | None) -> str:
    return "absent" if value is None else f"{value:.3f}"


def breakable(text: str) -> str:
    """Escaped, with a place to break after each slash."""
    return escape(text).replace("/", "/<wbr>")
