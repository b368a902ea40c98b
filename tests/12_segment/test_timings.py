"""Timings: what held a run back, and how fast it was."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.segment.timings import Timings, describe


def block(actor: str, begin_s: float, end_s: float, first: bool = False, **spent_s: float) -> dict[str, Any]:
    """Times of a block of 10 pictures."""
    spent = {f"{name}_s": spent_s.get(name, 0.0) for name in ("read", "fetch", "decode", "predict", "ray")}
    started = {"first_predicted_at": 1000.0 + end_s if first else None}
    return {"actor": actor, "first": first, "begin_s": begin_s, "end_s": end_s, "rows": 10, **spent, **started}


@pytest.mark.parametrize(
    ("spent_s", "write_s", "apart", "by"),
    [
        ({"predict": 4.5}, 0.1, False, "predict"),
        ({"predict": 1.5, "read": 3, "decode": 4, "fetch": 9}, 0.1, False, "decode"),
        ({"predict": 1.5, "read": 3, "decode": 1, "fetch": 30}, 0.1, False, "fetch"),
        ({"predict": 1.5}, 0.1, False, "write"),  # encoding: what a block takes beyond the others
        ({"predict": 2.0, "ray": 2.5}, 0.1, False, "driver"),
        ({"predict": 2.0, "ray": 2.5}, 50, False, "write"),
        ({"predict": 2.0, "ray": 2.5, "decode": 9, "fetch": 1}, 0.1, True, "decode"),
    ],
)
def test_what_held_a_run_back(spent_s: dict[str, float], write_s: float, apart: bool, by: str) -> None:
    timings = Timings(1000.0, fetch_threads=8, reads_apart=apart)
    timings.add([block("a", 2, 10, first=True, predict=8), block("b", 2, 12, first=True, predict=8)], 0)
    timings.add([block("b", 12 + 5 * i, 17 + 5 * i, **spent_s) for i in range(4)], write_s)
    timings.add([block("a", 10 + 5 * i, 15 + 5 * i, **spent_s) for i in (1, 0)], write_s)
    speed = timings.speed()
    assert speed is not None and speed["held_back_by"] == by and speed["steady"]
    assert speed["predictor_share"] == pytest.approx(spent_s["predict"] / 5)
    assert speed["pictures_per_s"] == 4 and speed["startup_s"] == 10  # two actors, 10 pictures in 5 s each
    assert sum(speed["shares"].values()) == pytest.approx(1)
    assert "69 h 26 min, 138.88 at 2 an hour" in describe(speed, 2.0)[1]


def test_a_single_block_counts_with_its_warm_up() -> None:
    timings = Timings(1000.0, fetch_threads=8, reads_apart=False)
    assert timings.speed() is None
    timings.add([block("a", 2, 7, first=True, predict=4)], 0)
    speed = timings.speed()
    assert speed is not None and speed["pictures_per_s"] == 2 and not speed["steady"]
