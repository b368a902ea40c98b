"""The commit protocol: killed before every one of its steps, twice in a row, and met by what the dead write late."""

from __future__ import annotations

import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from chaos.audit import Rows, rows_of
from chaos.drivers import Drivers, Runs
from chaos.miniature import miniature_job, rows
from chaos.record import recorded
from pipeline.catalog.manifest import open_manifest
from pipeline.tables.sink import write_rows

ELSEWHERE = {"pipeline.runtime.lease:_host": partial(str, "elsewhere")}  # which this host cannot see


@pytest.fixture
def miniature(drivers: Drivers, small_collection: Path, folder: Path) -> Runs:
    return Runs(drivers, miniature_job, folder, {"source": small_collection})


@pytest.mark.parametrize("every", ["kind of step", pytest.param("step", marks=pytest.mark.chaos)])
def test_the_driver_is_killed_before_every_step(miniature: Runs, small_rows: Rows, every: str) -> None:
    """Quickly: before the last of each kind."""
    with recorded("commit protocol", f"driver killed before each {every} (miniature)") as case:
        steps = miniature.steps()
        assert len(steps) > 40 and len(dict(steps)) > 15, steps
        for step in steps if every == "step" else dict(steps).items():
            with case.attempt(step):
                output = miniature.output()
                miniature.kill_at(output, step)
                miniature.finish(output)
                case.audit(output, small_rows)


@pytest.mark.chaos
def test_the_driver_is_killed_twice_in_a_row(miniature: Runs, small_rows: Rows) -> None:
    """At each step of the first run, and then at a step of the run that takes over, which wanders through all."""
    with recorded("commit protocol", "driver killed twice in a row, at each step and at another (miniature)") as case:
        steps = miniature.steps()
        for number, step in enumerate(steps):
            with case.attempt():
                output = miniature.output()
                miniature.kill_at(output, step)
                halt = miniature.halt(output, steps[(number * 7 + 3) % len(steps)])
                second = miniature.start(output, halt=halt).wait()  # a step that is done already is not met again
                assert second in (0, -signal.SIGKILL), (step, halt.step, second)
                miniature.finish(output)
                case.audit(output, small_rows)


@pytest.mark.chaos
@pytest.mark.parametrize("flag", ["--retry-failed", "--overwrite"])
def test_a_second_run_is_killed_before_every_step(miniature: Runs, small_rows: Rows, flag: str) -> None:
    with recorded("commit protocol", f"`{flag}` on a complete run, killed before each step (miniature)") as case:
        for step in miniature.steps(flag):
            with case.attempt(step):
                output = miniature.output()
                miniature.finish(output)
                miniature.kill_at(output, step, flag)
                miniature.finish(output, flag)
                case.audit(output, small_rows)


@pytest.mark.chaos
def test_an_increment_is_killed_before_every_step(drivers: Drivers, small_collection: Path, folder: Path) -> None:
    """The collection has changed since the first run: pictures are new, other ones, and gone."""
    source = folder / "collection"
    runs = Runs(drivers, miniature_job, folder, {"source": source})

    def first_run() -> str:
        shutil.rmtree(source, ignore_errors=True)
        shutil.copytree(small_collection, source)
        output = runs.output()
        runs.finish(output)
        for name in ("03.png", "11.png", "21.png"):
            (source / name).unlink()
        for name in ("05.png", "12.png", "041.png", "99.png"):
            shutil.copyfile(small_collection / "01.png", source / name)
        return output

    told = "`--incremental` on a changed collection, killed before each step (miniature)"
    with recorded("commit protocol", told) as case:
        undisturbed = first_run()
        halt = runs.halt(undisturbed, None)
        assert runs.start(undisturbed, "--incremental", halt=halt).wait() == 0
        expected = rows_of(undisturbed)
        for step in halt.steps():
            with case.attempt(step):
                output = first_run()
                runs.kill_at(output, step, "--incremental")
                runs.finish(output, "--incremental")
                found = case.audit(output, expected)
                assert found.regions == 21


@pytest.mark.chaos
def test_a_driver_that_was_thought_dead_wakes_at_every_step(miniature: Runs, small_rows: Rows) -> None:
    """It is stopped before a step, another takes its lease and finishes, and then it goes on."""
    with recorded("lease", "driver wakes before each step, its lease taken and the run finished (miniature)") as case:
        for step in miniature.steps():
            with case.attempt(step):
                output = miniature.output()
                halt = miniature.halt(output, step, signal.SIGSTOP)
                asleep = miniature.start(output, halt=halt, patches=ELSEWHERE)
                assert asleep.wait_for(lambda halt=halt, step=step: step in halt.steps()), asleep.stderr
                follower = miniature.start(output, patches={"pipeline.runtime.lease:WAIT_S": 0.3})
                assert follower.wait() == 0, follower.stderr
                case.audit(output, small_rows)
                asleep.signal(signal.SIGCONT)
                assert asleep.wait() in (0, 1), asleep.stderr
                if step[0] == "remove _SUCCESS":  # the one thing it still does to a finished run: a mark to set again
                    miniature.finish(output)
                case.audit(output, small_rows)


def test_late_writes_of_a_dead_attempt_are_never_seen(miniature: Runs, small_rows: Rows) -> None:
    with recorded("commit protocol", "a dead attempt's late write, before and after `_SUCCESS` (miniature)") as case:
        for when in ("before", "after"):
            with case.attempt(when):
                output = miniature.output()
                miniature.kill_at(output, ("replace predictions/ok", 3))
                manifest = open_manifest(f"{output}/manifest")
                assert manifest is not None
                late = rows(manifest, np.arange(manifest.num_rows))
                if when == "before":
                    miniature.kill_at(output, ("replace predictions/ok", 1))
                    write_rows(late, f"{output}/_attempts/0001")
                miniature.finish(output)
                if when == "after":
                    write_rows(late, f"{output}/_attempts/0001")
                case.audit(output, small_rows)
                miniature.finish(output, "--retry-failed")  # whatever lies there, the next run is right too
                case.audit(output, small_rows)
