"""What an evaluation adds up to: the matrix of the whole, one for each group, and what a report wants to show.

Tallies of parts merge to the accumulator of the whole in any order, and travel as JSON. They are made from rows of the
`evaluation` table alone, so a resumed run adds up what is already written without looking at a picture again.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.metrics import ConfusionMatrix

BINS = 20  # of the histogram of the pictures' mIoU
WORST = 8
MOST_VALUES = 200  # a column with more distinct values is no grouping
MOST_PROBLEMS = 100  # listed; all of them are counted, and all are rows


@dataclass
class Group:
    """The pictures of one value of a travelling column."""

    pictures: int
    matrix: ConfusionMatrix


@dataclass
class Accumulator:
    """Sums over rows of the `evaluation` table.

    `groups` leads from a column to its values; None stands for a column that turned out to have too many.
    """

    num_classes: int
    matrix: ConfusionMatrix = field(init=False)
    statuses: Counter[str] = field(default_factory=Counter)
    groups: dict[str, dict[str, Group] | None] = field(default_factory=dict)
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    worst: list[dict[str, Any]] = field(default_factory=list)
    problems: list[tuple[str, str, str]] = field(default_factory=list)  # path, status, text

    def __post_init__(self) -> None:
        self.matrix = ConfusionMatrix(self.num_classes)

    @property
    def pictures(self) -> int:
        return sum(self.statuses.values())

    def add(self, table: pa.Table, group_by: Sequence[str]) -> Accumulator:
        """Count the rows of an `evaluation` table, grouped by each of these columns; returns itself."""
        self.statuses.update(table["status"].to_pylist())
        self.matrix += _sum(table, self.num_classes)
        for column in group_by:
            self._merge_groups(column, self._group(table, column))
        scored = table.filter(pc.and_(pc.equal(table["status"], "ok"), pc.is_valid(table["miou"])))
        mious = scored["miou"].to_numpy()
        self.histogram += np.histogram(mious, bins=BINS, range=(0.0, 1.0))[0]
        wanted = ["region_key", "path", "uri", "label_uri", "miou", "pixel_accuracy"]
        lowest = scored.take(pa.array(np.argsort(mious, kind="stable")[:WORST]))
        confusions = [_largest_confusion(row) for row in lowest.select(["truth", "prediction", "pixels"]).to_pylist()]
        rows = lowest.select(wanted).to_pylist()
        self._keep_worst([row | {"confusion": pair} for row, pair in zip(rows, confusions, strict=True)])
        others = table.filter(pc.not_equal(table["status"], "ok")).select(["path", "status", "error"]).to_pylist()
        self._keep_problems([(row["path"], row["status"], row["error"] or "") for row in others])
        return self

    def merge(self, other: Accumulator) -> Accumulator:
        """Add another accumulator and return itself."""
        self.matrix += other.matrix
        self.statuses.update(other.statuses)
        self.histogram += other.histogram
        for column, values in other.groups.items():
            self._merge_groups(column, values)
        self._keep_worst(other.worst)
        self._keep_problems(other.problems)
        return self

    def to_json(self) -> dict[str, Any]:
        return {
            "num_classes": self.num_classes,
            "matrix": _matrix_to_json(self.matrix),
            "statuses": dict(self.statuses),
            "histogram": self.histogram.tolist(),
            "worst": self.worst,
            "problems": self.problems,
            "groups": {
                column: values and {v: [g.pictures, _matrix_to_json(g.matrix)] for v, g in values.items()}
                for column, values in self.groups.items()
            },
        }

    @classmethod
    def from_json(cls, text: dict[str, Any]) -> Accumulator:
        accumulator = cls(text["num_classes"])
        accumulator.matrix = ConfusionMatrix.from_sparse(*text["matrix"])
        accumulator.statuses = Counter(text["statuses"])
        accumulator.histogram = np.array(text["histogram"], np.int64)
        accumulator.worst = text["worst"]
        accumulator.problems = [(path, status, error) for path, status, error in text["problems"]]
        accumulator.groups = {
            column: values
            if values is None
            else {v: Group(pictures, ConfusionMatrix.from_sparse(*matrix)) for v, (pictures, matrix) in values.items()}
            for column, values in text["groups"].items()
        }
        return accumulator

    def _group(self, table: pa.Table, column: str) -> dict[str, Group] | None:
        counted = table.filter(pc.is_valid(table["truth"]))
        values = pc.unique(counted[column])
        if len(values) > MOST_VALUES:
            return None
        groups = {}
        for value in values:
            same = pc.is_null(counted[column]) if value.as_py() is None else pc.equal(counted[column], value)
            rows = counted.filter(same)
            name = "(none)" if value.as_py() is None else str(value.as_py())
            groups[name] = Group(rows.num_rows, _sum(rows, self.num_classes))
        return groups

    def _merge_groups(self, column: str, values: dict[str, Group] | None) -> None:
        mine = self.groups.setdefault(column, {})
        if mine is None or values is None:
            self.groups[column] = None
            return
        for value, group in values.items():
            if value in mine:
                mine[value].pictures += group.pictures
                mine[value].matrix += group.matrix
            else:
                mine[value] = group
        if len(mine) > MOST_VALUES:
            self.groups[column] = None

    def _keep_worst(self, rows: list[dict[str, Any]]) -> None:
        self.worst = heapq.nsmallest(WORST, [*self.worst, *rows], key=lambda row: (row["miou"], row["path"]))

    def _keep_problems(self, problems: list[tuple[str, str, str]]) -> None:
        self.problems = heapq.nsmallest(MOST_PROBLEMS, [*self.problems, *problems])


def _sum(table: pa.Table, num_classes: int) -> ConfusionMatrix:
    """The matrix of all rows together; rows without a matrix add nothing."""
    truth, prediction, pixels = (pc.list_flatten(table[name]).to_numpy() for name in ("truth", "prediction", "pixels"))
    unpredicted = pc.list_flatten(table["unpredicted"]).to_numpy().reshape(-1, num_classes).sum(axis=0)
    ignored = pc.sum(table["ignored"]).as_py() or 0
    return ConfusionMatrix.from_sparse(truth, prediction, pixels, unpredicted, ignored)


def _matrix_to_json(matrix: ConfusionMatrix) -> list[Any]:
    return [*matrix.sparse(), matrix.unpredicted.tolist(), matrix.ignored]


def _largest_confusion(row: dict[str, Any]) -> list[int] | None:
    """(truth, prediction) of the most pixels that were taken for another class."""
    pairs = zip(row["pixels"], row["truth"], row["prediction"], strict=True)
    wrong = [(pixels, t, p) for pixels, t, p in pairs if t != p]
    return list(max(wrong)[1:]) if wrong else None
