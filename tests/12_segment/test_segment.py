"""The segment job on real Ray: every column right, again and again to the same output, in every form of mask."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from segment_rows import rows_of, same_masks

from pipeline import storage
from pipeline.catalog.manifest_writer import build_manifest
from pipeline.errors import InputError
from pipeline.evaluate.predictions import Predictions
from pipeline.models.checkpoint import load_checkpoint
from pipeline.prediction.predictor import Predictor
from pipeline.segment import runners
from pipeline.segment.config import SegmentConfig
from pipeline.segment.job import segment
from pipeline.storage import folders
from pipeline.tables import increment
from pipeline.tables.prediction_table import prediction_files

pytest_plugins = ("segment_runs",)  # its fixtures


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
    monkeypatch.setattr(runners, "_PROBED_FROM", 3)
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
