"""What version 0.1 wrote (tests/recorded/0.1, by tests/recorded/record.py) is read, resumed, evaluated by today's code.

The recorded files name `s3://recorded`: they are put there on the session's own server, pictures included.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs
import yaml
from conftest import PROJECT, Finished

from pipeline import predictions_frame, read_predictions, storage

RECORDED = PROJECT / "tests" / "recorded" / "0.1"
ROOT = "s3://recorded"


@pytest.fixture
def recorded(s3_server: str) -> Iterator[str]:
    """The bucket as it was left, afresh for each test."""
    store = s3fs.S3FileSystem(endpoint_url=s3_server, skip_instance_cache=True, use_listings_cache=False)
    store.mkdir("recorded")
    for path in RECORDED.rglob("*"):
        if path.is_file():
            store.pipe_file(f"recorded/{path.relative_to(RECORDED)}", path.read_bytes())
    yield ROOT
    store.rm("recorded", recursive=True)


def options_of(name: str) -> list[object]:
    """The recorded run's own `_config.yaml`, as flags; what it did not know then has today's default."""
    values = yaml.safe_load((RECORDED / name / "_config.yaml").read_text())
    words: list[object] = []
    for key, value in values.items():
        if value not in (None, {}):
            words += [f"--{key.replace('_', '-')}", str(value).lower() if isinstance(value, bool) else value]
    return words


def metrics_at(uri: str) -> dict[str, Any]:
    return dict(storage.read_json(f"{uri}/metrics.json"))


def test_the_manifest_is_read(recorded: str) -> None:
    from pipeline.catalog.manifest import open_manifest
    from pipeline.catalog.manifest_writer import build_manifest

    manifest = open_manifest(f"{recorded}/manifest")
    assert manifest is not None and manifest.num_rows == 7 and manifest.labelled == 7
    again = build_manifest(f"{recorded}/scenes", f"{recorded}/again")  # the same collection is the same content
    assert again.fingerprint == manifest.fingerprint
    assert again.table(["region_key"]).equals(manifest.table(["region_key"]))


def test_the_checkpoint_predicts(recorded: str) -> None:
    from pipeline.models.checkpoint import load_checkpoint
    from pipeline.prediction.predictor import Prediction, Predictor

    model, spec = load_checkpoint(f"{recorded}/checkpoint")
    assert spec.label_set.num_classes == 8 and spec.metrics["step"] == 20
    (found,) = Predictor(model, spec).predict([np.zeros((36, 48, 3), np.uint8)])
    assert isinstance(found, Prediction) and found.class_map.shape == (36, 48)


def test_predictions_are_read(recorded: str) -> None:
    rows = {row["path"]: row for row in read_predictions(f"{recorded}/segment")}
    assert len(rows) == 4 and all(row["mask"].shape == (36, 48) for row in rows.values())
    assert predictions_frame(f"{recorded}/segment")["status"].tolist() == ["ok"] * 4


@pytest.mark.parametrize("job", ["manifest", "train", "segment", "evaluate"])
def test_the_same_command_says_complete(recorded: str, job: str, run_job: Callable[..., Finished]) -> None:
    """Options that came later are in no fingerprint while they are at their default."""
    done = run_job(job, *options_of(job))
    assert done.code == 0, done.stderr
    assert done.stdout.startswith("complete")


def test_another_option_is_still_another_run(recorded: str, run_job: Callable[..., Finished]) -> None:
    for job, change in (("train", ["--learning-rate", "0.5"]), ("segment", ["--tile-px", "512"])):
        done = run_job(job, *options_of(job), *change)
        assert done.code == 2 and "output folder holds another run" in done.error


def test_a_killed_run_is_resumed(recorded: str, run_job: Callable[..., Finished]) -> None:
    """What it had published stays byte for byte; the rest is done; every region once, with the undisturbed masks."""
    before = {file.name: file.read_bytes() for file in (RECORDED / "killed" / "predictions").iterdir()}
    assert len(before) == 2
    done = run_job("segment", *options_of("killed"))
    assert done.code == 0, done.stderr
    assert "4 of 4 regions ok" in done.stdout and "2 of 4 regions are committed" in done.stderr
    assert all(storage.read_bytes(f"{recorded}/killed/predictions/{name}") == data for name, data in before.items())
    resumed = list(read_predictions(f"{recorded}/killed"))
    undisturbed = {row["region_key"]: row["mask"] for row in read_predictions(f"{recorded}/segment")}
    assert sorted(row["region_key"] for row in resumed) == sorted(undisturbed)
    differing = sum(int((row["mask"] != undisturbed[row["region_key"]]).sum()) for row in resumed)
    assert (
        differing <= 1e-4 * sum(mask.size for mask in undisturbed.values()) + 1
    )  # another processor may round otherwise


def test_old_predictions_are_evaluated(recorded: str, tmp_path: Path, run_job: Callable[..., Finished]) -> None:
    before = metrics_at(f"{recorded}/evaluate")
    done = run_job(
        "evaluate",
        "--predictions",
        f"{recorded}/segment",
        "--labels",
        f"{recorded}/manifest",
        "--output",
        tmp_path / "e",
    )
    assert done.code == 0, done.stderr
    found = json.loads((tmp_path / "e" / "metrics.json").read_text())
    for name in ("confusion_matrix", "unpredicted", "miou", "per_class", "pictures", "label_set"):
        assert found[name] == before[name], name
