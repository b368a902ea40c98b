"""An output that cannot be written any more: exit 1 with a plain error, nothing lost, the same command resumes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import S3

from chaos.audit import Rows
from chaos.conftest import MakeJobs, Undisturbed
from chaos.drivers import Drivers, Runs
from chaos.miniature import miniature_job
from chaos.proxy import FaultProxy, Faults
from chaos.record import recorded
from chaos.test_processes import committed

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


@pytest.fixture
def disk(folder: Path) -> Iterator[Path]:
    """A file system of 2 MiB of this test's own."""
    mounted = folder / "disk"
    mounted.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", mounted], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", "-l", mounted], check=True)


def begun(output: str) -> bool:
    return Path(output, "labels.json").exists()


def fill(disk: Path) -> None:
    with open(disk / "filler", "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass


def test_the_disk_is_full_in_mid_run(
    disk: Path, make_jobs: MakeJobs, slow_pictures: Path, undisturbed: Undisturbed
) -> None:
    with recorded("disk", "disk full in mid run: exit 1, resumes (on Ray)") as case:
        runs = make_jobs(source=slow_pictures, outputs=str(disk))
        for files in (0, 3):
            with case.attempt(f"after {files} files"):
                output = runs.output()
                driver = runs.start(output)
                assert driver.wait_for(lambda output=output, files=files: begun(output) and committed(output) >= files)
                fill(disk)
                code = driver.wait()
                (disk / "filler").unlink()
                assert code == 1, driver.stderr
                assert driver.error.startswith("error: ") and "No space left on device" in driver.error, driver.stderr
                assert "Traceback" not in driver.stderr
                runs.finish(output)
                case.audit(output, undisturbed.rows)


def test_the_disk_is_full_before_the_run_begins(
    disk: Path, drivers: Drivers, small_collection: Path, folder: Path, small_rows: Rows
) -> None:
    with recorded("disk", "disk full before the run begins (miniature)") as case:
        with case.attempt():
            runs = Runs(drivers, miniature_job, folder, {"source": small_collection}, outputs=str(disk))
            output = runs.output()
            fill(disk)
            driver = runs.start(output)
            assert driver.wait() == 1 and "No space left on device" in driver.error, driver.stderr
            (disk / "filler").unlink()
            runs.finish(output)
            case.audit(output, small_rows)


def test_the_output_becomes_read_only(
    disk: Path, make_jobs: MakeJobs, slow_pictures: Path, undisturbed: Undisturbed
) -> None:
    """The file system turns read-only, as one does that has found an error; root is not stopped by permissions."""
    with recorded("disk", "output turns read-only in mid run: exit 1, resumes (on Ray)") as case:
        with case.attempt():
            runs = make_jobs(source=slow_pictures, outputs=str(disk))
            output = runs.output()
            driver = runs.start(output)
            assert driver.wait_for(lambda: committed(output) >= 2), driver.stderr
            driver.wait_for(lambda: _remounted(disk, "ro"), seconds=20)
            assert driver.wait() == 1, driver.stderr
            assert "Read-only file system" in driver.error and "Traceback" not in driver.stderr, driver.stderr
            assert _remounted(disk, "rw")
            runs.finish(output)
            case.audit(output, undisturbed.rows)


def _remounted(disk: Path, how: str) -> bool:
    """Whether it could be; not while a file is open for writing."""
    return not subprocess.run(["mount", "-o", f"remount,{how}", disk], capture_output=True).returncode


def test_permission_is_lost_on_the_bucket(
    s3: S3, proxy: FaultProxy, drivers: Drivers, small_collection: Path, small_rows: Rows, folder: Path
) -> None:
    env = {"AWS_ENDPOINT_URL": proxy.endpoint}
    with recorded("disk", "permission to write the bucket lost in mid run: exit 1, resumes (miniature, moto)") as case:
        with case.attempt():
            runs = Runs(drivers, miniature_job, folder, {"source": small_collection}, env=env, outputs=s3.uri("out"))
            output = runs.output()
            proxy.fail(Faults(of=lambda method, path: method == "PUT" and "/predictions/" in path))
            driver = runs.start(output, patches={"chaos.miniature:PAUSE_S": 0.5})
            assert driver.wait_for(lambda: proxy.given["matched"] >= 2), driver.stderr
            proxy.fail(Faults(denied=1.0, of=lambda method, path: method in ("PUT", "POST", "DELETE")))
            assert driver.wait() == 1, driver.stderr
            assert f"Access Denied: {output}" in driver.error and "Traceback" not in driver.stderr, driver.stderr
            proxy.fail(Faults())
            runs.finish(output)
            case.audit(output, small_rows, endpoint=s3.endpoint)
