"""Drivers to be killed: each a process of its own, forked from one that has imported everything (`nursery`).

So a driver costs a second instead of ten, and what runs in it is the job itself (`pipeline.runtime.cli.main`), or the
miniature of it. Its output goes to files, its exit code is negative where a signal ended it.
"""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from chaos.nursery import Nursery, run_driver
from chaos.steps import Halt, Step

Job = Callable[[list[str]], None]

# a fork costs what its parent weighs, and the miniature needs neither torch nor Ray
_LIGHT = "pandas s3fs pipeline.runtime.cli pipeline.tables.statistics chaos.miniature"
_HEAVY = f"{_LIGHT} ray.data torchvision.models.segmentation pipeline.segment.job"


class Driver:
    """A started driver."""

    def __init__(self, pid: int, nursery: Nursery, folder: Path) -> None:
        self.pid, self._nursery, self._folder = pid, nursery, folder

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs, -9 where it was killed."""
        return self._nursery.code(self.pid)

    @property
    def stdout(self) -> str:
        return (self._folder / "stdout").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return (self._folder / "stderr").read_text(errors="replace")

    @property
    def error(self) -> str:
        """The last line on stderr."""
        return (self.stderr.strip().splitlines() or [""])[-1]

    def wait(self, seconds: float = 240) -> int:
        """Its exit code. Fails the test where it takes longer."""
        self.wait_for(lambda: False, seconds)
        code = self.code
        assert code is not None
        return code

    def wait_for(self, done: Callable[[], bool], seconds: float = 120) -> bool:
        """Waits for `done()`; False where the driver ended before. Fails the test when `seconds` are over."""
        end_s = time.monotonic() + seconds
        while not done():
            if self.code is not None:
                return False
            if time.monotonic() > end_s:
                self.kill()
                pytest.fail(f"waited {seconds:.0f} s in vain\n{self.stdout[-1000:]}\n{self.stderr[-2000:]}")
            time.sleep(0.02)
        return True

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """As `kill -9`."""
        while self.code is None:
            self.signal(signal.SIGKILL)
            time.sleep(0.01)


class Drivers:
    """Starts drivers; `close` ends those that still run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._light, self._heavy = Nursery(_LIGHT), Nursery(_HEAVY)

    def start(
        self,
        job: Job,
        argv: list[str],
        *,
        env: Mapping[str, str] | None = None,
        halt: Halt | None = None,
        patches: Mapping[str, Any] | None = None,
    ) -> Driver:
        """Run a job in a process of its own; `patches` are values by `module:name` in that process."""
        folder = self._folder / uuid.uuid4().hex
        folder.mkdir(parents=True)
        nursery = self._heavy if job is segment_job else self._light
        return Driver(
            nursery.fork(run_driver, job, argv, dict(env or {}), folder, halt, patches or {}), nursery, folder
        )

    def close(self) -> None:
        self._light.close()
        self._heavy.close()


class Runs:
    """Runs of one job with the same options, each in an output folder of its own."""

    def __init__(
        self,
        drivers: Drivers,
        job: Job,
        folder: Path,
        options: Mapping[str, object],
        *,
        env: Mapping[str, str] | None = None,
        outputs: str | None = None,
    ) -> None:
        self._drivers, self._job, self._options, self._env = drivers, job, dict(options), dict(env or {})
        self._logs, self._outputs = folder / "logs", outputs or str(folder)
        self._logs.mkdir(exist_ok=True)
        self._count = 0

    def output(self) -> str:
        """The next run's."""
        self._count += 1
        return f"{self._outputs}/{self._count:03}"

    def halt(self, output: str, step: Step | None, number: int = signal.SIGKILL) -> Halt:
        return Halt(output, self._logs / uuid.uuid4().hex, step, number)

    def start(
        self, output: str, *flags: str, halt: Halt | None = None, env: Mapping[str, str] | None = None, **how: Any
    ) -> Driver:
        argv = [f"--{name.replace('_', '-')}={value}" for name, value in {**self._options, "output": output}.items()]
        return self._drivers.start(self._job, [*argv, *flags], env={**self._env, **(env or {})}, halt=halt, **how)

    def finish(self, output: str, *flags: str) -> Driver:
        """The same command again, to its end."""
        driver = self.start(output, *flags)
        assert driver.wait() == 0, driver.stderr
        return driver

    def steps(self, *flags: str) -> list[Step]:
        """Every step of an undisturbed run (with flags: of a second run of a complete one)."""
        output = self.output()
        if flags:
            self.finish(output)
        halt = self.halt(output, None)
        driver = self.start(output, *flags, halt=halt)
        assert driver.wait() == 0, driver.stderr
        return halt.steps()

    def kill_at(self, output: str, step: Step, *flags: str) -> None:
        """Run until just before `step` and kill it there."""
        driver = self.start(output, *flags, halt=self.halt(output, step))
        assert driver.wait() == -signal.SIGKILL, f"{step} was not reached: exit code {driver.code}: {driver.error}"


def segment_job(argv: list[str]) -> None:
    from pipeline.runtime.cli import main
    from pipeline.segment.config import SegmentConfig
    from pipeline.segment.job import segment

    main(segment, SegmentConfig, argv)
