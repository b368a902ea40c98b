"""The four jobs through `ray job submit` on a cluster started with `ray start --head` and token authentication.

The cluster has its own ports, folder and token, and is ended by process id: `ray stop` would end everybody's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT, Finished, job_environment, ray_head
from PIL import Image

RAY = Path(sys.executable).parent / "ray"

pytestmark = pytest.mark.timeout(900)  # each job starts a driver and its workers; 2 cores may be shared


@dataclass(frozen=True)
class Submitted(Finished):
    """What `ray job submit` left, and what the cluster knows of the job."""

    driver_exit_code: int | None
    driver_node: str | None  # where the entry point ran
    job_id: str | None  # of a driver that joined this cluster; None where none did
    works: frozenset[str]  # nodes of this cluster on which its tasks and actors ran


@dataclass(frozen=True)
class Cluster:
    address: str
    folder: Path

    def submit(self, name: str, *args: object, token: str | None = None) -> Submitted:
        """`ray job submit --working-dir . -- python jobs/NAME.py ARGS` from the project's folder."""
        from ray.job_submission import JobSubmissionClient
        from ray.util.state import list_actors, list_tasks

        submission_id = f"{name}-{uuid.uuid4().hex[:8]}"
        done = subprocess.run(
            [RAY, "job", "submit", "--address", self.address, "--submission-id", submission_id, "--working-dir", "."]
            + ["--", "python", f"jobs/{name}.py", *map(str, args)],
            cwd=PROJECT,
            env={**job_environment(), **({"RAY_AUTH_TOKEN": token} if token else {})},
            capture_output=True,
            text=True,
            timeout=600,
        )
        if token:
            return Submitted(done.returncode, done.stdout, done.stderr, None, None, None, frozenset())
        info = JobSubmissionClient(self.address).get_job_info(submission_id)
        works: set[str] = set()
        if info.job_id:
            mine = [("job_id", "=", info.job_id)]
            for listing in (list_tasks, list_actors):
                works |= {str(w.node_id) for w in listing(address=self.address, filters=mine, limit=1000) if w.node_id}
        print(f"{name}: {info.driver_exit_code}", *done.stdout.splitlines()[-25:], sep="\n")  # seen where a test fails
        known = (info.driver_exit_code, info.driver_node_id, info.job_id or None, frozenset(works))
        return Submitted(done.returncode, done.stdout, done.stderr, *known)

    def nodes(self) -> set[str]:
        from ray.util.state import list_nodes

        return {node.node_id for node in list_nodes(address=self.address)}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_head() as head:
        yield Cluster(head.dashboard, head.folder)


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures to train on and three to apply to, 64 x 48: a bright disc (class 1) on a dark ground (class 0)."""
    root = tmp_path_factory.mktemp("discs")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:48, :64]
    for split, count in (("train", 4), ("val", 3)):
        (root / split).mkdir()
        (root / f"{split}annot").mkdir()
        for index in range(count):
            disc = (x - rng.integers(16, 48)) ** 2 + (y - rng.integers(12, 36)) ** 2 < 100
            picture = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8) + 150 * disc[..., None].astype(np.uint8)
            Image.fromarray(picture).save(root / split / f"{index:02}.png")
            Image.fromarray(disc.astype(np.uint8)).save(root / f"{split}annot" / f"{index:02}.png")
    (root / "labels.yaml").write_text("name: discs\nclasses: [ground, disc]\n")
    return root


@pytest.fixture(scope="module")
def trained(cluster: Cluster, collection: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Submitted, Path]:
    output = tmp_path_factory.mktemp("trained") / "train"
    job = cluster.submit(
        "train", "--source", collection, "--output", output, "--label-set", collection / "labels.yaml",
        "--model", "lightweight", "--max-steps", 2, "--batch-size", 2, "--num-workers", 1, "--crop", "48,64",
    )  # fmt: skip
    return job, output


def test_all_four_jobs_run_on_the_cluster(
    cluster: Cluster, collection: Path, trained: tuple[Submitted, Path], tmp_path: Path
) -> None:
    train_job, train = trained
    assert (train_job.code, train_job.driver_exit_code) == (0, 0)
    manifest_job = cluster.submit("manifest", "--source", collection, "--output", tmp_path / "manifest")
    segment_job = cluster.submit(
        "segment", "--source", tmp_path / "manifest", "--split", "val", "--checkpoint", train / "best",
        "--output", tmp_path / "segment",
    )  # fmt: skip
    evaluate_job = cluster.submit(
        "evaluate", "--predictions", tmp_path / "segment", "--labels", tmp_path / "manifest",
        "--output", tmp_path / "evaluate",
    )  # fmt: skip
    for job in (train_job, manifest_job, segment_job, evaluate_job):
        assert (job.code, job.driver_exit_code) == (0, 0)
    nodes = cluster.nodes()
    assert {job.driver_node for job in (train_job, manifest_job, segment_job, evaluate_job)} <= nodes
    for job in (train_job, segment_job):  # a private Ray inside the head would leave no trace here
        assert job.job_id and job.works and job.works <= nodes
    assert (tmp_path / "segment" / "_SUCCESS").is_file()
    assert (tmp_path / "evaluate" / "metrics.json").is_file()


def test_bad_input_is_2_and_the_command_says_1(cluster: Cluster, collection: Path, tmp_path: Path) -> None:
    job = cluster.submit(
        "segment", "--source", collection, "--checkpoint", tmp_path / "none", "--output", tmp_path / "segment"
    )
    assert (job.code, job.driver_exit_code) == (1, 2)
    assert "error:" in job.stdout + job.stderr and "Traceback" not in job.stdout
    assert not (tmp_path / "segment").exists()


def test_a_failed_run_is_1(cluster: Cluster, collection: Path, trained: tuple[Submitted, Path], tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    shutil.copytree(collection / "val", pictures)
    (pictures / "broken.png").write_bytes(b"no picture")
    job = cluster.submit(
        "segment", "--source", pictures, "--checkpoint", trained[1] / "best", "--output", tmp_path / "segment",
        "--max-failure-rate", 0,
    )  # fmt: skip
    assert (job.code, job.driver_exit_code) == (1, 1)


def test_a_relative_output_is_refused(cluster: Cluster, collection: Path) -> None:
    job = cluster.submit("manifest", "--source", collection, "--output", "runs/manifest")
    assert (job.code, job.driver_exit_code) == (1, 2)
    assert not (PROJECT / "runs" / "manifest").exists()


def test_a_wrong_token_is_refused(cluster: Cluster, collection: Path, tmp_path: Path) -> None:
    job = cluster.submit("manifest", "--source", collection, "--output", tmp_path / "manifest", token="0" * 64)
    assert job.code == 1 and "invalid authentication token" in job.stderr.lower()
    assert not (tmp_path / "manifest").exists()


def test_the_upload_is_the_code_alone(cluster: Cluster, trained: tuple[Submitted, Path]) -> None:
    package = next(cluster.folder.glob("session_2*/runtime_resources/working_dir_files/_ray_pkg_*/"))
    names = {path.name for path in package.iterdir()}
    assert {"jobs", "pipeline", "configs"} <= names
    assert not names & {".git", ".venv", "runs", "shared", "tests", ".mypy_cache", ".pytest_cache"}
    assert sum(path.stat().st_size for path in package.rglob("*") if path.is_file()) < 20 * 2**20
