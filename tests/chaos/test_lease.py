"""Two drivers and one output folder."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from chaos.audit import Rows
from chaos.drivers import Driver, Drivers, Runs
from chaos.miniature import miniature_job
from chaos.record import recorded
from chaos.test_commit import ELSEWHERE

STEP = ("replace predictions/ok", 3)


@pytest.fixture
def miniature(drivers: Drivers, small_collection: Path, folder: Path) -> Runs:
    return Runs(drivers, miniature_job, folder, {"source": small_collection})


def stopped(miniature: Runs, output: str) -> Driver:
    """A driver that sleeps (SIGSTOP) before a commit: alive, and it says nothing."""
    halt = miniature.halt(output, STEP, signal.SIGSTOP)
    driver = miniature.start(output, halt=halt)
    assert driver.wait_for(lambda: halt.step in halt.steps()), driver.stderr
    return driver


def test_a_live_run_is_left_alone_and_a_dead_one_taken_over_at_once(miniature: Runs, small_rows: Rows) -> None:
    with recorded("lease", "second driver: exit 2 on a live run, takes over a dead one at once") as case:
        with case.attempt():
            output = miniature.output()
            first = stopped(miniature, output)
            second = miniature.start(output)
            assert second.wait() == 2 and "leased to a live run" in second.error, second.stderr
            first.kill()
            started_s = time.monotonic()
            third = miniature.finish(output)
            assert time.monotonic() - started_s < 20 and "waiting" not in third.stderr
            case.audit(output, small_rows)


@pytest.mark.chaos
def test_a_run_of_another_host(miniature: Runs, small_rows: Rows) -> None:
    """It beats every 10 s while it lives; a newcomer waits 30 s for a beat."""
    with recorded("lease", "second driver, the first on another host: exit 2 while it beats, else waits 30 s") as case:
        with case.attempt():
            output = miniature.output()
            slow = {**ELSEWHERE, "chaos.miniature:PAUSE_S": 60.0}
            first = miniature.start(output, patches=slow)
            assert first.wait_for(lambda: Path(output, "_lease.json").exists()), first.stderr
            second = miniature.start(output)
            assert second.wait() == 2 and "leased to a live run" in second.error, second.stderr
            first.kill()
            started_s = time.monotonic()
            third = miniature.finish(output)
            waited_s = time.monotonic() - started_s
            assert waited_s >= 30 and "waiting up to 30 s" in third.stderr
            case.audit(output, small_rows)


def test_a_driver_whose_lease_was_taken_stops_without_committing(miniature: Runs, small_rows: Rows) -> None:
    with recorded("lease", "driver whose lease was taken stops without committing") as case:
        with case.attempt():
            output = miniature.output()
            first = stopped(miniature, output)
            lease = Path(output, "_lease.json")
            lease.write_text(json.dumps({"token": "another", "host": "elsewhere", "pid": 1}))
            before = sorted(Path(output, "predictions").iterdir())
            first.signal(signal.SIGCONT)
            assert first.wait() == 1 and "another driver has taken over" in first.error, first.stderr
            # the one move it was about to make when it was stopped; nothing after that
            assert len(set(Path(output, "predictions").iterdir()) - set(before)) <= 1
            assert json.loads(lease.read_text())["token"] == "another" and not Path(output, "_SUCCESS").exists()
            lease.unlink()
            miniature.finish(output)
            case.audit(output, small_rows)
