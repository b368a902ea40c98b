"""Regions: rows to pixels, never an exception, always a status."""

from __future__ import annotations

import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import storage
from pipeline.catalog.manifest_writer import build_manifest
from pipeline.labels import CAMVID
from pipeline.reading import regions
from pipeline.reading.regions import ReadOptions, RegionReader

QUICK = ReadOptions(fetch_retry_s=0.5, threads=4)


@pytest.fixture
def reader() -> Iterator[RegionReader]:
    made = RegionReader(QUICK, CAMVID)
    yield made
    made.close()


def png(height: int = 3, width: int = 4, value: int = 7, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height), value if mode == "L" else (value,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def row(path: Path, data: bytes) -> dict[str, object]:
    path.write_bytes(data)
    info = storage.info(str(path))
    return {"uri": info.uri, "size_bytes": info.size_bytes, "version": info.version}


def test_real_pictures_with_their_labels_in_order(
    camvid_subset: Callable[..., Path], tmp_path: Path, reader: RegionReader
) -> None:
    rows = build_manifest(str(camvid_subset(train=12, val=0)), str(tmp_path / "m")).table().to_pylist()
    found = list(reader.read(rows, labels=True))
    assert [region.row["path"] for region in found] == [r["path"] for r in rows]
    for region in found:
        assert region.status == "ok" and region.pixels is not None and region.pixels.shape == (360, 480, 3)
        raw = np.asarray(Image.open(region.row["label_uri"]))
        assert region.truth is not None and region.labels is not None and not region.labels.unknown
        assert (region.truth == np.where(raw == 11, 255, raw)).all()


def test_each_failure_is_its_own_row(tmp_path: Path, reader: RegionReader) -> None:
    good = row(tmp_path / "good.png", png())
    gone = row(tmp_path / "gone.png", png())
    (tmp_path / "gone.png").unlink()
    replaced = row(tmp_path / "replaced.png", png())
    os.utime(tmp_path / "replaced.png", (1, 1))
    longer = row(tmp_path / "longer.png", png()) | {"version": None}
    (tmp_path / "longer.png").write_bytes(png() + b"more")
    small = RegionReader(ReadOptions(max_pixels=11), CAMVID)
    try:
        (large,) = small.read([good])
    finally:
        small.close()
    assert large.status == "too_large" and large.pixels is None and "12" in (large.error or "")
    statuses = [
        region.status
        for region in reader.read(
            [
                good,
                gone,
                replaced,
                longer,
                row(tmp_path / "empty.png", b""),
                row(tmp_path / "html.png", b"<html>"),
                {"uri": str(tmp_path / "film.mp4"), "kind": "video"},
                {"uri": str(tmp_path)},
                good,
            ]
        )
    ]
    assert statuses == [
        "ok",
        "changed",
        "changed",
        "changed",
        "decode_error",
        "decode_error",
        "decode_error",
        "fetch_error",
        "ok",
    ]


def test_labels_that_cannot_be_had_leave_the_picture(tmp_path: Path, reader: RegionReader) -> None:
    picture = row(tmp_path / "a.png", png())
    (tmp_path / "label.png").write_bytes(png(value=200, mode="L"))
    (tmp_path / "bad.png").write_bytes(b"nothing")
    rows = [
        picture,
        picture | {"label_uri": str(tmp_path / "bad.png")},
        picture | {"label_uri": str(tmp_path / "label.png")},
    ]
    none, bad, foreign = reader.read(rows, labels=True)
    assert all(region.status == "ok" and region.pixels is not None for region in (none, bad, foreign))
    assert none.truth_error == "no label file" and bad.truth is None and bad.truth_error
    assert foreign.labels.unknown == {200: 12} and (foreign.truth == 255).all()


def test_a_decoder_that_is_killed_from_outside_costs_nothing(tmp_path: Path, reader: RegionReader) -> None:
    wanted = row(tmp_path / "a.png", png())
    assert next(reader.read([wanted])).status == "ok"
    pid = reader._decoders.children[0].pid
    assert pid
    os.kill(pid, signal.SIGSTOP)  # so that it dies while it has the picture
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    assert next(reader.read([wanted])).status == "ok" and reader._decoders.children[0].pid != pid


def test_a_store_that_recovers_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = row(tmp_path / "a.png", png())
    real, calls = storage.read_version, []

    def flaky(uri: str, version: str | None, *, timeout_s: float) -> bytes:
        calls.append(uri)
        if len(calls) == 1:
            raise ConnectionResetError("reset by peer")
        data = real(uri, version, timeout_s=timeout_s)
        return data[:-5] if len(calls) == 2 else data  # a cut response without an error

    monkeypatch.setattr(storage, "read_version", flaky)
    data = regions.fetch(wanted["uri"], wanted["size_bytes"], wanted["version"], ReadOptions())  # type: ignore[arg-type]
    assert data == png() and len(calls) == 3


def test_a_store_that_does_not_recover_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*args: object, **kwargs: object) -> bytes:
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(storage, "read_version", down)
    started_s = time.monotonic()
    with pytest.raises(regions.Failure, match="reset by peer; gave up") as caught:
        regions.fetch("x", 1, None, QUICK)
    assert caught.value.status == "fetch_error" and time.monotonic() - started_s >= 0.5


def test_s3(s3: object, reader: RegionReader) -> None:
    uri = s3.uri("a.png")  # type: ignore[attr-defined]
    storage.write_bytes(uri, png())
    info = storage.info(uri)
    listed = {"uri": uri, "size_bytes": info.size_bytes, "version": info.version}
    assert next(reader.read([listed])).status == "ok"
    storage.write_bytes(uri, png(value=9))  # the same size, another object
    assert next(reader.read([listed])).status == "changed"
    storage.remove(uri)
    assert next(reader.read([listed])).status == "changed"
