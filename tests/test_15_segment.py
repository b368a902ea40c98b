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

from pipeline import folders, increment, read_predictions, storage, streams
from pipeline.checkpoint import load_checkpoint, save_checkpoint
from pipeline.errors import InputError, PipelineError
from pipeline.labels import CAMVID
from pipeline.manifest_writer import build_manifest
from pipeline.model_spec import ModelSpec
from pipeline.models import build_model
from pipeline.options import parse
from pipeline.predict_options import PredictOptions
from pipeline.prediction_table import prediction_files
from pipeline.predictions import Predictions
from pipeline.predictor import Predictor
from pipeline.regions import ReadOptions
from pipeline.schema import Columns
from pipeline.segment import segment
from pipeline.segment_config import SegmentConfig
from pipeline.segmenter import Segmenter
from pipeline.suspects import start_suspects
from pipeline.timings import Timings, told


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
    speed = storage.read_json(str(undisturbed / "_SUCCESS"))["speed"]
    assert speed["steady"] and 0 < speed["predictor_share"] <= 1 and speed["predictors"] in (1, 2)
    assert sum(speed["shares"].values()) == pytest.approx(1, abs=0.01) and min(speed["shares"].values()) >= 0
    assert speed["shares"][speed["held_back_by"]] == max(speed["shares"].values())
    assert 0 < speed["startup_s"] < 200 and 0 < speed["pictures"] < 60
    assert speed["hours_per_million"] == pytest.approx(1e6 / speed["pictures_per_s"] / 3600, rel=0.01)
    assert storage.read_json(str(undisturbed / "_run.json"))["speed"] == speed
    assert sorted(os.listdir(undisturbed)) == sorted(
        "_SUCCESS _config.yaml _run.json labels.json manifest predictions statistics".split()
    )
    assert all(pq.read_metadata(file).num_rows <= 8 for file in prediction_files(str(undisturbed)))


def block(actor: str, begin_s: float, end_s: float, first: bool = False, **spent_s: float) -> dict[str, Any]:
    """Times of a block of 10 pictures."""
    spent = {f"{name}_s": spent_s.get(name, 0.0) for name in ("read", "fetch", "decode", "predict", "ray")}
    started = {"first_predicted_at": 1000.0 + end_s if first else None}
    return {"actor": actor, "first": first, "begin_s": begin_s, "end_s": end_s, "rows": 10, **spent, **started}


@pytest.mark.parametrize(
    ("spent_s", "write_s", "apart", "by"),
    [
        ({"predict": 4.5}, 0.1, False, "predict"),
        ({"predict": 1.5, "read": 3, "decode": 4, "fetch": 9}, 0.1, False, "decode"),
        ({"predict": 1.5, "read": 3, "decode": 1, "fetch": 30}, 0.1, False, "fetch"),
        ({"predict": 1.5}, 0.1, False, "write"),  # encoding: what a block takes beyond the others
        ({"predict": 2.0, "ray": 2.5}, 0.1, False, "driver"),
        ({"predict": 2.0, "ray": 2.5}, 50, False, "write"),
        ({"predict": 2.0, "ray": 2.5, "decode": 9, "fetch": 1}, 0.1, True, "decode"),
    ],
)
def test_what_held_a_run_back(spent_s: dict[str, float], write_s: float, apart: bool, by: str) -> None:
    timings = Timings(1000.0, fetch_threads=8, reads_apart=apart)
    timings.add([block("a", 2, 10, first=True, predict=8), block("b", 2, 12, first=True, predict=8)], 0)
    timings.add([block("b", 12 + 5 * i, 17 + 5 * i, **spent_s) for i in range(4)], write_s)
    timings.add([block("a", 10 + 5 * i, 15 + 5 * i, **spent_s) for i in (1, 0)], write_s)
    speed = timings.speed()
    assert speed is not None and speed["held_back_by"] == by and speed["steady"]
    assert speed["predictor_share"] == pytest.approx(spent_s["predict"] / 5)
    assert speed["pictures_per_s"] == 4 and speed["startup_s"] == 10  # two actors, 10 pictures in 5 s each
    assert sum(speed["shares"].values()) == pytest.approx(1)
    assert "69 h 26 min, 138.88 at 2 an hour" in told(speed, 2.0)[1]


def test_a_single_block_counts_with_its_warm_up() -> None:
    timings = Timings(1000.0, fetch_threads=8, reads_apart=False)
    assert timings.speed() is None
    timings.add([block("a", 2, 7, first=True, predict=4)], 0)
    speed = timings.speed()
    assert speed is not None and speed["pictures_per_s"] == 2 and not speed["steady"]


def test_a_complete_run_is_left_alone_and_another_refused(
    undisturbed: Path, checkpoint: str, pictures: Path, tmp_path: Path
) -> None:
    before = {f.path: f.version for f in folders.walk_files(str(undisturbed))}
    told = segment(SegmentConfig(str(pictures), checkpoint, str(undisturbed), batch_size=4))
    assert told.startswith("complete: 60 of 60")
    with pytest.raises(InputError, match="tile_px"):
        segment(SegmentConfig(str(pictures), checkpoint, str(undisturbed), tile_px=512))
    with pytest.raises(InputError, match="source differs"):
        segment(SegmentConfig(str(pictures / "*.png"), checkpoint, str(undisturbed)))
    assert {f.path: f.version for f in folders.walk_files(str(undisturbed))} == before


def test_an_output_grows_from_a_part_to_everything(
    ray_session: None, checkpoint: str, pictures: Path, undisturbed: Path, tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    config = SegmentConfig(str(pictures), checkpoint, output, num_predictors=1, limit=3)
    assert segment(config).startswith("3 of 3 regions ok")
    assert sorted(row["path"] for row in rows_of(output).values()) == ["000.png", "001.png", "002.png"]
    assert segment(config).startswith("complete: 3 of 3")
    told = segment(replace(config, limit=None, dry_run=True))
    assert told.startswith("would segment 57 of 60") and "; 3 are committed" in told and "measured over " in told
    first = prediction_files(output)
    kept = {f.path: f.version for f in folders.walk_files(output)}
    with pytest.raises(InputError, match="found --limit 3; expected --limit 2"):
        segment(replace(config, limit=2))
    assert {f.path: f.version for f in folders.walk_files(output)} == kept
    assert segment(replace(config, limit=None)).startswith("60 of 60 regions ok")
    assert set(first) <= set(prediction_files(output)), "what was done was done again"
    assert same_masks(rows_of(output), rows_of(undisturbed))
    assert "limit: null" in (tmp_path / "out" / "_config.yaml").read_text()


def test_a_long_run_finds_its_batch_size_and_keeps_it(
    ray_session: None,
    checkpoint: str,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(streams, "_PROBED_FROM", 3)
    config = SegmentConfig(str(pictures), checkpoint, str(tmp_path / "out"), num_predictors=1, limit=4)
    assert segment(config).startswith("4 of 4 regions ok")
    record = storage.read_json(storage.join(config.output, "_run.json"))
    found = record["predict"]["batch_size"]
    assert f"batch size {found} (" in capsys.readouterr().err
    assert segment(replace(config, limit=6)).startswith("6 of 6 regions ok")
    assert storage.read_json(storage.join(config.output, "_run.json"))["predict"] == record["predict"]
    assert "batch size" not in capsys.readouterr().err


@pytest.mark.parametrize("mask_format", ["png", "none"])
def test_masks_are_written_as_asked(
    mask_format: str, undisturbed: Path, checkpoint: str, pictures: Path, tmp_path: Path
) -> None:
    """`png` with confidence and probabilities of every pixel; `none` with the statistics alone, averaged over
    mirrored views and run by ONNX Runtime, which the run remembers."""
    output = tmp_path / mask_format
    asked = (
        {"confidence": True, "probabilities": True}
        if mask_format == "png"
        else {"flip": True, "engine": "onnx", "num_predictors": 1}
    )
    segment(SegmentConfig(str(pictures), checkpoint, str(output), limit=6, mask_format=mask_format, **asked))
    rows, before = rows_of(output), rows_of(undisturbed)
    assert len(rows) == 6
    for key, row in rows.items():
        if mask_format == "none":
            assert row["mask"] is None and row["confidence"] is None
            assert sum(row["class_pixels"]) == row["height"] * row["width"]
        else:
            assert np.array_equal(row["mask"], before[key]["mask"])
            confidence = np.frombuffer(row["confidence"], np.uint8)
            assert confidence.size == row["mask"].size
            assert row["probabilities"].shape == (11, row["height"], row["width"])
            assert np.array_equal(row["probabilities"].max(0), row["confidence"])
            assert confidence.mean() / 255 == pytest.approx(row["mean_confidence"], abs=1 / 255)
    if mask_format == "none":
        record = storage.read_json(storage.join(str(output), "_run.json"))
        assert record["predict"]["engine"] == "onnx"
        with pytest.raises(InputError, match="predictions hold no masks"):
            Predictions.open(str(output))


def test_a_dry_run_tells_and_writes_nothing(undisturbed: Path, checkpoint: str, pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    config = SegmentConfig(str(pictures), checkpoint, str(output), num_predictors=2, dry_run=True, price_per_hour=3.6)
    first = segment(replace(config, sample=0.5)).splitlines()
    drawn = int(first[0].split()[2])
    assert 15 < drawn < 45 and first[0].startswith(f"would segment {drawn} of {drawn} regions ({drawn} pictures; ")
    assert re.match(
        r"with 2 predictors on cpu: about [\d.]+ pictures/s, .*estimated from 8 pictures done here", first[1]
    )
    assert first[2].startswith("at 3.6 an hour: ") and first[3].startswith("dry run: nothing was written")
    assert list(tmp_path.iterdir()) == []
    before = {f.path: f.version for f in folders.walk_files(str(undisturbed))}
    again = replace(config, output=str(undisturbed))
    assert segment(again).startswith("nothing to do: all 60 regions are committed")
    with pytest.raises(InputError, match="found the whole collection; expected --limit 5"):
        segment(replace(again, limit=5))
    with pytest.raises(InputError, match="result differs in tile_px"):
        segment(replace(again, tile_px=512))
    told = segment(replace(again, tile_px=512, overwrite=True))
    assert told.startswith("would segment 60 of 60") and "estimated from 8 pictures" in told
    assert {f.path: f.version for f in folders.walk_files(str(undisturbed))} == before


def test_incremental_does_what_is_new_or_changed(
    undisturbed: Path, checkpoint: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(increment, "_BYTES_HERE", 0)  # carried by Ray's workers, as large runs are
    folder, output = tmp_path / "c", str(tmp_path / "out")
    folder.mkdir()
    source_of = {f"{i:03d}.png": f"{i:03d}.png" for i in range(8)}  # name -> the picture that it is a copy of
    for name in source_of:
        shutil.copy2(pictures / name, folder / name)
    config = SegmentConfig(str(folder), checkpoint, output, num_predictors=1, rows_per_file=3)
    segment(config)
    first = rows_of(output)
    (folder / "001.png").unlink()
    source_of |= {"002.png": "020.png", "0020.png": "031.png"}
    del source_of["001.png"]
    for name in ("002.png", "0020.png"):
        shutil.copyfile(pictures / source_of[name], folder / name)
    with pytest.raises(InputError, match="give one of them"):
        replace(config, incremental=True, overwrite=True)
    tonight = replace(config, incremental=True)
    assert segment(config).startswith("complete: 8 of 8")
    assert segment(replace(tonight, dry_run=True)).startswith("would segment 2 of 8 regions (2 pictures; ")
    assert segment(tonight).startswith("8 of 8 regions ok")
    now = {row["path"]: row for row in rows_of(output).values()}
    right = {row["path"]: row["mask"] for row in rows_of(undisturbed).values()}
    assert now.keys() == source_of.keys()
    for name, copied in source_of.items():
        assert np.array_equal(now[name]["mask"], right[copied])
    carried = [key for key, row in first.items() if row["path"] in source_of and row["path"] != "002.png"]
    assert len(carried) == 6 and same_masks({k: first[k] for k in carried}, {k: rows_of(output)[k] for k in carried})
    whole = pq.read_table(tmp_path / "out" / "statistics").to_pylist()[0]
    assert whole["ok"] == 8 and segment(tonight).startswith("complete: 8 of 8")


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
    assert "manifest" not in folders.list_names(s3.uri("out"))
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
        ({"--price-per-hour": "-1"}, "out of range"),
        ({"--mask-format": "rel"}, "--mask-format: no 'rel'; expected raw, png, rle, none; did you mean 'rle'"),
        ({"--scales": "1,9"}, "--scales is out of range; found 1,9"),
        ({"--threads": "0"}, "--threads is out of range"),
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
