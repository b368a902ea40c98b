"""Rates and time left: of the last half minute, whatever came before."""

from __future__ import annotations

import pytest

from pipeline.runtime.progress import Progress, RecentRate, speed_text


class Clock:
    """Seconds that a test turns on by hand."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def fed(*steps: tuple[float, int], begun: int = 0) -> RecentRate:
    """A rate that was updated with (seconds later, units done)."""
    clock = Clock()
    rate = RecentRate(begun, clock=clock)
    for later_s, done in steps:
        clock.now_s += later_s
        rate.update(done)
    return rate


def test_a_slow_start_says_nothing_about_the_time_left() -> None:
    """50 s of start-up, then 4 units a second: the very first rate that is shown is 4."""
    rate = fed((50, 0), (0, 1), (1, 5), (1, 9))
    assert rate.per_second == pytest.approx(4.0)
    assert rate.left_s(49) == pytest.approx(10.0)


def test_before_the_first_units_there_is_no_rate() -> None:
    for rate in (fed(), fed((5, 0)), fed((5, 0), (5, 3)), fed((5, 70), begun=70)):
        assert rate.per_second is None and rate.left_s(100) is None
        assert speed_text(rate, 100) == "starting"


def test_only_the_last_half_minute_counts() -> None:
    slow = [(1.0, done) for done in range(1, 101)]  # 100 s at 1 a second
    fast = [(1.0, 100 + 10 * done) for done in range(1, 61)]  # 60 s at 10 a second
    assert fed(*slow, *fast).per_second == pytest.approx(10.0)
    assert fed(*slow, *fast[:5]).per_second == pytest.approx((25 + 50) / 30, rel=0.1)


def test_a_stall_is_seen() -> None:
    moving = [(1.0, done) for done in range(1, 41)]
    assert fed(*moving, *[(1.0, 40)] * 15).per_second == pytest.approx(0.5, rel=0.1)
    stalled = fed(*moving, *[(1.0, 40)] * 40)
    assert stalled.per_second == 0 and stalled.left_s(100) is None
    assert speed_text(stalled, 100) == "0.0/s"


def test_a_resumed_run_counts_its_own_work() -> None:
    rate = fed((1, 1000), (1, 1002), (1, 1004), begun=1000)
    assert rate.per_second == pytest.approx(2.0)
    assert rate.left_s(1014) == pytest.approx(5.0)


def test_nothing_to_do_and_everything_done(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress("segment", 0)
    progress.advance(0)
    progress.close("0 failed")
    assert capsys.readouterr().err.splitlines()[-1].startswith("segment: 0/0 pictures")
