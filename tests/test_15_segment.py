"""The segment job on real Ray: each region once, whatever dies; each failure its own row."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Finished, end, start_job
from PIL import Image

from pipeline import read_predictions, storage
from pipeline.checkpoint import ModelSpec, load_checkpoint, save_checkpoint
from pipeline.errors import InputError, PipelineError
from pipeline.labels import CAMVID
from pipeline.manifest_writer import build_manifest
from pipeline.models import build_model
from pipeline.options import parse
from pipeline.predictor import Predictor
from pipeline.regions import ReadOptions
from pipeline.segment import segment
from pipeline.segment_config import SegmentConfig
from pipeline.segmenter import Columns, PredictOptions, Segmenter
from pipeline.sink import prediction_files
from pipeline.suspects import start_suspects


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A network with random weights whose classes vary over a picture."""
    torch.manual_seed(3)
    model = build_model("torchvision:lraspp_mobilenet_v3_large", num_classes=11)
    uri = str(tmp_path_factory.mktemp("checkpoint"))
    save_checkpoint(uri, model, ModelSpec("torchvision:lraspp_mobilenet_v3_large", {}, CAMVID))
    return uri


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 small pictures of four sizes; drawn noise, so that masks differ."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    for i in range(60):
        height, width = [(64, 96), (65, 97), (96, 64), (40, 40)][i % 4]
        pixels = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(folder / f"{i:03d}.png")
    return folder


def rows_of(output: object) -> dict[str, dict[str, Any]]:
    rows = list(read_predictions(str(output)))
    by_key = {row["region_key"]: row for row in rows}
    assert len(by_key) == len(rows), "a region stands twice"
    return by_key


def same_masks(a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key]["mask"], b[key]["mask"]) for key in a)


@pytest.fixture(scope="module")
def undisturbed(ray_session: None, checkpoint: str, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "undisturbed"
    told = segment(SegmentConfig(str(pictures), checkpoint, str(output), rows_per_file=8, num_predictors=2))
    assert told == f"60 of 60 regions ok, 0 failed in {output}/predictions"
    return output


def test_every_column_says_what_the_predictor_alone_says(undisturbed: Path, checkpoint: str, pictures: Path) -> None:
    rows = rows_of(undisturbed)
    predictor = Predictor(*load_checkpoint(checkpoint), device="cpu", threads=1)
    assert len(rows) == 60
    for row in list(rows.values())[::7]:
        pixels = np.asarray(Image.open(row["uri"]))
        alone = predictor.predict([pixels])[0]
        assert not isinstance(alone, Exception)
        assert (row["height"], row["width"]) == pixels.shape[:2]
        assert np.array_equal(row["mask"], alone.class_map)
        assert row["class_pixels"] == np.bincount(row["mask"].ravel(), minlength=11).tolist()
        assert row["mean_confidence"] == pytest.approx(alone.mean_confidence, rel=1e-5)
        assert row["status"] == "ok" and row["error"] is None and row["path"] == os.path.basename(row["uri"])
    whole = pq.read_table(undisturbed / "statistics").to_pylist()[0]
    assert whole["scope"] == "all" and whole["ok"] == 60
    assert whole["class_pixels"] == np.sum([row["class_pixels"] for row in rows.values()], axis=0).tolist()
    assert sorted(os.listdir(undisturbed)) == sorted(
        "_SUCCESS _config.yaml _run.json labels.json manifest predictions statistics".split()
    )
    assert all(pq.read_metadata(file).num_rows <= 8 for file in prediction_files(str(undisturbed)))


def test_a_complete_run_is_left_alone_and_another_refused(
    undisturbed: Path, checkpoint: str, pictures: Path, tmp_path: Path
) -> None:
    before = {f.path: f.version for f in storage.walk_files(str(undisturbed))}
    told = segment(SegmentConfig(str(pictures), checkpoint, str(undisturbed), batch_size=4))
    assert told.startswith("complete: 60 of 60")
    with pytest.raises(InputError, match="tile_px"):
        segment(SegmentConfig(str(pictures), checkpoint, str(undisturbed), tile_px=512))
    with pytest.raises(InputError, match="source differs"):
        segment(SegmentConfig(str(pictures / "*.png"), checkpoint, str(undisturbed)))
    assert {f.path: f.version for f in storage.walk_files(str(undisturbed))} == before


def test_an_output_grows_from_a_part_to_everything(
    ray_session: None, checkpoint: str, pictures: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    config = SegmentConfig(str(pictures), checkpoint, output, num_predictors=1, limit=3)
    assert segment(config).startswith("3 of 3 regions ok")
    assert sorted(row["path"] for row in rows_of(output).values()) == ["000.png", "001.png", "002.png"]
    assert segment(config).startswith("complete: 3 of 3")
    first = prediction_files(output)
    kept = {f.path: f.version for f in storage.walk_files(output)}
    with pytest.raises(InputError, match="found --limit 3; expected --limit 2"):
        segment(replace(config, limit=2))
    assert {f.path: f.version for f in storage.walk_files(output)} == kept
    assert segment(replace(config, limit=None)).startswith("60 of 60 regions ok")
    assert set(first) <= set(prediction_files(output)), "what was done was done again"
    assert same_masks(rows_of(output), rows_of(undisturbed))
    assert "limit: null" in (tmp_path / "out" / "_config.yaml").read_text()


def test_a_driver_killed_in_mid_run_is_followed_without_a_trace(
    ray_session: None, checkpoint: str, pictures: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "killed"
    args = ["--source", pictures, "--checkpoint", checkpoint, "--output", output, "--rows-per-file", "4"]
    for kill in range(2):
        before = len(list(read_predictions(str(output)))) if kill else 0
        job = start_job("segment", *args)
        try:
            until_s = time.monotonic() + 200
            while job.poll() is None and time.monotonic() < until_s:
                if output.exists() and sum(1 for _ in read_predictions(str(output))) > before:
                    break
                time.sleep(0.2)
            os.kill(job.pid, signal.SIGKILL)
        finally:
            end(job, group=True)
    committed = rows_of(output)
    kept = {file: os.stat(file).st_mtime_ns for file in prediction_files(str(output))}
    assert committed
    if (output / "_SUCCESS").exists():
        pytest.skip("the job was done before it could be killed")
    segment(SegmentConfig(str(pictures), checkpoint, str(output), rows_per_file=4))
    assert {file: os.stat(file).st_mtime_ns for file in kept} == kept, "a committed row was predicted again"
    assert same_masks(rows_of(output), rows_of(undisturbed))


def test_s3_and_a_manifest_as_the_source(
    ray_session: None, checkpoint: str, pictures: Path, undisturbed: Path, tmp_path: Path, s3: Any
) -> None:
    for file in sorted(pictures.iterdir())[:12]:
        storage.write_bytes(s3.uri("set", file.name), file.read_bytes())
    trained = s3.uri("checkpoint")
    for file in Path(checkpoint).iterdir():
        storage.write_bytes(s3.uri("checkpoint", file.name), file.read_bytes())
    build_manifest(s3.uri("set"), s3.uri("listed"))
    segment(SegmentConfig(s3.uri("listed"), trained, s3.uri("out"), num_predictors=1))
    assert "manifest" not in storage.list_names(s3.uri("out"))
    here = rows_of(s3.uri("out"))
    assert len(here) == 12
    assert same_masks(here, {key: row for key, row in rows_of(undisturbed).items() if key in here})


def test_every_hostile_file_costs_only_its_own_row(
    ray_session: None, checkpoint: str, pictures: Path, undisturbed: Path, data_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(data_dir / "hostile" / "files", folder)
    good = sorted(pictures.iterdir())[:6]
    for file in good:
        shutil.copyfile(file, folder / f"zz-{file.name}")
    total = len(list(folder.iterdir()))
    output = str(tmp_path / "out")
    segment(SegmentConfig(f"{folder}/*", checkpoint, output, max_failure_rate=1, num_predictors=2))
    rows = {row["path"]: row for row in rows_of(output).values()}
    assert len(rows) == total
    for row in rows.values():
        if row["status"] == "ok":
            assert row["mask"].shape == (row["height"], row["width"]) and row["error"] is None
        else:
            assert row["error"] and row["mask"] is None and row["class_pixels"] is None
    right = {row["path"]: row["mask"] for row in rows_of(undisturbed).values()}
    for file in good:
        assert np.array_equal(rows[f"zz-{file.name}"]["mask"], right[file.name])
    failed = [row for row in rows.values() if row["status"] != "ok"]
    assert 20 < len(failed) < total - 100
    assert not {row["status"] for row in failed} - {"decode_error", "too_large", "timeout"}


def test_too_many_failures_stop_the_run_and_retry_failed_takes_their_place(
    ray_session: None, checkpoint: str, tmp_path: Path
) -> None:
    folder, output = tmp_path / "c", str(tmp_path / "out")
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (40, 30), (40 * i, 9, 9)).save(folder / f"{i}.png")
    whole = (folder / "3.png").read_bytes()
    stamp = os.stat(folder / "3.png")
    (folder / "3.png").write_bytes(whole[:60])
    config = SegmentConfig(str(folder), checkpoint, output, num_predictors=1)
    with pytest.raises(PipelineError, match="1 of 6 regions failed.*commonest reason is decode_error"):
        segment(config)
    assert sorted(row["status"] for row in rows_of(output).values()) == ["decode_error"] + ["ok"] * 5
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    config.max_failure_rate = 0.5
    assert "5 of 6 regions ok, 1 failed (1 decode_error)" in segment(config)
    kept = [file for file in prediction_files(output) if "/ok-" in file]
    stamps = [os.stat(file).st_mtime_ns for file in kept]
    (folder / "3.png").write_bytes(whole)
    os.utime(folder / "3.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert "complete" in segment(config)
    config.retry_failed = True
    # the manifest recorded the broken file's size, so the mended one is another version
    assert "5 of 6 regions ok, 1 failed (1 changed)" in segment(config)
    assert [os.stat(file).st_mtime_ns for file in kept] == stamps
    assert len(rows_of(output)) == 6


class Deadly(Predictor):
    """Red kills the process, green hangs it, blue raises; for the test below."""

    def predict(self, pictures: Any) -> Any:
        for picture in pictures:
            red, green, blue = picture[0, 0]
            if red > 250:
                os._exit(7)
            if green > 250:
                time.sleep(1000)
            if blue > 250:
                return [ValueError("no blue")] * len(pictures)
        return super().predict(pictures)


class DeadlySegmenter(Segmenter):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.predictor.__class__ = Deadly


def test_a_picture_that_kills_or_hangs_the_predictor_costs_its_own_row(
    ray_session: None, checkpoint: str, tmp_path: Path
) -> None:
    import ray.cloudpickle
    import ray.data

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    folder = tmp_path / "c"
    folder.mkdir()
    colors = {3: (255, 0, 0), 5: (0, 255, 0), 6: (0, 0, 255)}
    for i in range(9):
        Image.new("RGB", (40, 30), colors.get(i, (9, 9, 9))).save(folder / f"{i}.png")
    listed = build_manifest(str(folder), str(tmp_path / "m"))
    options = PredictOptions(device="cpu", threads=1, deadline_s=3.0)
    suspects = start_suspects()
    data = ray.data.from_arrow(listed.table()).map_batches(
        DeadlySegmenter,
        fn_constructor_args=(checkpoint, options, ReadOptions(), Columns(), suspects),
        compute=ray.data.ActorPoolStrategy(size=1),
        batch_format="pyarrow",
        batch_size=None,
    )
    rows = sorted(pa.concat_tables(data.iter_batches(batch_format="pyarrow")).to_pylist(), key=lambda r: r["path"])
    assert [row["status"] for row in rows] == [
        {3: "model_error", 5: "timeout", 6: "model_error"}.get(i, "ok") for i in range(9)
    ]
    assert "died" in rows[3]["error"] and "3 s" in rows[5]["error"] and "no blue" in rows[6]["error"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--source": "nowhere"}, "source does not exist"),
        ({"--source": "empty"}, "no picture found"),
        ({"--checkpoint": "nowhere"}, "checkpoint"),
        ({"--checkpoint": "damaged"}, "damaged"),
        ({"--split": "vall"}, "no picture is of split 'vall'"),
        ({"--max-failure-rate": "2"}, "out of range"),
        ({"--limit": "0"}, "--limit is out of range"),
        ({"--sample": "10"}, "--sample is out of range"),
        ({"--sample": "1e-12"}, "the sample holds no picture"),
        ({"--config": "nowhere.yaml"}, "configuration file does not exist"),
        ({"--config": "typo.yaml"}, "did you mean 'rows_per_file'"),
        ({"--rows-per-fil": "3"}, "did you mean '--rows-per-file'"),
    ],
)
def test_bad_input(
    change: dict[str, str], says: str, ray_session: None, checkpoint: str, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        segment(parse(SegmentConfig, bad_arguments(change, checkpoint, pictures, tmp_path)))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_bad_input_of_the_command(
    checkpoint: str, pictures: Path, tmp_path: Path, run_job: Callable[..., Finished]
) -> None:
    done = run_job("segment", *bad_arguments({"--source": "nowhere"}, checkpoint, pictures, tmp_path))
    assert done.code == 2 and done.error.startswith("error: source does not exist"), done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def bad_arguments(change: dict[str, str], checkpoint: str, pictures: Path, folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    (folder / "typo.yaml").write_text("rows_per_fil: 3\n")
    shutil.copytree(checkpoint, folder / "damaged")
    (weights,) = (folder / "damaged").glob("weights-*")
    weights.write_bytes(weights.read_bytes()[:-9] + b"x" * 9)
    arguments = {"--source": str(pictures), "--checkpoint": checkpoint, "--output": str(folder / "out")}
    paths = ("--source", "--checkpoint", "--config")
    arguments |= {name: str(folder / value) if name in paths else value for name, value in change.items()}
    return [word for pair in arguments.items() for word in pair]
