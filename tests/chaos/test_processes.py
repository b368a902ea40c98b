"""Kill -9 for everything but the driver: predictors, decoders, writers, a whole node."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import PROJECT, Head

from chaos.conftest import HOOK, MakeJobs, Undisturbed
from chaos.drivers import Driver, Runs
from chaos.record import recorded
from chaos.steps import Halt

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]

PREDICTOR, DECODER = r"^ray::MapWorker\(.*_Predict", r"pipeline\.decode\.serve"


def under(pid: int, pattern: str) -> list[psutil.Process]:
    """The processes under `pid` whose command line matches."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if re.search(pattern, " ".join(process.cmdline())):
                found.append(process)
        except psutil.Error:
            continue
    return found


def committed(output: str) -> int:
    folder = Path(output, "predictions")
    return len(list(folder.glob("ok-*.parquet"))) if folder.exists() else 0


def kill_one(driver: Driver, head: int, pattern: str) -> None:
    """Kill one such process as soon as there is one."""

    def kill() -> bool:
        for process in under(head, pattern):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
            return True
        return False

    assert driver.wait_for(kill), f"none was there: {driver.stderr}"


@pytest.mark.parametrize(
    ("what", "pattern"), [("predictor actor", PREDICTOR), ("decode worker", DECODER)], ids=["predictor", "decoder"]
)
def test_a_worker_process_is_killed(
    make_jobs: MakeJobs, slow_pictures: Path, undisturbed: Undisturbed, cluster: Head, what: str, pattern: str
) -> None:
    with recorded("processes", f"{what} killed, three times in a run (on Ray)") as case:
        jobs = make_jobs(source=slow_pictures)
        output = jobs.output()
        driver = jobs.start(output)
        for files in (0, 2, 4):
            with case.attempt():
                assert driver.wait_for(lambda files=files: committed(output) >= files), driver.stderr
                kill_one(driver, cluster.pid, pattern)
                time.sleep(1)  # so that it is not one picture twice, which is given up by then
        with case.attempt():
            assert driver.wait() == 0, driver.stderr
            case.audit(output, undisturbed.rows)


def test_a_writer_is_killed_while_it_writes(jobs: Runs, undisturbed: Undisturbed, folder: Path) -> None:
    """A file is there under its temporary name; or the failed rows' file is put and the others' is not."""
    with recorded("processes", "write task killed while it writes (on Ray)") as case:
        for step in ("replace _attempts/failed", "replace _attempts/ok"):
            with case.attempt(step):
                output = jobs.output()
                once = folder / step.rsplit("/", 1)[-1]
                halt = Halt(output, folder / "log", (step, 1), once=once)
                driver = jobs.start(output, env={"SEGMENTATION_CHAOS_HALT": halt.to_json()})
                assert driver.wait() == 0, driver.stderr
                assert once.exists(), halt.steps()
                case.audit(output, undisturbed.rows)


@pytest.fixture
def three_nodes() -> Iterator[object]:
    """A head that runs nothing and two nodes that work; for the next of them, `add_node`."""
    from ray.cluster_utils import Cluster

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (HOOK, PROJECT, PROJECT / "tests")))
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 200 * 2**20})
    try:
        yield made
    finally:
        made.shutdown()
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def test_a_node_is_killed_also_while_it_writes(
    three_nodes: object, make_jobs: MakeJobs, slow_pictures: Path, undisturbed: Undisturbed, folder: Path
) -> None:
    """A writer on it stands still with its file half put when all processes of the node die."""
    nodes = three_nodes
    with recorded("processes", "node killed, one while it writes (three nodes, on Ray)") as case:
        working = [nodes.add_node(num_cpus=3, object_store_memory=200 * 2**20) for _ in range(2)]
        runs = make_jobs(source=slow_pictures, env={"RAY_ADDRESS": nodes.address}, shared_filesystem="true")
        for while_writing in (False, True):
            with case.attempt("while it writes" if while_writing else "in mid run"):
                output = runs.output()
                halt = Halt(output, folder / "log", ("replace _attempts/ok", 2), signal.SIGSTOP, folder / "once")
                driver = runs.start(output, env={"SEGMENTATION_CHAOS_HALT": halt.to_json()} if while_writing else {})
                if while_writing:
                    assert driver.wait_for((folder / "once").exists), driver.stderr
                    time.sleep(0.2)
                else:
                    assert driver.wait_for(lambda output=output: committed(output) >= 2), driver.stderr
                stopped = [node for node in working if _has_stopped(node)]
                dying = stopped[0] if stopped else working[0]
                assert stopped or not while_writing, "no writer stands still"
                _end(nodes, dying)
                working.remove(dying)
                working.append(nodes.add_node(num_cpus=3, object_store_memory=200 * 2**20))
                assert driver.wait(400) == 0, driver.stderr
                case.audit(output, undisturbed.rows)


def _has_stopped(node: object) -> bool:
    return any(process.status() == psutil.STATUS_STOPPED for process in _workers(node))


def _workers(node: object) -> list[psutil.Process]:
    return psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True)


def _end(nodes: object, node: object) -> None:
    """All of it at once: workers would live until they notice that their raylet is gone, a stopped one for ever."""
    workers = _workers(node)
    nodes.remove_node(node, allow_graceful=False)
    for process in workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
