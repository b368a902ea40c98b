"""What the predictor actors do with their time: measured by them block by block, summed up by the driver.

A block's times are one small struct in a column of its first row (`TIMES`); it travels with the results and ends where
they are written. The driver keeps one sum an actor, no state per picture.

*Steady state* of an actor is the time from the end of its first block (which warms up) to the end of its last; *share
of the predictor's own rate* is the part of that time which it spent inside `Predictor.predict`.
"""

from __future__ import annotations

import contextlib
import sys
import time
import uuid
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pyarrow as pa

from pipeline.runtime.progress import duration

TIMES = "times"
STAGES = ("fetch", "decode", "predict", "write", "driver")  # write: encoding included
_SPENT = ("read", "fetch", "decode", "predict", "ray")
TIMES_FIELD = pa.field(
    TIMES,
    pa.struct(
        [
            pa.field("actor", pa.string()),
            pa.field("first", pa.bool_()),  # this actor's first block
            pa.field("first_predicted_at", pa.float64()),  # Unix time, of a first block
            pa.field("begin_s", pa.float64()),  # of the actor's own clock
            pa.field("end_s", pa.float64()),
            pa.field("rows", pa.int64()),
            # read: waiting for pixels; fetch, decode: what the reader behind that did; ray: calls to other actors
            *(pa.field(f"{name}_s", pa.float64()) for name in _SPENT),
        ]
    ),
)

Item = TypeVar("Item")


class Stopwatch:
    """Times one actor's blocks: `begin`, then `measure` and `waiting`, then `end` returns the block's times."""

    def __init__(self) -> None:
        self._actor = uuid.uuid4().hex[:12]
        self._first = True
        self._first_predicted_at: float | None = None
        self._spent = dict.fromkeys(_SPENT, 0.0)
        self._begin_s = 0.0

    def begin(self) -> None:
        self._begin_s = time.monotonic()
        self._spent = dict.fromkeys(_SPENT, 0.0)

    @contextlib.contextmanager
    def measure(self, what: str) -> Iterator[None]:
        """Counts the time that the block takes as `what` (one of read, predict, ray)."""
        begin_s = time.monotonic()
        try:
            yield
        finally:
            self._spent[what] += time.monotonic() - begin_s
            if what == "predict" and self._first_predicted_at is None:
                self._first_predicted_at = time.time()

    def waiting(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items; the wait for each counts as read."""
        while True:
            with self.measure("read"):
                item = next(items, None)
            if item is None:
                return
            yield item

    def count(self, what: str, seconds: float) -> None:
        self._spent[what] += seconds

    def end(self, rows: int) -> dict[str, Any]:
        times = {
            "actor": self._actor,
            "first": self._first,
            "first_predicted_at": self._first_predicted_at if self._first else None,
            "begin_s": self._begin_s,
            "end_s": time.monotonic(),
            "rows": rows,
            **{f"{name}_s": self._spent[name] for name in _SPENT},
        }
        self._first = False
        return times


def with_times(table: pa.Table, times: dict[str, Any]) -> pa.Table:
    """The table with the column `times`, null but in its first row."""
    values = [times] + [None] * (table.num_rows - 1) if table.num_rows else []
    return table.append_column(TIMES_FIELD, pa.array(values, TIMES_FIELD.type))


def without_times(table: pa.Table) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The table without that column, and the times of the blocks that it is made of."""
    return table.drop_columns([TIMES]), table[TIMES].drop_null().to_pylist()


@dataclass
class _Actor:
    begin_s: float
    end_s: float
    warm: bool = False  # its first block is not among the sums
    rows: int = 0
    spent: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*_SPENT, "busy"), 0.0))


class Timings:
    """The driver's sums over all actors of one run of the driver.

    `started_at`: when the command began (Unix time); `reads_apart`: reading is a stage of its own, before GPUs.
    """

    def __init__(self, started_at: float, *, fetch_threads: int, reads_apart: bool = False) -> None:
        self._started_at = started_at
        self.reads_apart = reads_apart
        self._fetch_threads = fetch_threads
        self._steady: dict[str, _Actor] = {}
        self._first: dict[str, _Actor] = {}
        self._first_predicted_at: float | None = None
        self._write_s = 0.0

    def add(self, blocks: Iterable[dict[str, Any]], write_s: float) -> None:
        self._write_s += write_s
        for block in blocks:
            actors = self._first if block["first"] else self._steady
            actor = actors.setdefault(block["actor"], _Actor(block["begin_s"], block["end_s"]))
            actor.begin_s, actor.end_s = min(actor.begin_s, block["begin_s"]), max(actor.end_s, block["end_s"])
            actor.rows += block["rows"]
            for name in _SPENT:
                actor.spent[name] += block[f"{name}_s"]
            actor.spent["busy"] += block["end_s"] - block["begin_s"]
            if block["first_predicted_at"] is not None:
                self._first_predicted_at = min(block["first_predicted_at"], self._first_predicted_at or float("inf"))

    def speed(self) -> dict[str, Any] | None:
        """Rate, shares and what held it back, in steady state; None where nothing was predicted.

        `steady` is False where no actor had a second block: then the first ones count, with their warm-up.
        """
        steady = bool(self._steady)
        actors = self._steady if steady else self._first
        for name, first in self._first.items():
            if steady and name in actors:
                actors[name].begin_s = first.end_s
        window_s = sum(actor.end_s - actor.begin_s for actor in actors.values())
        if not window_s:
            return None
        rate = sum(actor.rows / (actor.end_s - actor.begin_s) for actor in actors.values() if actor.rows)
        shares = self._shares(actors.values(), window_s)
        return {
            "pictures_per_s": round(rate, 3),
            "predictor_share": round(shares["predict"], 4),
            "held_back_by": max(shares, key=lambda stage: shares[stage]),
            "shares": {stage: round(share, 4) for stage, share in shares.items()},
            "predictors": len(actors),
            "pictures": sum(actor.rows for actor in actors.values()),
            "steady": steady,
            "startup_s": round(max(0.0, (self._first_predicted_at or self._started_at) - self._started_at), 1),
            "hours_per_million": round(1e6 / rate / 3600, 2),
        }

    def _shares(self, actors: Collection[_Actor], window_s: float) -> dict[str, float]:
        """The actors' time by stage; adds up to 1.

        Waiting for pixels goes to whichever of fetching and decoding was the busier. Waiting for Ray goes to writing
        where a write was under way half of the time, else to reading where that is a stage of its own, else to the
        driver.
        """
        spent = {name: sum(actor.spent[name] for actor in actors) for name in (*_SPENT, "busy")}
        longest_s = max(actor.end_s - actor.begin_s for actor in actors)
        reading = "decode" if spent["decode"] >= spent["fetch"] / self._fetch_threads else "fetch"
        waiting_s = window_s - spent["busy"] + spent["ray"]
        blamed = "write" if self._write_s > 0.5 * longest_s else reading if self.reads_apart else "driver"
        shares = dict.fromkeys(STAGES, 0.0)
        shares["predict"] = spent["predict"]
        shares[reading] += spent["read"]
        shares["write"] += spent["busy"] - spent["predict"] - spent["read"] - spent["ray"]
        shares[blamed] += waiting_s
        return {stage: seconds / window_s for stage, seconds in shares.items()}


def describe(speed: dict[str, Any], price_per_hour: float | None) -> list[str]:
    """A run's speed as lines of text; with the price of the whole cluster, the cost of a million pictures."""
    shares = ", ".join(f"{stage} {100 * share:.0f} %" for stage, share in speed["shares"].items() if share >= 0.005)
    state = "in steady state" if speed["steady"] else "warm-up included (too few to leave it out)"
    predictors = f"{speed['predictors']} predictor{'s' * (speed['predictors'] > 1)}"
    million = f"a million pictures: {duration(3600 * speed['hours_per_million'])}"
    if price_per_hour is not None:
        million += f", {speed['hours_per_million'] * price_per_hour:.2f} at {price_per_hour:g} an hour"
    return [
        f"speed: {speed['pictures_per_s']:.1f} pictures/s {state}, {100 * speed['predictor_share']:.0f} % of the"
        f" rate of {predictors} alone; time went to: {shares}; held back by {speed['held_back_by']}",
        f"start-up: {speed['startup_s']:.1f} s from the command to the first predicted picture; {million}",
    ]


def command_started_at() -> float:
    """Unix time at which this process began, where it is one of jobs/; elsewhere (a notebook, a test) now."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main and Path(main).resolve().parent.name == "jobs":
        return psutil.Process().create_time()
    return time.time()
