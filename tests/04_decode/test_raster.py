"""Raster scenes in the decoding child: headers, windows, what is valid, several files on one grid, broken files."""

from __future__ import annotations

import http.server
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import Affine
from scene_files import UTM, smooth, write_scene

from pipeline.catalog.raster_windows import WindowOptions, windows_of
from pipeline.decode import DecodeError, TooLarge
from pipeline.decode.child import DecodeChild
from pipeline.decode.gdal_file import Grid
from pipeline.decode.raster_header import Asset


@pytest.fixture(scope="module")
def child() -> Iterator[DecodeChild]:
    with DecodeChild() as one:
        yield one


def test_a_window_is_that_part_of_the_file_in_its_own_type(tmp_path: Path, child: DecodeChild) -> None:
    for dtype in ("uint8", "uint16", "int16", "int32", "float32", "float64"):
        values = smooth(300, 260, 4, dtype, top=200)
        asset = Asset(str(write_scene(tmp_path / f"{dtype}.tif", values, photometric="minisblack")))
        header = child.scene_header([asset])
        assert (header.width, header.height, header.bands, header.dtype) == (260, 300, 4, dtype)
        assert header.crs == "EPSG:32618" and header.transform == tuple(UTM)[:6] and header.block == (128, 128)
        found = child.scene([asset], (100, 40, 130, 200))
        np.testing.assert_array_equal(found.values, values[40:240, 100:230])
        assert found.valid is None and found.values.dtype == dtype


def test_what_is_not_valid(tmp_path: Path, child: DecodeChild) -> None:
    values = smooth(64, 64, 3, "uint8") | 1
    values[:8] = 0  # nodata in all bands
    values[20, 20, 0] = 0  # one dark band is no gap
    found = child.scene([Asset(str(write_scene(tmp_path / "zero.tif", values, nodata=0)))], None)
    assert found.valid is not None and not found.valid[:8].any() and found.valid[8:].all()
    low = values.astype("int16")
    low[30, 30, 1] = -9999
    found = child.scene([Asset(str(write_scene(tmp_path / "low.tif", low, nodata=-9999)))], None)
    assert found.valid is not None and np.argwhere(~found.valid).tolist() == [[30, 30]]
    nan = values.astype("float32")
    nan[5, 6, 2] = np.nan
    found = child.scene([Asset(str(write_scene(tmp_path / "nan.tif", nan)))], None)
    assert found.valid is not None and np.argwhere(~found.valid).tolist() == [[5, 6]]
    mask = np.full((64, 64), 255, np.uint8)
    mask[:, :10] = 0
    found = child.scene([Asset(str(write_scene(tmp_path / "mask.tif", values, mask=mask)))], (4, 0, 20, 20))
    assert found.valid is not None and not found.valid[:, :6].any() and found.valid[:, 6:].all()


def test_alpha_is_the_mask_and_never_a_band(tmp_path: Path, child: DecodeChild) -> None:
    values = np.dstack([smooth(40, 50), np.full((40, 50), 255, np.uint8)])
    values[:4, :, 3] = 0
    path = write_scene(tmp_path / "alpha.tif", values, photometric="rgb", alpha="yes")
    found = child.scene([Asset(str(path))], None)
    assert found.header.bands == 3 and found.values.shape == (40, 50, 3)
    assert found.valid is not None and not found.valid[:4].any() and found.valid[4:].all()


def test_a_palette_is_colours_as_a_picture_and_indices_as_labels(tmp_path: Path, child: DecodeChild) -> None:
    indices = (np.arange(64 * 64).reshape(64, 64) % 3).astype(np.uint8)
    path = write_scene(tmp_path / "palette.tif", indices)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (10, 20, 30, 255), 1: (1, 2, 3, 255), 2: (200, 0, 0, 255)})
    asset = Asset(str(path))
    assert child.scene_header([asset]).bands == 3
    assert child.scene([asset], None).values[0, :3].tolist() == [[10, 20, 30], [1, 2, 3], [200, 0, 0]]
    np.testing.assert_array_equal(child.scene([asset], None, as_labels=True).values[..., 0], indices)


def test_bands_by_name_and_number_in_the_order_asked_for(tmp_path: Path, child: DecodeChild) -> None:
    values = smooth(32, 32, 4, "uint16", top=3000)
    path = write_scene(tmp_path / "bands.tif", values)
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("blue", "green", "red", "nir")
    found = child.scene([Asset(str(path))], None, bands=("nir", "1", "Red"))
    np.testing.assert_array_equal(found.values, values[..., [3, 0, 2]])
    with pytest.raises(DecodeError, match=r"no band 'swir': the scene has 4 \(blue, green, red, nir\).*--bands"):
        child.scene([Asset(str(path))], None, bands=("swir",))
    with pytest.raises(DecodeError, match="4 bands of uint16, the network takes 3 of uint8: choose with --bands 1,2,3"):
        child.scene([Asset(str(path))], None, takes=(3, True))
    with pytest.raises(DecodeError, match="--scaling"):
        child.scene([Asset(str(path))], None, bands=("1", "2", "3"), takes=(3, True))


def test_files_of_one_scene_are_brought_to_the_finest_grid(tmp_path: Path, child: DecodeChild) -> None:
    fine, coarse = smooth(64, 64, 1, "uint16"), smooth(32, 32, 1, "uint16", seed=1)
    there = UTM * Affine.scale(2)
    assets = [
        Asset(str(write_scene(tmp_path / "b8.tif", coarse, transform=there)), 1, "swir"),
        Asset(str(write_scene(tmp_path / "b4.tif", fine)), 1, "red"),
    ]
    header = child.scene_header(assets)
    assert (header.width, header.height, header.bands) == (64, 64, 2) and header.band_names == ("swir", "red")
    assert header.resampled == (assets[0].uri,)
    found = child.scene(assets, (10, 20, 30, 40), resampling="nearest")
    np.testing.assert_array_equal(found.values[..., 1], fine[20:60, 10:40, 0])
    np.testing.assert_array_equal(found.values[..., 0], coarse[..., 0].repeat(2, 0).repeat(2, 1)[20:60, 10:40])
    whole = child.scene(assets, None).values  # bilinear: a window is the same part of the whole, no seam at its border
    np.testing.assert_array_equal(child.scene(assets, (10, 20, 30, 40)).values, whole[20:60, 10:40])
    other = Asset(str(write_scene(tmp_path / "far.tif", fine, transform=Affine.translation(9000, 0) * UTM)))
    with pytest.raises(DecodeError, match="cover different areas"):
        child.scene_header([assets[1], other])


def test_labels_on_another_grid_are_brought_to_the_pictures(tmp_path: Path, child: DecodeChild) -> None:
    labels = (smooth(40, 40, 1)[..., 0] % 3).astype(np.uint8)
    path = write_scene(tmp_path / "labels.tif", labels, transform=UTM * Affine.translation(16, 8))
    grid = Grid("EPSG:32618", tuple(UTM)[:6], 64, 64)
    found = child.scene([Asset(str(path))], (0, 0, 64, 64), onto=grid, as_labels=True)
    np.testing.assert_array_equal(found.values[8:48, 16:56, 0], labels)
    assert found.valid is not None and found.valid[8:48, 16:56].all() and found.valid.sum() == 1600
    bare = write_scene(tmp_path / "bare.tif", labels, crs=None, transform=Affine.identity())
    with pytest.raises(DecodeError, match="40x40 for a picture of 64x64"):
        child.scene([Asset(str(bare))], None, onto=grid, as_labels=True)


def test_what_cannot_be_read_says_why(tmp_path: Path, child: DecodeChild) -> None:
    path = write_scene(tmp_path / "whole.tif", smooth(300, 300, 1, "uint16"), compress="deflate")
    with pytest.raises(DecodeError, match="complex"):
        child.scene_header([Asset(str(write_scene(tmp_path / "c.tif", np.ones((8, 8), np.complex64), tiled=False)))])
    with pytest.raises(TooLarge, match="90000 pixels"):
        child.scene([Asset(str(path))], None, max_pixels=1000)
    with pytest.raises(DecodeError, match="outside of the scene of 300x300"):
        child.scene([Asset(str(path))], (290, 0, 20, 20))
    with pytest.raises(DecodeError, match="scenes are read from disk, s3"):
        child.scene_header([Asset("memory://a.tif")])
    broken = tmp_path / "broken.tif"
    data = bytearray(path.read_bytes())
    with rasterio.open(path) as file:
        at = int(file.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    data[at : at + 200] = os.urandom(200)
    broken.write_bytes(data)
    assert child.scene([Asset(str(broken))], (0, 0, 128, 128)).values.shape == (128, 128, 1)
    with pytest.raises(DecodeError, match="IReadBlock failed|inflate|Decoding"):
        child.scene([Asset(str(broken))], (128, 128, 64, 64))
    assert child.scene([Asset(str(broken))], (256, 256, 44, 44)).values.shape == (44, 44, 1)


def test_every_real_scene_is_read(child: DecodeChild, data_dir: Path) -> None:
    paths = sorted((data_dir / "geotiff").glob("*.tif"))
    assert len(paths) >= 20
    for path in paths:
        header = child.scene_header([Asset(str(path))])
        window = (0, 0, min(256, header.width), min(256, header.height))
        found = child.scene([Asset(str(path))], window)
        assert found.values.shape == (window[3], window[2], header.bands) and str(found.values.dtype) == header.dtype


class _Ranges(http.server.BaseHTTPRequestHandler):
    """Serves one file by ranges and adds up what it sent."""

    protocol_version = "HTTP/1.1"
    data, sent = b"", 0

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if not self.path.endswith("/s.tif"):
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        first, last = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "bytes=0-")).groups()  # type: ignore
        part = self.data[int(first) : int(last or len(self.data) - 1) + 1]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Accept-Ranges", "bytes")
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{len(self.data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command == "GET":
            type(self).sent += len(part)
            self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        pass


def test_blocks_that_windows_share_are_fetched_once(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 64, (1024, 1024, 3)).astype(np.uint8)
    path = write_scene(tmp_path / "s.tif", values)
    with rasterio.open(path) as file:
        needed = sum(int(file.get_tag_item(f"BLOCK_SIZE_{x}_{y}", "TIFF", bidx=1)) for x in range(8) for y in range(8))
    _Ranges.data, _Ranges.sent = path.read_bytes(), 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Ranges)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asset = Asset(f"http://127.0.0.1:{server.server_address[1]}/s.tif")
    try:
        with DecodeChild() as own:  # of its own: another scene's files would take room
            for _, read in windows_of(1024, 1024, WindowOptions(256, 64)):
                found = own.scene([asset], read)
                x, y, width, height = read
                np.testing.assert_array_equal(found.values, values[y : y + height, x : x + width])
    finally:
        server.shutdown()
        server.server_close()
    assert needed < _Ranges.sent < 1.3 * needed
