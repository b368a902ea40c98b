"""Incremental runs: what is carried, and that a driver which dies at any step loses and doubles nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import read_predictions, storage
from pipeline.catalog import manifest_writer, schema
from pipeline.catalog.job import manifest_of
from pipeline.catalog.manifest import Manifest, key_words, open_manifest, region_key
from pipeline.catalog.subset import Subset
from pipeline.errors import InputError
from pipeline.labels import CAMVID
from pipeline.runtime.run import Run, open_run
from pipeline.storage import folders
from pipeline.tables import increment
from pipeline.tables.increment import KeyIndex, recover, take_increment
from pipeline.tables.prediction_table import committed_ids, metadata
from pipeline.tables.sink import Sink, write_rows


def columns(manifest: Manifest, fingerprint: str) -> pa.Schema:
    return schema.predictions_schema(manifest.travelling, metadata(CAMVID, "r", fingerprint))


def no_ray() -> None:
    raise AssertionError("a small run is carried without Ray")


def do(run: Run, manifest: Manifest, night: int, failing: str = "-") -> None:
    """Finish a run as the segment job does: a row for what is pending, whose mask names picture and night."""
    run.reopen()
    sink = Sink(run.output, run.lease.check)
    ids = Subset.from_json(run.record["portion"]).ids(manifest)
    pending = np.setdiff1d(ids, np.flatnonzero(sink.committed(manifest.num_rows)))
    rows = [row for row in manifest.table().to_pylist() if row["region_id"] in set(pending.tolist())]
    for row in rows:
        failed = failing in row["path"]
        row |= {"status": "decode_error" if failed else "ok", "error": "broken" if failed else None}
        row |= {"height": 1, "width": 3, "mask_dtype": "uint8", "mask_format": "raw"}
        row["mask"] = (
            None if failed else bytes([int(row["region_key"][:2], 16), int(row["region_key"][2:4], 16), night])
        )
    wanted = columns(manifest, run.record["manifest_fingerprint"])
    for start in range(0, len(rows), 4):  # files of four rows
        table = pa.Table.from_pylist(rows[start : start + 4], schema=wanted)
        sink.publish(write_rows(table, sink.attempt_uri))
    sink.publish_failed()
    sink.audit(ids)
    run.success({"done": len(rows)})
    sink.finish()


def first_night(source: str, output: str, subset: Subset | None = None, failing: str = "-") -> None:
    with open_run(output, "segment", {"x": 1}, {}) as run:
        do(run, manifest_of(run, source, subset=subset or Subset()), night=1, failing=failing)


def next_night(source: str, output: str, subset: Subset | None = None, night: int = 2) -> None:
    with open_run(output, "segment", {"x": 1}, {}) as run:
        recover(run)
        manifest = take_increment(run, source, subset or Subset(), columns, no_ray)
        if run.summary is None:
            do(run, manifest, night)


def found(output: str) -> dict[str, dict[str, Any]]:
    """The public rows by path; every region once, with the ids and columns of the manifest that the run is at."""
    rows = list(read_predictions(output))
    by_path = {row["path"]: row for row in rows}
    assert len(by_path) == len(rows), "a region stands twice"
    manifest = open_manifest(storage.join(output, "manifest"))
    assert manifest is not None
    shared = [name for name in manifest.columns if name in rows[0]]
    for row in manifest.table().to_pylist():
        if row["path"] in by_path:
            assert {name: by_path[row["path"]][name] for name in shared} == {name: row[name] for name in shared}
    return by_path


def nights(output: str) -> dict[str, int | None]:
    return {path: None if row["mask"] is None else int(row["mask"][0, 2]) for path, row in found(output).items()}


@pytest.fixture
def source(tmp_path: Path) -> str:
    folder = tmp_path / "c"
    for day in ("1", "2", "3"):
        (folder / day).mkdir(parents=True)
        for i in range(5):
            (folder / day / f"{i}.jpg").write_bytes(f"{day}{i}".encode())
    return str(folder)


def change(source: str) -> dict[str, int]:
    """Change a collection; the night whose row each picture then should have."""
    folder = Path(source)
    (folder / "1" / "0.jpg").unlink()
    (folder / "2" / "1.jpg").write_bytes(b"other")
    (folder / "2" / "9.jpg").write_bytes(b"new")
    (folder / "0").mkdir()
    (folder / "0" / "new.jpg").write_bytes(b"new")
    expected = {f"{day}/{i}.jpg": 1 for day in "123" for i in range(5)} | dict.fromkeys(["2/1.jpg", "2/9.jpg"], 2)
    del expected["1/0.jpg"]
    return expected | {"0/new.jpg": 2}


def test_unchanged_rows_are_carried_and_the_others_done(source: str, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    first_night(source, output)
    before = found(output)
    next_night(source, output)  # nothing has changed
    assert storage.read_json(f"{output}/_SUCCESS")["done"] == 15 and found(output).keys() == before.keys()
    expected = change(source)
    next_night(source, output)
    after = found(output)
    assert nights(output) == expected
    for path, row in after.items():
        if expected[path] == 1:
            assert row["mask"].tobytes() == before[path]["mask"].tobytes()
    assert sorted(row["region_id"] for row in after.values()) == list(range(16))
    assert sorted(os.listdir(output)) == ["_SUCCESS", "_config.yaml", "_run.json", "manifest", "predictions"]
    with open_run(output, "segment", {"x": 1}, {}) as run:  # and without --incremental it is the run it now is
        assert manifest_of(run, source).num_rows == 16 and run.summary is not None


def test_a_collection_that_grows_at_its_end_touches_no_file(source: str, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    first_night(source, output)
    kept = {f.path: f.version for f in folders.walk_files(f"{output}/predictions")}
    (Path(source) / "4").mkdir()
    (Path(source) / "4" / "0.jpg").write_bytes(b"new")
    next_night(source, output)
    now = {f.path: f.version for f in folders.walk_files(f"{output}/predictions")}
    assert kept.items() <= now.items() and len(now) == len(kept) + 1
    assert nights(output)["4/0.jpg"] == 2


def test_failed_rows_are_carried_until_their_picture_changes(source: str, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    first_night(source, output, failing="/1.jpg")
    change(source)
    next_night(source, output)
    statuses = {path: row["status"] for path, row in found(output).items()}
    assert statuses.pop("1/1.jpg") == statuses.pop("3/1.jpg") == "decode_error"
    assert set(statuses.values()) == {"ok"} and "2/1.jpg" in statuses


def test_a_sample_stays_a_sample(source: str, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    half = Subset(sample=0.5)
    first_night(source, output, half)
    expected = change(source)
    drawn = {path for path in expected if int(region_key(path)[:8], 16) < 2**31}
    next_night(source, output, half)
    assert nights(output) == {path: expected[path] for path in drawn}
    with pytest.raises(InputError, match="--sample 0.5; expected --limit 3"):
        next_night(source, output, Subset(limit=3))
    next_night(source, output, night=3)  # the folder grows to everything, with nothing new in the collection
    assert nights(output) == {path: night if path in drawn else 3 for path, night in expected.items()}


def test_new_travelling_columns_reach_carried_rows(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
    table, output = tmp_path / "list.csv", str(tmp_path / "out")
    table.write_text("path,city\na.jpg,Ulm\nb.jpg,Rom\n")
    first_night(str(table), output)
    table.write_text("path,city,sensor\na.jpg,Bonn,7\nb.jpg,Rom,8\nc.jpg,Rom,9\n")
    next_night(str(table), output)
    assert nights(output) == {"a.jpg": 1, "b.jpg": 1, "c.jpg": 2}
    rows = found(output)
    assert [(rows[p]["city"], rows[p]["sensor"]) for p in sorted(rows)] == [("Bonn", 7), ("Rom", 8), ("Rom", 9)]


def test_bad_input_leaves_the_run_as_it_was(source: str, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    first_night(source, output)
    before = {f.path: f.version for f in folders.walk_files(output)}
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="source differs"):
        next_night(str(tmp_path / "empty"), output)
    shutil.move(source, tmp_path / "moved")
    Path(source).mkdir()
    with pytest.raises(InputError, match="no picture found"):
        next_night(source, output)
    assert {f.path: f.version for f in folders.walk_files(output)} == before


class Killed(BaseException):
    """As SIGKILL: nothing of ours catches it."""


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, str], None]]:
    """`killer(step, where)`: die at that change of the store, before it or half-way through a move."""
    left, half = [10**9], [""]

    def watched(name: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if "_lease.json" not in str(args[0]):
                left[0] -= 1
                if left[0] < 0:
                    if half[0] == "half-way" and name == "move":  # as on an object store: copied, not yet deleted
                        os.makedirs(os.path.dirname(args[1]), exist_ok=True)
                        shutil.copyfile(args[0], args[1])
                    raise Killed
            return change(*args, **options)

        return call

    changes = [(storage, "write_bytes"), (storage, "move"), (storage, "remove"), (folders, "remove_tree")]
    for module, name in changes:
        monkeypatch.setattr(module, name, watched(name, getattr(module, name)))

    def arm(step: int, where: str) -> None:
        left[0], half[0] = step, where

    yield arm


@pytest.mark.parametrize(
    "cases",
    [
        [("before", "plain"), ("half-way", "incremental"), ("half-way", "plain"), ("before", "incremental")],
        *(
            pytest.param([(where, then)], marks=pytest.mark.slow)
            for where in ("before", "half-way")
            for then in ("plain", "incremental")
        ),
    ],
    ids=lambda cases: "-".join(cases[0]) if len(cases) == 1 else "in turn",
)
def test_killed_at_every_step_each_region_is_there_once(
    cases: list[tuple[str, str]],
    source: str,
    tmp_path: Path,
    killer: Callable[[int, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`cases`: where in a step the driver dies, and which command comes after it; taken in turn over the steps."""
    monkeypatch.setattr(increment, "_AT_ONCE", 1)
    first, output = str(tmp_path / "first"), str(tmp_path / "out")
    first_night(source, first, failing="3/1")
    old = nights(first)
    expected = change(source) | {"3/1.jpg": None}
    ended = {"old": 0, "new": 0}
    for step in range(1000):
        where, then = cases[step % len(cases)]
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(first, output)
        killer(step, where)
        try:
            next_night(source, output)
            break
        except Killed:
            pass
        finally:
            killer(10**9, "")
        paths = [row["path"] for row in read_predictions(output)]
        assert len(paths) == len(set(paths)), f"killed at step {step}, a reader sees a region twice"
        if then == "plain":
            with open_run(output, "segment", {"x": 1}, {}) as run:
                recover(run)
                manifest = manifest_of(run, source)
                if run.summary is None:
                    do(run, manifest, night=2)
            switched = nights(output) != old
            ended["new" if switched else "old"] += 1
        if then == "incremental" or not switched:
            next_night(source, output)
        assert nights(output) == expected, f"killed at step {step}"
        assert "_increment" not in os.listdir(output)
    assert step > 20, "few steps were tried"
    assert cases == [(where, "incremental")] or min(ended.values()) > 1
    assert nights(output) == expected


def test_keys_that_share_their_first_half_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["f" * 32, "0" * 32, "0" * 31 + "1", "0" * 16 + "f" * 16, "8" + "0" * 31]
    monkeypatch.setattr(manifest_writer, "region_key", lambda path, window=None: keys[int(path[0])])
    for i in range(5):
        (tmp_path / "c").mkdir(exist_ok=True)
        (tmp_path / "c" / f"{i}.jpg").write_bytes(b"x")
    manifest = manifest_writer.build_manifest(str(tmp_path / "c"), str(tmp_path / "m"))
    asked = [*keys, "0" * 30 + "10", "f" * 31 + "e", "9" * 32]
    words = key_words(pa.chunked_array([pa.array(asked[:3]), pa.array(asked[3:])]))
    assert KeyIndex(manifest, np.arange(5)).find(words).tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    assert KeyIndex(manifest, np.array([1, 3])).find(words).tolist() == [-1, 1, -1, 3, -1, -1, -1, -1]
    assert committed_ids(str(tmp_path / "none"), 3).tolist() == [False] * 3
