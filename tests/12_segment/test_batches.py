"""Batches: their size found, pictures of one shape gathered, decoders started as they are needed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.catalog.manifest_writer import build_manifest
from pipeline.catalog.schema import Columns
from pipeline.labels import CAMVID
from pipeline.models.spec import ModelSpec
from pipeline.prediction.predictor import Predictor
from pipeline.reading.regions import ReadOptions, RegionReader
from pipeline.segment.predict_options import PredictOptions
from pipeline.segment.segmenter import Segmenter
from pipeline.segment.tuning import find_batch_size, find_threads, probe

PICTURE = np.zeros((32, 48, 3), np.uint8)


class Paced(nn.Module):
    """A network that takes so long a forward and so long a picture, and has memory for so many."""

    def __init__(self, forward_s: float, picture_s: float, fits: int) -> None:
        super().__init__()
        self.forward_s, self.picture_s, self.fits = forward_s, picture_s, fits
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        if len(x) > self.fits:
            raise torch.OutOfMemoryError("out of memory")
        time.sleep(self.forward_s + self.picture_s * len(x))
        return torch.zeros(len(x), CAMVID.num_classes, *x.shape[-2:])


@pytest.mark.parametrize(
    ("forward_s", "picture_s", "fits", "best"),
    [
        (0.1, 0.0, 5, 4),  # each doubling doubles the rate, until memory says no
        (0.0, 0.2, 64, 1),  # nothing is gained
        (0.1, 0.0, 1, 1),
    ],
)
def test_a_batch_grows_until_memory_or_the_rate_says_no(
    forward_s: float, picture_s: float, fits: int, best: int
) -> None:
    network = Paced(forward_s, picture_s, fits)
    predictor = Predictor(network, ModelSpec("paced", {}, CAMVID), device="cpu")
    size, rates = find_batch_size(predictor, PICTURE, most=32)
    assert size == predictor.batch_size and size == best
    assert max(rates) <= fits and all(isinstance(answer, Exception) is False for answer in predictor.predict([PICTURE]))


@pytest.mark.parametrize(("gain", "best"), [(1.0, 4), (0.5, 1)])
def test_threads_are_taken_while_they_gain_in_proportion(gain: float, best: int) -> None:
    class Shared(Paced):
        def forward(self, x: Tensor) -> Tensor:
            self.forward_s = 0.4 / (1 + gain * (torch.get_num_threads() - 1)) - 0.01 * (gain == 1)
            return super().forward(x)

    before = torch.get_num_threads()
    try:
        predictor = Predictor(Shared(0.0, 0.0, 64), ModelSpec("shared", {}, CAMVID), device="cpu", threads=1)
        threads, rates = find_threads(predictor, PICTURE, 4)
        assert threads == best == torch.get_num_threads() and rates.keys() == ({1, 2, 4} if best == 4 else {1, 2})
    finally:
        torch.set_num_threads(before)


def manifest_of(folder: Path, sizes: list[tuple[int, int]], tmp_path: Path) -> pa.Table:
    folder.mkdir()
    for i, (height, width) in enumerate(sizes):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png", compress_level=1)
    return build_manifest(str(folder), str(tmp_path / "manifest")).table()


def test_the_batch_size_of_a_run_is_probed_on_its_commonest_shape(untrained: str, tmp_path: Path) -> None:
    table = manifest_of(tmp_path / "c", [(40, 60), (64, 96), (64, 96)], tmp_path)
    found = probe(untrained, PredictOptions(device="cpu", threads=1), ReadOptions(), table.to_pylist(), 2)
    assert found is not None and found.batch_size in found.by_batch_size and found.threads in (1, 2)
    assert found.by_threads.keys() == {1, 2} and "a predictor (" in found.summary()
    gone = [row | {"uri": row["uri"] + ".gone"} for row in table.to_pylist()]
    assert probe(untrained, PredictOptions(device="cpu"), ReadOptions(fetch_retry_s=0), gone, 1) is None


def test_pictures_of_one_shape_share_batches_and_rows_keep_their_order(
    untrained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [[(40, 60), (64, 96), (33, 47)][i % 3] for i in range(20)]
    table = manifest_of(tmp_path / "c", sizes, tmp_path)
    (tmp_path / "c" / "004.png").unlink()
    segmenter = Segmenter(untrained, PredictOptions(device="cpu", threads=1, batch_size=3), ReadOptions(), Columns())
    batches: list[list[tuple[int, ...]]] = []
    real = segmenter.predictor.predict

    def seen(pictures: Any) -> Any:
        batches.append([picture.shape[:2] for picture in pictures])
        return real(pictures)

    monkeypatch.setattr(segmenter.predictor, "predict", seen)
    rows = segmenter(table).to_pylist()
    assert [row["path"] for row in rows] == table["path"].to_pylist()
    assert [row["status"] for row in rows] == ["changed" if i == 4 else "ok" for i in range(20)]
    assert all(len(set(batch)) <= 1 for batch in batches)
    assert sorted(len(batch) for batch in batches) == [0, 1, 3, 3, 3, 3, 3, 3], "7, 6 and 6 pictures in batches of 3"
    alone = Segmenter(untrained, PredictOptions(device="cpu", threads=1, batch_size=3), ReadOptions(), Columns())
    for i in (0, 7, 19):
        assert alone(table.slice(i, 1)).to_pylist()[0]["mask"] == rows[i]["mask"]


@pytest.mark.parametrize("most", [1, 3])
def test_decoders_are_started_while_decoding_is_what_is_waited_for(most: int, tmp_path: Path) -> None:
    # 12 MB of noise each: the reader waits for nothing else
    rows = manifest_of(tmp_path / "c", [(2000, 2000)] * 6, tmp_path).to_pylist()
    reader = RegionReader(ReadOptions(decoders=most))
    try:
        until_s, busy_s = time.monotonic() + 60, 0.0
        while time.monotonic() < until_s and (busy_s < 3 or len(reader._decoders.children) < most):
            for row, region in zip(rows, reader.read(rows), strict=True):
                assert region.row is row and region.status == "ok"
            busy_s += reader.take_busy()["decode"]
        assert len(reader._decoders.children) == most
        assert len({child.pid for child in reader._decoders.children if child.pid}) >= most - 1
    finally:
        reader.close()


def test_a_reader_that_is_not_waited_for_keeps_one_decoder(tmp_path: Path) -> None:
    rows = manifest_of(tmp_path / "c", [(40, 40)] * 60, tmp_path).to_pylist()
    reader = RegionReader(ReadOptions(decoders=3))
    try:
        for region in reader.read(rows):
            assert region.status == "ok"
            time.sleep(0.05)  # the network
        assert len(reader._decoders.children) == 1
    finally:
        reader.close()
