"""The segment job's driver on real Ray: killed before every kind of step, and at random moments."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from chaos.audit import audit
from chaos.conftest import MakeJobs, Undisturbed
from chaos.drivers import Runs
from chaos.record import recorded
from chaos.test_processes import committed
from pipeline.storage import folders

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


def test_the_driver_is_killed_before_each_kind_of_step(jobs: Runs, undisturbed: Undisturbed) -> None:
    """In one output, each driver a step further than the one before it, until it is complete."""
    with recorded("commit protocol", "driver killed before each kind of step, one after another (on Ray)") as case:
        kinds = list(dict.fromkeys(name for name, _ in jobs.steps()))  # in the order in which a run meets them
        assert len(kinds) > 15, kinds
        output, done = jobs.output(), kinds.index("replace _SUCCESS") + 1
        for kind in kinds:
            with case.attempt(kind):
                if kinds.index(kind) > done:  # it is complete: the next driver has nothing left to do
                    jobs.finish(output)
                    case.audit(output, undisturbed.rows)
                    output = jobs.output()
                jobs.kill_at(output, (kind, 1))
                found = audit(output, undisturbed.rows, manifest=f"{undisturbed.output}/manifest")
                assert not (found.duplicated or found.foreign or found.differing), f"{kind}: {found}"
        jobs.finish(output)
        case.audit(output, undisturbed.rows)


@pytest.mark.parametrize("where", ["on Ray", "without Ray"])
def test_the_driver_is_killed_at_random_moments(
    make_jobs: MakeJobs, pictures: Path, slow_pictures: Path, undisturbed: Undisturbed, where: str
) -> None:
    """20 kills; each time the same command again, until one driver comes through. Every other moment is one of those
    in which the run predicts and commits: starting takes longer than these pictures."""
    seconds, on_ray = random.Random(0), where == "on Ray"
    jobs = make_jobs(source=slow_pictures) if on_ray else make_jobs(source=pictures, env={"RAY_ADDRESS": ""})
    with recorded("commit protocol", f"driver killed at a random moment ({where})") as case:
        for _ in range(2):  # the first one finds cold caches
            started_s = time.monotonic()
            jobs.finish(jobs.output())
            wall_s = time.monotonic() - started_s
        while case.tried < 20:
            output, kills, finished = jobs.output(), 0, False
            while not finished and case.tried + kills < 20:
                driver = jobs.start(output)
                if kills % 2:
                    before = committed(output)
                    driver.wait_for(lambda output=output, before=before: committed(output) > before)
                until_s = time.monotonic() + seconds.uniform(0, wall_s / 4 if kills % 2 else wall_s)
                driver.wait_for(lambda until_s=until_s: time.monotonic() >= until_s)
                finished = driver.code is not None
                assert driver.code in (None, 0), driver.stderr
                kills += not finished
                driver.kill()
            jobs.finish(output)
            for _ in range(kills):
                with case.attempt():
                    case.audit(output, undisturbed.rows)


def test_no_committed_row_is_predicted_again(jobs: Runs, undisturbed: Undisturbed) -> None:
    with recorded("commit protocol", "driver killed, what it had committed stays untouched (on Ray)") as case:
        with case.attempt():
            output = jobs.output()
            jobs.kill_at(output, ("replace predictions/ok", 5))
            before = {file.path: file.version for file in folders.walk_files(f"{output}/predictions")}
            assert len(before) == 4
            jobs.finish(output)
            after = {file.path: file.version for file in folders.walk_files(f"{output}/predictions")}
            assert before.items() <= after.items()
            case.audit(output, undisturbed.rows)
