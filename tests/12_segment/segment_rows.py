"""The rows that a segment run left, by their regions' keys."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline import read_predictions


def rows_of(output: object) -> dict[str, dict[str, Any]]:
    rows = list(read_predictions(str(output)))
    by_key = {row["region_key"]: row for row in rows}
    assert len(by_key) == len(rows), "a region stands twice"
    return by_key


def same_masks(a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key]["mask"], b[key]["mask"]) for key in a)
