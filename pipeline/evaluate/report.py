"""The page a person reads in the morning: one HTML file that stands alone.

No script, no address of anything outside, pictures as base64; legible in light, dark and on paper, for 2 classes as for
150. Every string that came from data is escaped. Colours of the heat map: hits and confusions have a hue each, shaded
by the share of the row, so one look separates "found" from "taken for something else".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluate.charts import LABELLED_CLASSES, breakable, heat_map, histogram, number, percent
from pipeline.evaluate.examples import Example, render_example
from pipeline.labels import LabelSet
from pipeline.metrics import ConfusionMatrix

_STYLE = Path(__file__).with_suffix(".css")


@dataclass(frozen=True)
class Page:
    """Everything the report shows.

    `counts` are pictures by outcome ("evaluated" first); `histogram` counts pictures by mIoU in equal bins of 0..1;
    `groups` leads from a column to (value, pictures, matrix); `problems` lists (path, what was wrong), `problem_total`
    of them in all; `notes` are sentences that stand above the figures, since they say what to make of them.
    """

    title: str
    label_set: LabelSet
    matrix: ConfusionMatrix
    counts: dict[str, int]
    facts: dict[str, str]
    created: str
    examples: Sequence[Example] = ()
    histogram: Sequence[int] = ()
    groups: dict[str, list[tuple[str, int, ConfusionMatrix]]] = field(default_factory=dict)
    problems: Sequence[tuple[str, str]] = ()
    problem_total: int = 0
    notes: Sequence[str] = ()


def render(page: Page) -> str:
    """The whole HTML document."""
    values = page.matrix.metrics(page.label_set.names)
    sections = [
        _headline(page, values),
        _classes(page, values),
        _confusion(page),
        _pictures(page),
        *(_group(column, rows) for column, rows in page.groups.items()),
        _problems(page),
        _facts(page),
    ]
    style, body = _STYLE.read_text(encoding="utf-8"), "\n".join(filter(None, sections))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(page.title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{style}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def _headline(page: Page, values: dict[str, Any]) -> str:
    classes = values["num_classes"]
    counted, in_truth = values["classes_counted"], values["classes_in_truth"]
    tiles = [
        ("Pixel accuracy", values["pixel_accuracy"], f"{values['pixels']:,} pixels"),
        ("Mean accuracy", values["mean_pixel_accuracy"], f"over {in_truth} of {classes} classes"),
        ("Weighted IoU", values["fwiou"], "by frequency in truth"),
        ("Mean Dice", values["dice"], f"over {counted} of {classes} classes"),
    ]
    present = [(row["iou"], name) for name, row in values["per_class"].items() if row["iou"] is not None]
    extremes = ""
    if len(present) > 1:
        (low, worst), (high, best) = min(present), max(present)
        extremes = f'<p class="extremes">Best {escape(best)} {high:.3f}, worst {escape(worst)} {low:.3f}</p>'
    warnings = "".join(f'<p class="warning">{escape(note[:1].upper() + note[1:])}</p>' for note in page.notes)
    notes = []
    if values["ignored"]:
        share = values["ignored"] / (values["ignored"] + values["pixels"])
        notes.append(f"{values['ignored']:,} void pixels left out ({percent(share)})")
    missed = sum(values["unpredicted"])
    if missed:
        notes.append(f"{missed:,} pixels without a prediction, counted as misses")
    return (
        f'<header><p class="eyebrow">Segmentation, evaluated</p><h1>{breakable(page.title)}</h1>'
        f'<p class="muted">{escape(page.created)}</p></header>{warnings}'
        '<section class="hero"><div class="lead"><p class="label">Mean intersection over union</p>'
        f'<p class="huge">{number(values["miou"])}</p>'
        f"<p>mIoU over {counted} of {classes} classes</p>{extremes}</div>"
        '<div class="tiles">'
        + "".join(
            f'<div><p class="label">{name}</p><p class="big">{number(value)}</p><p class="muted">{note}</p></div>'
            for name, value, note in tiles
        )
        + f"</div></section>{_counts(page.counts)}"
        + (f'<p class="muted">{"; ".join(notes)}.</p>' if notes else "")
    )


def _counts(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    kinds = ("good", "bad", "warn", "warn2", "bad2")
    shown = [(kinds[min(i, 4)], name, n) for i, (name, n) in enumerate(counts.items()) if n or i == 0]
    bars = "".join(f'<i class="{kind}" style="flex-grow:{n}"></i>' for kind, _, n in shown if n)
    legend = "".join(f'<li><i class="{kind}"></i><b>{n:,}</b> {escape(name)}</li>' for kind, name, n in shown)
    return (
        f'<section class="counts"><div class="stack">{bars}</div><ul>{legend}'
        f'<li class="muted">{total:,} pictures in all</li></ul></section>'
    )


def _classes(page: Page, values: dict[str, Any]) -> str:
    total = values["pixels"]
    ids = {name: i for i, name in enumerate(page.label_set.names)}
    rows = []
    entries = zip(page.label_set.colors, values["per_class"].items(), strict=True)
    for color, (name, row) in sorted(entries, key=lambda e: (e[1][1]["iou"] is None, -(e[1][1]["iou"] or 0.0))):
        share = row["truth_pixels"] / total if total else 0.0
        # a large matrix has no room for names: its rows are found by their number
        number = f'<span class="muted">{ids[name]}</span> ' if len(ids) > LABELLED_CLASSES else ""
        head = f'<th scope="row"><i class="swatch" style="background:{_hex(color)}"></i>{number}{escape(name)}</th>'
        if row["iou"] is None:
            rows.append(f'<tr class="absent">{head}<td colspan="4">absent from truth and prediction</td></tr>')
            continue
        hover = f"truth {row['truth_pixels']:,} px, predicted {row['predicted_pixels']:,} px"
        rows.append(
            f'<tr title="{hover}">{head}{_bar(row["iou"], "main")}{_bar(row["accuracy"])}{_bar(row["dice"])}'
            f"{_bar(share, 'share', percent(share))}</tr>"
        )
    return (
        "<section><h2>Classes</h2><p class='muted'>Sorted by IoU. The colours are those of the masks below.</p>"
        '<table class="bars"><thead><tr><th>Class</th><th>IoU</th><th>Accuracy</th><th>Dice</th>'
        f"<th>Share of truth</th></tr></thead><tbody>{''.join(rows)}</tbody></table></section>"
    )


def _confusion(page: Page) -> str:
    matrix, names = page.matrix, page.label_set.names
    return (
        '<section><h2>Confusion</h2><p class="muted">Rows are truth, columns prediction, shaded by the share of the '
        'row in percent: <span class="key hit"></span> found <span class="key miss"></span> missed. '
        f"Point at a cell for its exact count.</p>{heat_map(matrix, names)}{_largest(matrix, names)}"
        "</section>"
    )


def _largest(matrix: ConfusionMatrix, names: Sequence[str], count: int = 8) -> str:
    """The pairs that cost most: pixels of one class taken for another, most pixels first."""
    off = matrix.matrix.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(off, axis=None, kind="stable")[::-1][:count]
    rows = []
    for flat in order:
        t, p = divmod(int(flat), len(names))
        pixels = int(off[t, p])
        if pixels:
            share = percent(pixels / int(matrix.truth_pixels[t]))
            rows.append(
                f"<li><b>{escape(names[t])}</b> taken for <b>{escape(names[p])}</b>"
                f'<span class="muted">{pixels:,} px, {share} of {escape(names[t])}</span></li>'
            )
    return f'<h3>Largest confusions</h3><ol class="largest">{"".join(rows)}</ol>' if rows else ""


def _pictures(page: Page) -> str:
    if not page.examples and not any(page.histogram):
        return ""
    overview = histogram(page.histogram) if any(page.histogram) else ""
    rows = "".join(render_example(example, page.label_set) for example in page.examples)
    worst = (
        f"<h3>The {len(page.examples)} worst</h3>"
        '<div class="strip heads"><span>Picture</span><span>Truth</span><span>Prediction</span>'
        f"<span>Wrong pixels</span></div>{rows}"
        if rows
        else ""
    )
    return f"<section><h2>Pictures</h2>{overview}{worst}</section>"


def _group(column: str, rows: list[tuple[str, int, ConfusionMatrix]]) -> str:
    lines = []
    for value, pictures, matrix in sorted(rows, key=lambda row: (row[2].miou is None, -(row[2].miou or 0.0))):
        covered = int((matrix.truth_pixels + matrix.predicted_pixels > 0).sum())
        lines.append(
            f'<tr><th scope="row">{breakable(value)}</th>{_bar(matrix.miou, "main")}{_bar(matrix.pixel_accuracy)}'
            f'<td class="number">{covered} of {matrix.num_classes}</td><td class="number">{pictures:,}</td></tr>'
        )
    return (
        f'<section><h2>By {escape(column)}</h2><table class="bars"><thead><tr><th>{escape(column)}</th><th>mIoU</th>'
        f'<th>Pixel accuracy</th><th class="number">Classes</th><th class="number">Pictures</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></section>"
    )


def _problems(page: Page) -> str:
    if not page.problem_total:
        return ""
    rows = "".join(f"<tr><th>{breakable(path)}</th><td>{escape(what)}</td></tr>" for path, what in page.problems)
    more = page.problem_total - len(page.problems)
    rest = f'<p class="muted">and {more:,} more, all in pictures/*.parquet</p>' if more else ""
    return (
        f"<section><h2>Left out or missed: {page.problem_total:,}</h2>"
        f'<table class="facts wide">{rows}</table>{rest}</section>'
    )


def _facts(page: Page) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{breakable(value)}</td></tr>' for name, value in page.facts.items()
    )
    return f'<section><h2>This run</h2><table class="facts">{rows}</table></section>'


def _bar(value: float | None, kind: str = "", text: str | None = None) -> str:
    if value is None:
        return '<td class="none" title="not in truth">absent</td>'
    meter = f'<span><i style="width:{100 * value:.1f}%"></i></span><b>{text or number(value)}</b>'
    return f'<td class="bar {kind}"><div>{meter}</div></td>'


def _hex(color: Iterable[int]) -> str:
    return "#" + "".join(f"{band:02x}" for band in color)
