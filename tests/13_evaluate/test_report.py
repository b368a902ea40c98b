"""The report's page: it stands alone, its counts are exact, and no percentage rounds away."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from pipeline.evaluate import charts, report
from pipeline.labels import LabelSet
from pipeline.metrics import ConfusionMatrix


class Page(HTMLParser):
    """Collects what a browser would load, and checks that tags are closed."""

    VOID = {"meta", "img", "br", "wbr", "rect", "line"}

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self._texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        assert tag not in ("script", "link", "iframe")
        if tag not in self.VOID or (tag == "rect" and not self.get_starttag_text().endswith("/>")):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID or tag == "rect":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self._texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self._texts)


def page_of(num_classes: int, **changes: Any) -> report.Page:
    random = np.random.default_rng(num_classes)
    names = tuple(f"<i>&class {i}" for i in range(num_classes))
    colors = tuple((i % 256, 0, 255 - i % 256) for i in range(num_classes))
    matrix = random.integers(0, 50, (num_classes, num_classes))
    matrix[0], matrix[:, 0] = 0, 0  # one class is absent
    values: dict[str, Any] = {
        "title": "s3://bucket/<script>alert(1)</script>",
        "label_set": LabelSet("set", names, colors),
        "matrix": ConfusionMatrix.from_counts(matrix),
        "counts": {"scored": 1200, "not predicted": 3},
        "facts": {"Labels": "<b>&"},
        "created": "today",
    }
    return report.Page(**(values | changes))


@pytest.mark.parametrize("num_classes", [1, 2, 11, 61, 150])
def test_report_stands_alone(num_classes: int) -> None:
    text = report.render(page_of(num_classes))
    page = Page()
    page.feed(text)
    assert not page.open and not page.loads
    assert not re.search(r"url\(|@import|https?://", text)
    assert "<script>" not in text and "<i>&class" not in text
    assert f"mIoU over {max(0, num_classes - 1)} of {num_classes} classes" in page.text
    assert "absent from truth and prediction" in page.text and not re.search(r"\bnan\b", page.text, re.IGNORECASE)
    assert len(text) < 5_000_000  # of 150 classes all confused with each other


def test_report_shows_exact_counts_and_the_worst() -> None:
    names = ("a", "b")
    labels = LabelSet("two", names, ((0, 0, 0), (255, 255, 255)))
    matrix = ConfusionMatrix.from_counts(np.array([[12345, 55], [0, 7]]), np.array([0, 3]))
    truth = np.array([[0, 1, 255], [1, 1, 0]], np.uint8)
    example = report.Example("folder/<x>.png", 0.25, 0.5, truth, truth, np.zeros((2, 3, 3), np.uint8), "mostly a")
    text = report.render(page_of(2, label_set=labels, matrix=matrix, examples=[example], histogram=[0, 3, 0, 1]))
    assert "truth a, predicted b: 55 px" in text and "truth b, no prediction: 3 px, 30.0 % of the row" in text
    assert "12,345 px" in text and "&lt;x&gt;.png" in text
    page = Page()
    page.feed(text)
    assert [source[:22] for source in page.loads] == ["data:image/jpeg;base64", "data:image/png;base64,"] + [
        "data:image/png;base64,",
        "data:image/jpeg;base64",
    ]
    gone = report.render(
        page_of(2, label_set=labels, matrix=matrix, examples=[report.Example("x", None, None, truth, truth)])
    )
    assert "picture not to be had" in gone


def test_percentages_do_not_round_away() -> None:
    assert [charts.percent(x) for x in (0.0, 1.0, 0.5, 0.0004, 0.000001)] == [
        "0.0 %",
        "100.0 %",
        "50.0 %",
        "0.04 %",
        "< 0.001 %",
    ]
