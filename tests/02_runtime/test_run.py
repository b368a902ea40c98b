"""A run's folder: fingerprints, the lease, and how bad input leaves it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import InputError, PipelineError
from pipeline.runtime import lease, progress
from pipeline.runtime.lease import LEASE, Lease, LeaseLost
from pipeline.runtime.run import open_run
from pipeline.storage import folders

CONFIG = {"batch_size": 3}


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "out")
    return str(request.getfixturevalue("s3").uri("out"))


def test_the_same_run_resumes_and_is_then_complete(output: str) -> None:
    for expected_fresh in (True, False):
        with open_run(output, "segment", {"tile": 5, "size": (1, 2)}, CONFIG) as run:
            assert run.fresh is expected_fresh and run.summary is None
            run.set_manifest({"content": "abc"})
            run.remember(batch=7)
            assert LEASE in folders.list_names(output)
    with open_run(output, "segment", {"tile": 5, "size": [1, 2]}, {"batch_size": 9}) as run:
        assert run.record["batch"] == 7
        run.success({"rows": 3})
    with open_run(output, "segment", {"tile": 5, "size": [1, 2]}, CONFIG) as run:
        assert run.summary is not None and run.summary["rows"] == 3
    assert LEASE not in folders.list_names(output)


def test_another_run_is_refused_by_name_and_replaced_only_on_request(output: str) -> None:
    with open_run(output, "segment", {"tile": 5}, CONFIG) as run:
        run.set_manifest({"content": "abc"})
        storage.write_bytes(run.at("predictions", "x"), b"1")
    before = {f.path: f.size_bytes for f in folders.walk_files(output)}
    with (
        pytest.raises(InputError, match="result differs in tile.*found 5; expected 6"),
        open_run(output, "segment", {"tile": 6}, CONFIG),
    ):
        pass
    with pytest.raises(InputError, match="a run of 'segment'"), open_run(output, "train", {"tile": 5}, CONFIG):
        pass
    with pytest.raises(InputError, match="manifest differs"), open_run(output, "segment", {"tile": 5}, CONFIG) as run:
        run.set_manifest({"content": "other"})
    assert {f.path: f.size_bytes for f in folders.walk_files(output)} == before
    with open_run(output, "segment", {"tile": 6}, CONFIG, overwrite=True) as run:
        assert not storage.exists(run.at("predictions", "x"))


def test_bad_input_leaves_the_folder_as_it_was(output: str) -> None:
    with pytest.raises(InputError, match="no picture"), open_run(output, "segment", {}, CONFIG) as run:
        storage.write_bytes(run.at("manifest", "part"), b"1")
        raise InputError("no picture")
    assert not storage.exists(output)


def test_bad_input_brings_back_what_overwrite_was_to_replace(output: str) -> None:
    with open_run(output, "segment", {"tile": 5}, CONFIG) as run:
        storage.write_bytes(run.at("predictions", "x"), b"1")
    before = {f.path: storage.read_bytes(f.uri) for f in folders.walk_files(output)}
    with pytest.raises(InputError), open_run(output, "segment", {"tile": 6}, CONFIG, overwrite=True) as run:
        storage.write_bytes(run.at("predictions", "y"), b"2")
        raise InputError("no picture")
    assert {f.path: storage.read_bytes(f.uri) for f in folders.walk_files(output)} == before


def test_a_failure_keeps_what_was_done(output: str) -> None:
    with pytest.raises(PipelineError), open_run(output, "segment", {}, CONFIG) as run:
        storage.write_bytes(run.at("predictions", "x"), b"1")
        raise PipelineError("died")
    assert storage.exists(storage.join(output, "predictions", "x"))
    assert LEASE not in folders.list_names(output)


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"thesis\.tex"), open_run(str(tmp_path), "segment", {}, CONFIG):
        pass
    with (
        pytest.raises(InputError, match="output is a file"),
        open_run(str(tmp_path / "thesis.tex"), "segment", {}, CONFIG),
    ):
        pass
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_live_owner_keeps_its_lease(output: str) -> None:
    first = Lease.acquire(output)
    with pytest.raises(InputError, match=f"leased to a live run.*process {os.getpid()}"):
        Lease.acquire(output)
    first.check()
    first.release()
    Lease.acquire(output).release()


def test_a_dead_owner_is_followed_at_once(tmp_path: Path) -> None:
    code = "import sys; from pipeline.runtime.lease import Lease; Lease.acquire(sys.argv[1]); import os; os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, cwd=Path(__file__).parent.parent.parent)
    assert (tmp_path / LEASE).exists()
    started_s = time.monotonic()
    Lease.acquire(str(tmp_path)).release()
    assert time.monotonic() - started_s < 5


def test_of_many_newcomers_to_a_dead_lease_one_gets_it(tmp_path: Path) -> None:
    (tmp_path / LEASE).write_text(json.dumps({**lease._myself(), "token": "dead", "pid": 2**22 + 1}))
    held: list[Lease] = []
    refused: list[InputError] = []

    def come() -> None:
        try:
            held.append(Lease.acquire(str(tmp_path)))
        except InputError as error:
            refused.append(error)

    threads = [threading.Thread(target=come) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1 and len(refused) == 5
    held[0].check()
    held[0].release()
    assert os.listdir(tmp_path) == []


def test_an_owner_elsewhere_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    monkeypatch.setattr(lease, "WAIT_S", 3.0)
    elsewhere = {"token": "t", "host": "elsewhere", "pid": 1, "pid_started": 0.0, "beat": 1}
    (tmp_path / LEASE).write_text(json.dumps(elsewhere))
    Lease.acquire(str(tmp_path)).release()  # no beat: taken over
    (tmp_path / LEASE).write_text(json.dumps(elsewhere))
    beat = threading.Timer(1.0, lambda: (tmp_path / LEASE).write_text(json.dumps({**elsewhere, "beat": 2})))
    beat.start()
    with pytest.raises(InputError, match="live run.*elsewhere"):
        Lease.acquire(str(tmp_path))
    beat.join()
    assert "waiting up to 3 s" in capsys.readouterr().err  # type: ignore[attr-defined]


def test_an_owner_whose_lease_was_taken_does_not_commit(tmp_path: Path) -> None:
    with pytest.raises(LeaseLost), open_run(str(tmp_path), "segment", {}, CONFIG) as run:
        (tmp_path / LEASE).write_text(json.dumps({"token": "another"}))
        run.success({})
    assert not (tmp_path / "_SUCCESS").exists()
    assert json.loads((tmp_path / LEASE).read_text())["token"] == "another"


def test_progress_shows_what_it_is_told_and_survives_who_tells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "_ASK_EVERY_S", 0.05)
    answers = iter([(0, ""), (20, "1 failed"), OSError("gone"), (60, "2 failed")])

    def ask() -> tuple[int, str]:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    shown = progress.Progress("segment", 110, done=10)
    with shown.following(ask):
        time.sleep(0.6)
    shown.close("2 failed", done=110)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and lines[0] == "segment: 10/110 pictures (9 %), starting"
    assert lines[1] == "segment: 30/110 pictures (27 %), starting, 1 failed"  # the first to be done begin the count
    rate = float(lines[2].split(", ")[1].removesuffix("/s"))  # 40 in two pauses: the start does not count
    assert lines[2].startswith("segment: 70/110") and 150 < rate < 450
    assert lines[3].startswith("segment: 110/110 pictures (100 %)")
