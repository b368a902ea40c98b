"""What the tests share: real data, a local Ray, an S3 server, the jobs as commands.

Everything started here is ended here, by its own process id: other clusters on the machine are left alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent

pytest.register_assert_rewrite("network_contract")  # it holds tests, and is no test file

# Before anything imports Ray: a token of our own, so that no test depends on (or writes) ~/.ray/auth_token.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's announced default; silences its warning
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves workers wherever anything else is running
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads beside another busy process cost 47 times
os.environ.pop("RAY_ADDRESS", None)  # a test never joins somebody's cluster


# ---- real data -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real pictures (README, "Tests"); skips where there is none."""
    folder = os.environ.get("SEGMENTATION_DATA")
    if not folder:
        pytest.skip("needs real data: set SEGMENTATION_DATA to the folder that holds camvid/, hostile/, weights/")
    if not Path(folder).is_dir():
        pytest.skip(f"SEGMENTATION_DATA names no folder: {folder}")
    return Path(folder)


@pytest.fixture
def camvid_subset(data_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """`camvid_subset(train=8, val=4)` -> a folder in the CamVid layout with that many frames, evenly spaced."""

    def make(train: int = 8, val: int = 4, root: Path | None = None) -> Path:
        root = root or tmp_path / "camvid"
        for split, count in (("train", train), ("val", val)):
            frames = sorted((data_dir / "camvid" / split).iterdir())
            for index in range(count):
                frame = frames[index * len(frames) // count]
                label = data_dir / "camvid" / f"{split}annot" / f"{frame.stem}.png"
                for source, folder in ((frame, split), (label, f"{split}annot")):
                    (root / folder).mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, root / folder / source.name)
        return root

    return make


@pytest.fixture(scope="session")
def backbone_weights(data_dir: Path) -> Path:
    """The ImageNet MobileNetV2 weights."""
    path = data_dir / "weights" / "mobilenet_v2_imagenet.pth"
    if not path.is_file():
        pytest.skip(f"no backbone weights: {path}")
    return path


# ---- networks --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of `lightweight` with random weights, 11 classes."""
    import torch

    from pipeline.labels import CAMVID
    from pipeline.models import build_model
    from pipeline.models.checkpoint import save_checkpoint
    from pipeline.models.spec import ModelSpec

    torch.manual_seed(3)
    uri = str(tmp_path_factory.mktemp("checkpoint"))
    save_checkpoint(uri, build_model("lightweight", num_classes=11), ModelSpec("lightweight", {}, CAMVID))
    return uri


@pytest.fixture(scope="session")
def segformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SegFormer of 5 classes as Hugging Face saves it."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    folder = tmp_path_factory.mktemp("hf") / "segformer"
    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=5,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=16,
    )
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 48, "width": 64}, image_mean=[0.5, 0.4, 0.3]).save_pretrained(folder)
    return folder


# ---- Ray -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def ray_session(s3_server: str) -> Iterator[None]:
    """One local Ray of 4 logical CPUs for all tests of a session (a bare `ray.init()` could join another cluster).

    The S3 server stands before it, so that its workers inherit the AWS variables.
    """
    import ray

    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=0,
            object_store_memory=300 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="warning",
            runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
        )
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Head:
    """The head of a cluster of this session's own: `address` is what RAY_ADDRESS says, `folder` its temporary one."""

    address: str
    dashboard: str
    folder: Path
    pid: int


@contextlib.contextmanager
def ray_head(env: Mapping[str, str] | None = None) -> Iterator[Head]:
    """`ray start --head` of 4 CPUs on ports of its own, with the session's token; ended by process id."""
    ray = Path(sys.executable).parent / "ray"
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # not pytest's: Unix socket paths end at 107 characters
    port, dashboard_port = free_port(), free_port()
    head = subprocess.Popen(
        [ray, "start", "--head", "--block", "--temp-dir", folder, "--disable-usage-stats"]
        + ["--port", str(port), "--ray-client-server-port", str(free_port())]
        + ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard_port)]
        + ["--dashboard-agent-listen-port", "0"]
        + ["--num-cpus", "4", "--num-gpus", "0", "--object-store-memory", str(300 * 2**20)],
        cwd=folder,
        # the entry point's `python` is the first on the head's PATH
        env={**job_environment(), "PATH": f"{ray.parent}:{os.environ['PATH']}", **(env or {})},
        stdout=(folder / "start.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    dashboard = f"http://127.0.0.1:{dashboard_port}"

    def addresses() -> list[str]:
        return re.findall(r"--address='([\d.:]+)'", (folder / "start.log").read_text())

    try:
        wait_until(lambda: bool(addresses()), seconds=90, what="the cluster's head", process=head)
        wait_until(lambda: answers(dashboard), seconds=90, what="the cluster's dashboard", process=head)
        yield Head(addresses()[0], dashboard, folder, head.pid)
    finally:
        end(head, group=True, seconds=5)  # after jobs it waits for their workers, past half a minute
        shutil.rmtree(folder, ignore_errors=True)


# ---- S3 --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class S3:
    """A server on loopback; `bucket` is empty and this test's own."""

    endpoint: str
    bucket: str

    def uri(self, *parts: str) -> str:
        return "/".join([f"s3://{self.bucket}", *parts])


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """moto's server in a process of its own, with the standard AWS variables set to it; its endpoint."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    endpoint = f"http://127.0.0.1:{port}"
    variables = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_PROFILE", raising=False)
        patch.delenv("AWS_SESSION_TOKEN", raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        try:
            wait_until(lambda: answers(endpoint), seconds=30, what="moto's server", process=server)
            yield endpoint
        finally:
            end(server)


@pytest.fixture
def s3(s3_server: str) -> S3:
    """An S3 bucket of this test's own."""
    import s3fs

    bucket = f"test-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem(endpoint_url=s3_server, skip_instance_cache=True).mkdir(bucket)
    return S3(s3_server, bucket)


# ---- the jobs as commands --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit code and what it printed."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The last line on stderr, where bad input is met."""
        lines = self.stderr.strip().splitlines()
        return lines[-1] if lines else ""


def job_environment() -> dict[str, str]:
    """The environment a job runs in: quiet, and no other Ray than its own unless RAY_ADDRESS says so."""
    return {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "RAY_DEDUP_LOGS": "1",
        "RAY_TQDM": "0",
        "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(500 * 2**20),  # Ray would take 30 % of the memory
    }


@pytest.fixture
def run_job() -> Callable[..., Finished]:
    """`run_job("segment", "--source", uri, ...)` runs `python jobs/segment.py --source uri ...` from another folder."""

    def run(
        name: str, *args: object, timeout_s: float = 240, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> Finished:
        job = start_job(name, *args, env=env, cwd=cwd)
        try:
            stdout, stderr = job.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            end(job, group=True)
            stdout, stderr = job.communicate()
            pytest.fail(f"jobs/{name}.py did not end in {timeout_s:.0f} s\n{stdout[-2000:]}\n{stderr[-4000:]}")
        return Finished(job.returncode, stdout, stderr)

    return run


def start_job(
    name: str, *args: object, env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.Popen[str]:
    """The same without waiting, in a process group of its own; whoever calls this ends it (`end(job, group=True)`)."""
    return subprocess.Popen(
        [sys.executable, str(PROJECT / "jobs" / f"{name}.py"), *map(str, args)],
        cwd=cwd or "/",
        env={**job_environment(), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


# ---- processes -------------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def wait_until(
    done: Callable[[], bool],
    *,
    seconds: float,
    what: str,
    process: subprocess.Popen | None = None,
    every_s: float = 0.1,
) -> None:
    """Waits for `done()`. Fails the test when `seconds` are over or `process` has ended before."""
    end_at = time.monotonic() + seconds
    while not done():
        if process is not None and process.poll() is not None:
            pytest.fail(f"{what} ended with code {process.returncode}")
        if time.monotonic() > end_at:
            pytest.fail(f"{what} was not there after {seconds:.0f} s")
        time.sleep(every_s)


def end(process: subprocess.Popen, *, group: bool = False, seconds: float = 10) -> None:
    """Ends a process that a test started: TERM, after `seconds` KILL; with `group`, then KILL for what it left."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if group:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
