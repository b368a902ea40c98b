"""S3 behind a proxy that refuses, resets, cuts and delays; for reading pictures and for writing results."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import S3

from chaos.conftest import MakeJobs, Undisturbed
from chaos.drivers import Drivers, Runs
from chaos.miniature import miniature_job
from chaos.proxy import FaultProxy, Faults, Matches
from chaos.record import recorded
from pipeline import storage
from pipeline.catalog.manifest import region_key

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]

FAULTS = {
    "503 SlowDown 20 %": {"slow_down": 0.2},
    "resets 10 %": {"reset": 0.1},
    "responses cut 5 %": {"cut": 0.05},
    "latency 200 ms": {"latency_s": 0.2},
    "all of these at once": {"slow_down": 0.2, "reset": 0.1, "cut": 0.05, "latency_s": 0.2},
}


def reading(method: str, path: str) -> bool:
    return "/pictures/" in urllib.parse.unquote(path)


def writing(method: str, path: str) -> bool:
    return not reading(method, path)


def everything(method: str, path: str) -> bool:
    return True


COPIES = 5


@pytest.fixture
def make_store(s3: S3, proxy: FaultProxy, make_jobs: MakeJobs, pictures: Path) -> Callable[..., Runs]:
    """`make_store("pictures", rows_per_file=32)`: segment jobs that read and write S3 through the proxy. Five copies of
    the pictures are under `pictures`, one of them under `pictures/0`."""
    for file in sorted(pictures.iterdir()):
        for copy in range(COPIES):
            storage.write_bytes(s3.uri("pictures", str(copy), file.name), file.read_bytes())
    env = {"AWS_ENDPOINT_URL": proxy.endpoint}
    return lambda folder, **options: make_jobs(source=s3.uri(folder), outputs=s3.uri("out"), env=env, **options)


@pytest.mark.parametrize("of", [reading, writing], ids=["reading", "writing"])
@pytest.mark.parametrize("name", FAULTS)
def test_faults(
    make_store: Callable[..., Runs],
    proxy: FaultProxy,
    s3: S3,
    pictures: Path,
    undisturbed: Undisturbed,
    name: str,
    of: Matches,
) -> None:
    """A picture is one request, a commit many: so more pictures where it is they that are struck."""
    if of is reading:
        told, store = "reading pictures", make_store("pictures", rows_per_file=64)
        expected = {
            region_key(f"{copy}/{file.name}"): undisturbed.rows[region_key(file.name)]
            for copy in range(COPIES)
            for file in pictures.iterdir()
        }
    else:
        # fewer files where everything fails at once: with files of 4 rows it took 4 min, most of them pauses
        store = make_store("pictures/0", rows_per_file=10 if len(FAULTS[name]) > 1 else 4)
        told, expected = "all but pictures", undisturbed.rows
    with recorded("object store", f"{name}, {told} (on Ray, moto)") as case:
        with case.attempt(times=lambda: proxy.struck):
            proxy.fail(Faults(**FAULTS[name], of=of))
            output = store.output()
            driver = store.start(output)
            assert driver.wait(480) == 0, driver.stderr
            assert proxy.struck > 0 and "Traceback" not in driver.stderr
            case.audit(output, expected, endpoint=s3.endpoint)


@pytest.mark.parametrize("of", [reading, writing], ids=["reading", "writing"])
def test_an_outage_of_20_s(
    make_store: Callable[..., Runs], proxy: FaultProxy, s3: S3, undisturbed: Undisturbed, of: Matches
) -> None:
    """It begins with the first request for a picture, or when a third of the results are there."""
    store = make_store("pictures/0")
    told = "while pictures are read" if of is reading else "while results are written"
    with recorded("object store", f"outage of 20 s {told} (on Ray, moto)") as case:
        with case.attempt():
            output = store.output()
            proxy.fail(Faults(latency_s=0.05, of=of))
            driver = store.start(output)
            begins = _seen(proxy, s3, output, of)
            assert driver.wait_for(begins), driver.stderr
            proxy.outage(20)
            assert driver.wait(400) == 0, driver.stderr
            assert proxy.given["outage"] > 0
            case.audit(output, undisturbed.rows, endpoint=s3.endpoint)


def _seen(proxy: FaultProxy, s3: S3, output: str, of: Matches) -> Callable[[], bool]:
    import s3fs

    fs = s3fs.S3FileSystem(endpoint_url=s3.endpoint, use_listings_cache=False, skip_instance_cache=True)

    def begun() -> bool:
        if of is reading:
            return proxy.given["matched"] > 0
        return len(fs.glob(f"{output}/predictions/*.parquet")) >= 3

    return begun


def test_the_driver_is_killed_before_every_request_that_writes(
    s3: S3, drivers: Drivers, small_collection: Path, small_rows: dict, folder: Path
) -> None:
    with recorded("commit protocol", "driver killed before each request that writes to S3 (miniature, moto)") as case:
        runs = Runs(drivers, miniature_job, folder, {"source": small_collection}, outputs=s3.uri("out"))
        steps = runs.steps()
        assert len(steps) > 20, steps
        for step in steps:
            with case.attempt(step):
                output = runs.output()
                runs.kill_at(output, step)
                runs.finish(output)
                case.audit(output, small_rows, endpoint=s3.endpoint)


@pytest.fixture
def through_proxy(s3: S3, proxy: FaultProxy, drivers: Drivers, small_collection: Path, folder: Path) -> Runs:
    """Miniatures that write to S3 through the proxy."""
    env = {"AWS_ENDPOINT_URL": proxy.endpoint}
    return Runs(drivers, miniature_job, folder, {"source": small_collection}, env=env, outputs=s3.uri("out"))


def test_the_commit_protocol_through_faults(through_proxy: Runs, s3: S3, proxy: FaultProxy, small_rows: dict) -> None:
    """Whatever response is lost, also of a request that the store has carried out."""
    runs = through_proxy
    with recorded("object store", "503 20 %, resets 10 %, cuts 5 % at every request (miniature, moto)") as case:
        with case.attempt(times=lambda: proxy.struck):
            proxy.fail(Faults(slow_down=0.2, reset=0.1, cut=0.05))
            outputs = [runs.output() for _ in range(10)]
            started = [runs.start(output) for output in outputs]  # at once: most of their time they wait to ask again
            for output, driver in zip(outputs, started, strict=True):
                assert driver.wait(480) == 0, driver.stderr
                case.audit(output, small_rows, endpoint=s3.endpoint)


def test_a_lost_answer_to_the_lease_is_not_another_driver(
    through_proxy: Runs, s3: S3, proxy: FaultProxy, small_rows: dict
) -> None:
    """The store takes the lease, its answer is lost, the client asks again and is told that there is one."""
    runs = through_proxy
    with recorded("lease", "the answer to taking the lease is lost (miniature, moto)") as case:
        for fault in ("reset", "cut"):
            with case.attempt(fault):
                output = runs.output()
                proxy.fail(Faults(**{fault: 1.0}, of=_first_lease()))
                runs.finish(output)
                assert set(proxy.given) - {"requests", "matched"}, "no answer was lost"
                case.audit(output, small_rows, endpoint=s3.endpoint)


def _first_lease() -> Matches:
    """The first two requests that put the lease."""
    seen: list[str] = []

    def matches(method: str, path: str) -> bool:
        if method != "PUT" or not path.endswith("_lease.json") or len(seen) > 1:
            return False
        seen.append(path)
        return True

    return matches
