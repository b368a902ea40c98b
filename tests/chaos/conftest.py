"""What the chaos cases share: drivers to kill, the undisturbed runs they are held to, a cluster that outlives them."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROJECT, Head, ray_head
from PIL import Image, PngImagePlugin

from chaos.audit import rows_of
from chaos.drivers import Drivers, Runs, segment_job
from chaos.miniature import miniature_job
from chaos.proxy import FaultProxy
from pipeline.labels import CAMVID
from pipeline.models import build_model
from pipeline.models.checkpoint import save_checkpoint
from pipeline.models.spec import ModelSpec


@pytest.fixture(scope="session")
def outputs() -> Iterator[Path]:
    """A folder for outputs, in memory where possible: each commit waits for its disk, and there are thousands."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir=memory if os.access(memory, os.W_OK) else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def folder(outputs: Path) -> Path:
    """A test's own part of it."""
    return Path(tempfile.mkdtemp(dir=outputs))


@pytest.fixture(scope="session")
def drivers(outputs: Path, s3_server: str) -> Iterator[Drivers]:
    """The S3 server stands before them, so that they inherit the AWS variables."""
    made = Drivers(outputs / "drivers")
    yield made
    made.close()


# ---- the miniature ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def small_collection(outputs: Path) -> Path:
    """22 pictures, which the miniature never opens; some of its rows are failures."""
    folder = outputs / "small"
    folder.mkdir()
    for number in range(22):
        Image.new("RGB", (6, 4), (number, 0, 0)).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture(scope="session")
def small_rows(drivers: Drivers, small_collection: Path, outputs: Path) -> dict[str, tuple[str, bytes | None]]:
    """The rows of a miniature that nothing disturbed."""
    output = str(outputs / "small-undisturbed")
    driver = drivers.start(miniature_job, ["--source", str(small_collection), "--output", output])
    assert driver.wait() == 0, driver.stderr
    return rows_of(output)


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing disturbed, and how long it took."""

    output: str
    rows: dict[str, tuple[str, bytes | None]]
    wall_s: float


MakeJobs = Callable[..., Runs]

# ---- the job ---------------------------------------------------------------------------------------------------------

HOOK = PROJECT / "tests" / "chaos" / "hook"
MODEL = "torchvision:lraspp_mobilenet_v3_large"
BROKEN = "07.png"  # of `pictures`


@pytest.fixture(scope="session")
def checkpoint(outputs: Path) -> Path:
    """A light network with random weights, balanced so that its classes vary over a picture."""
    torch.manual_seed(3)
    model = build_model(MODEL, num_classes=11).eval()
    with torch.no_grad():
        model.network.classifier.low_classifier.bias -= model(torch.randn(4, 3, 64, 96)).mean(dim=(0, 2, 3))
    save_checkpoint(str(outputs / "checkpoint"), model, ModelSpec(MODEL, {}, CAMVID))
    return outputs / "checkpoint"


@pytest.fixture(scope="session")
def pictures(outputs: Path) -> Path:
    """40 small pictures of noise, so that masks differ; one is broken, so that there is a row without a mask."""
    folder = outputs / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for number in range(40):
        height, width = [(32, 48), (33, 47), (48, 32), (40, 40)][number % 4]
        pixels = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(folder / f"{number:02}.png")
    whole = (folder / BROKEN).read_bytes()
    (folder / BROKEN).write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(scope="session")
def slow_pictures(pictures: Path, outputs: Path) -> Path:
    """The same pictures, each 0.2 s in its decoder: a run of seconds, with time to die in."""
    folder = outputs / "slow-pictures"
    shutil.copytree(pictures, folder)
    for file in folder.iterdir():
        if file.name != BROKEN:
            file.write_bytes(marked(file, "chaos: slow"))
    return folder


def marked(picture: Path, mark: str) -> bytes:
    """The same picture with a remark in it that the hook of the decoders knows."""
    remark = PngImagePlugin.PngInfo()
    remark.add_text("Comment", mark)
    data = io.BytesIO()
    Image.open(picture).save(data, "PNG", pnginfo=remark)
    return data.getvalue()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Head]:
    """One cluster for all drivers: they come and go, it stays. Its workers and decoders carry the hook."""
    with ray_head({"PYTHONPATH": os.pathsep.join(map(str, (HOOK, PROJECT, PROJECT / "tests")))}) as head:
        yield head


@pytest.fixture(scope="session")
def make_jobs(drivers: Drivers, cluster: Head, pictures: Path, checkpoint: Path, outputs: Path) -> MakeJobs:
    """`make_jobs(source=..., outputs=..., env=..., batch_size=2)`: segment jobs on the cluster."""

    def make(
        *,
        source: object = pictures,
        outputs: str | None = None,
        env: Mapping[str, str] | None = None,
        **options: object,
    ) -> Runs:
        folder = Path(tempfile.mkdtemp(dir=all_outputs))
        given = {"source": source, "checkpoint": checkpoint, "rows_per_file": 4, "num_predictors": 2}
        given |= {"max_failure_rate": 1, **options}
        env = {"RAY_ADDRESS": cluster.address, **(env or {})}
        return Runs(drivers, segment_job, folder, given, env=env, outputs=outputs)

    all_outputs = outputs
    return make


@pytest.fixture
def jobs(make_jobs: MakeJobs) -> Runs:
    """Segment jobs over `pictures`, with local outputs."""
    return make_jobs()


@pytest.fixture(scope="session")
def undisturbed(make_jobs: MakeJobs) -> Undisturbed:
    """The run that all others are held to."""
    runs = make_jobs()
    output, started_s = runs.output(), time.monotonic()
    runs.finish(output)
    wall_s = time.monotonic() - started_s
    rows = rows_of(output)
    assert len(rows) == 40 and sum(mask is None for _, mask in rows.values()) == 1
    assert len({mask for _, mask in rows.values()}) == 40, "masks are to differ"
    return Undisturbed(output, rows, wall_s)


@pytest.fixture
def proxy(s3_server: str) -> Iterator[FaultProxy]:
    """A proxy before the S3 server; no faults yet."""
    made = FaultProxy(s3_server).start()
    yield made
    made.close()
