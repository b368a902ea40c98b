"""Credentials stand in no log and no table, and without the token nobody is let in."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import S3, Finished, Head

from chaos.conftest import MakeJobs, Undisturbed
from chaos.proxy import FaultProxy, Faults
from chaos.record import recorded
from pipeline import storage
from pipeline.storage import folders

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


def test_credentials_are_in_no_log_and_no_table(
    s3: S3, proxy: FaultProxy, cluster: Head, make_jobs: MakeJobs, pictures: Path, undisturbed: Undisturbed
) -> None:
    """A run that succeeds and one that fails with all that is printed then; every file of theirs and of Ray's."""
    for file in sorted(pictures.iterdir()):
        storage.write_bytes(s3.uri("pictures", file.name), file.read_bytes())
    secrets = {name: f"chaos{uuid.uuid4().hex}" for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")}
    env = {"AWS_ENDPOINT_URL": proxy.endpoint, **secrets}
    runs = make_jobs(source=s3.uri("pictures"), outputs=s3.uri("out"), env=env)
    with recorded("secrets", "credentials searched for in output, logs and tables, Ray's included (on Ray)") as case:
        with case.attempt():
            good = runs.output()
            said = [runs.finish(good)]
            case.audit(good, undisturbed.rows, endpoint=s3.endpoint)
            proxy.fail(Faults(denied=1.0, of=lambda method, path: "ok-" in path))
            said.append(runs.start(runs.output()))
            assert said[-1].wait() == 1, said[-1].stderr
            proxy.fail(Faults())
            texts = {f"driver {n}": (driver.stdout + driver.stderr).encode() for n, driver in enumerate(said)}
            texts |= {file.uri: storage.read_bytes(file.uri) for file in folders.walk_files(s3.uri("out"))}
            texts |= {str(path): path.read_bytes() for path in cluster.folder.rglob("*") if path.is_file()}
            assert len(texts) > 40 and any("worker" in name for name in texts)
            wanted = {**secrets, "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}
            found = [(name, where) for where, text in texts.items() for name, value in wanted.items()
                     if value.encode() in text]  # fmt: skip
            assert not found, found


@pytest.mark.parametrize("how", [{"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}], ids=["wrong", "none"])
def test_a_driver_without_the_token_is_refused(
    run_job: Callable[..., Finished],
    cluster: Head,
    pictures: Path,
    checkpoint: Path,
    folder: Path,
    how: dict[str, str],
) -> None:
    """In a process of its own from the start: Ray reads these variables when it is imported."""
    with recorded("secrets", f"driver with {'a wrong' if 'RAY_AUTH_TOKEN' in how else 'no'} token refused") as case:
        with case.attempt():
            options = {"--source": pictures, "--checkpoint": checkpoint, "--output": folder / "output"}
            arguments = [part for option in options.items() for part in option]
            done = run_job("segment", *arguments, env={"RAY_ADDRESS": cluster.address, **how})
            assert done.code == 1 and done.error.startswith("error: "), done.stderr
            assert not (folder / "output" / "predictions").exists()
