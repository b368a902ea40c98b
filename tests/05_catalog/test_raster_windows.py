"""Scenes in the manifest: the grid of windows, and rows from headers alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scene_files import smooth, write_scene

from pipeline.catalog.manifest import region_key
from pipeline.catalog.manifest_writer import build_manifest
from pipeline.catalog.raster_windows import GRID_PX, WindowOptions, cut, windows_of
from pipeline.catalog.scene_config import SceneConfig
from pipeline.errors import InputError


@given(st.integers(1, 5000), st.sampled_from([32, 64, 256, 512]), st.sampled_from([0, 32, 64]))
def test_cores_tile_a_side_and_what_is_read_has_one_length(side: int, window: int, halo: int) -> None:
    parts = cut(side, window, halo)
    assert [at for at, _, _, _ in parts] == list(range(0, side, window))
    assert sum(length for _, length, _, _ in parts) == side
    assert len({read for _, _, _, read in parts}) == 1
    for at, length, read_at, read in parts:
        assert read_at % GRID_PX == 0 and read_at >= 0 and read_at + read <= side
        assert read_at <= max(0, at - halo) and read_at + read >= min(side, at + length + halo)


def test_windows_go_row_by_row() -> None:
    cores = [core for core, _ in windows_of(70, 40, WindowOptions(32, 0))]
    assert cores == [(0, 0, 32, 32), (32, 0, 32, 32), (64, 0, 6, 32), (0, 32, 32, 8), (32, 32, 32, 8), (64, 32, 6, 8)]


def test_a_scene_is_a_row_for_each_window(tmp_path: Path) -> None:
    write_scene(tmp_path / "c" / "large.tif", smooth(300, 200))
    write_scene(tmp_path / "c" / "small.tif", smooth(60, 64))
    (tmp_path / "c" / "torn.tif").write_bytes(b"II*\0 nothing")
    options = SceneConfig(window_px=128, halo_px=32)
    made = build_manifest(str(tmp_path / "c"), str(tmp_path / "m"), scenes=options)
    rows = made.table().to_pylist()
    assert [row["path"] for row in rows] == ["large.tif"] * 6 + ["small.tif", "torn.tif"]
    assert rows[1]["window"] == {"x": 128, "y": 0, "width": 72, "height": 128}
    assert rows[1]["read_window"] == {"x": 0, "y": 0, "width": 200, "height": 204}  # 192, and what ends with the scene
    assert rows[1]["region_key"] == region_key("large.tif", (128, 0, 72, 128)) and rows[1]["scene_resolution"] == 10
    assert rows[6]["window"] is None and rows[6]["scene_width"] == 64 and rows[7]["scene_width"] is None
    assert made.scenes["kinds"] == {"3 uint8": 2} and made.scenes["unreadable"] == 1
    assert made.summary().startswith("8 windows of 3 scenes") and "torn.tif" in made.summary()
    other = build_manifest(str(tmp_path / "c"), str(tmp_path / "n"), scenes=SceneConfig(window_px=128, halo_px=0))
    assert other.fingerprint != made.fingerprint
    whole = build_manifest(str(tmp_path / "c"), str(tmp_path / "w"), whole_scenes=True)
    assert whole.num_rows == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window_px": 100}, "--window-px out of range"),
        ({"halo_px": 20}, "--halo-px out of range"),
        ({"window_px": 256, "halo_px": 128}, "--halo-px of half a window"),
    ],
)
def test_windows_that_make_no_sense(options: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        _ = SceneConfig(**options).window_options
    assert SceneConfig(window_px=64).window_options.halo_px == 0  # a default gives way to the window that was asked for
