"""What dies or fails under the segment job: each region once, whatever dies; each failure its own row."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import end, start_job
from PIL import Image
from segment_rows import rows_of, same_masks

from pipeline import read_predictions
from pipeline.catalog.manifest_writer import build_manifest
from pipeline.catalog.schema import Columns
from pipeline.errors import PipelineError
from pipeline.prediction.predictor import Predictor
from pipeline.reading.regions import ReadOptions
from pipeline.segment.config import SegmentConfig
from pipeline.segment.job import segment
from pipeline.segment.predict_options import PredictOptions
from pipeline.segment.quarantine import start_quarantine
from pipeline.segment.segmenter import Segmenter
from pipeline.tables.prediction_table import prediction_files

pytest_plugins = ("segment_runs",)  # its fixtures


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
    segment(
        SegmentConfig(f"{folder}/*", checkpoint, output, max_failure_rate=1, num_predictors=2, decode_deadline_s=10)
    )
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
            red, green, blue = picture.values[0, 0]
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
    quarantine = start_quarantine()
    data = ray.data.from_arrow(listed.table()).map_batches(
        DeadlySegmenter,
        fn_constructor_args=(checkpoint, options, ReadOptions(), Columns(), quarantine),
        compute=ray.data.ActorPoolStrategy(size=1),
        batch_format="pyarrow",
        batch_size=None,
    )
    rows = sorted(pa.concat_tables(data.iter_batches(batch_format="pyarrow")).to_pylist(), key=lambda r: r["path"])
    assert [row["status"] for row in rows] == [
        {3: "model_error", 5: "timeout", 6: "model_error"}.get(i, "ok") for i in range(9)
    ]
    assert "died" in rows[3]["error"] and "3 s" in rows[5]["error"] and "no blue" in rows[6]["error"]
