"""Statistics from the columns of predictions, against sums made row by row."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalog import schema
from pipeline.catalog.manifest import region_key
from pipeline.tables import statistics
from pipeline.tables.sink import write_rows
from pipeline.tables.statistics import write_statistics


def test_every_group_is_the_sum_of_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_ROWS_AT_ONCE", 7)
    rng = np.random.default_rng(4)
    paths = ["root.jpg", *(f"{'abc'[i % 3]}/{'xyz'[i % 2]}/{i}.jpg" for i in range(49))]
    rows: list[dict[str, Any]] = []
    for i, path in enumerate(paths):
        row: dict[str, Any] = {"region_id": i, "region_key": region_key(path), "path": path, "uri": path}
        row |= {"split": [None, "train", "val"][i % 3], "sensor": None if i % 5 == 0 else i % 4}
        row["status"] = "ok" if i % 4 else schema.STATUSES[1 + i // 4 % 6]
        if row["status"] == "ok":
            pixels = rng.integers(0, 50, 3)
            pixels[0] += 2**40  # sums stay exact
            pixels *= i % 7 != 3  # a picture none of whose pixels is of a class
            seen = bool(pixels.sum())
            row |= {"height": 1, "width": (1 + int(pixels.sum())) % 2**31, "class_pixels": pixels.tolist()}
            row["mean_confidence"] = float(np.float32(rng.random())) if seen else None
            row["low_confidence_share"] = 0.25 if seen else None
        else:
            row["error"] = "broken"
        rows.append(row)
    columns = schema.predictions_schema([pa.field("split", pa.string()), pa.field("sensor", pa.int64())])
    for begin in range(0, len(rows), 17):
        write_rows(pa.Table.from_pylist(rows[begin : begin + 17], schema=columns), str(tmp_path / "predictions"))
    whole = write_statistics(str(tmp_path), 3, ["split", "sensor"])

    expected: dict[tuple[str, str | None], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        expected["all", None].append(row)
        expected["folder", posixpath.dirname(row["path"])].append(row)
        for name in ("split", "sensor"):
            if row[name] is not None:
                expected[name, str(row[name])].append(row)
    found = {(row["scope"], row["value"]): row for row in pq.read_table(tmp_path / "statistics").to_pylist()}
    assert found.keys() == expected.keys() and whole == found["all", None]
    for place, members in expected.items():
        ok = [row for row in members if row["status"] == "ok"]
        pixels = sum(row["width"] for row in ok)
        row = found[place]
        assert row["regions"] == len(members) and row["pixels"] == pixels
        assert all(row[status] == sum(m["status"] == status for m in members) for status in schema.STATUSES)
        assert row["class_pixels"] == [sum(m["class_pixels"][k] for m in ok) for k in range(3)]
        seen = [(m["mean_confidence"], sum(m["class_pixels"])) for m in ok if m["mean_confidence"] is not None]
        predicted = sum(count for _, count in seen)
        mean = sum(confidence * count for confidence, count in seen) / predicted if predicted else None
        assert row["mean_confidence"] == (None if mean is None else pytest.approx(mean))
        assert row["low_confidence_share"] == (pytest.approx(0.25) if predicted else None)


def test_a_column_of_too_many_values_is_no_grouping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_MOST_VALUES", 3)
    rows = [
        {
            "region_id": i,
            "region_key": f"{i}",
            "path": f"a/{i}",
            "uri": "",
            "status": "timeout",
            "name": f"{i}",
            "two": bool(i % 2),
        }
        for i in range(9)
    ]
    columns = schema.predictions_schema([pa.field("name", pa.string()), pa.field("two", pa.bool_())])
    write_rows(pa.Table.from_pylist(rows, schema=columns), str(tmp_path / "predictions"))
    assert write_statistics(str(tmp_path), 2, ["name", "two"])["timeout"] == 9
    scopes = pq.read_table(tmp_path / "statistics")["scope"].to_pylist()
    assert sorted(scopes) == ["all", "folder", "two", "two"]
