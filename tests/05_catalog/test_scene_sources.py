"""Which scenes and which parts of them: areas of interest, STAC items, and what of them makes no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import shapely
from rasterio.transform import Affine
from scene_files import UTM, smooth, write_scene

from pipeline.catalog.manifest_writer import build_manifest
from pipeline.catalog.scene_config import SceneConfig
from pipeline.errors import InputError
from pipeline.reading.regions import RegionReader


def listed(source: Path, to: Path, **options: Any) -> list[dict[str, Any]]:
    return build_manifest(str(source), str(to), scenes=SceneConfig(**options)).table().to_pylist()


def test_only_windows_that_meet_the_area_and_only_its_pixels(tmp_path: Path) -> None:
    write_scene(tmp_path / "c" / "s.tif", smooth(256, 384))
    area = shapely.box(500_000 + 100 * 10, 4_500_000 - 130 * 10, 500_000 + 300 * 10, 4_500_000 - 20 * 10)
    frame = geopandas.GeoDataFrame(geometry=[area], crs="EPSG:32618").to_crs("EPSG:4326")  # not the scene's crs
    frame.to_file(tmp_path / "area.geojson")
    rows = listed(
        tmp_path / "c", tmp_path / "m", window_px=128, halo_px=32, area_of_interest=str(tmp_path / "area.geojson")
    )
    assert [(row["window"]["x"], row["window"]["y"]) for row in rows] == [
        (x, y) for y in (0, 128) for x in (0, 128, 256)
    ]
    found = np.zeros((256, 384), bool)
    for region in RegionReader().read(rows):
        assert region.pixels is not None and region.pixels.valid is not None
        window, valid = region.row["window"], region.pixels.valid[region.pixels.core_slices]
        found[window["y"] : window["y"] + valid.shape[0], window["x"] : window["x"] + valid.shape[1]] = valid
    expected = np.zeros_like(found)
    expected[20:130, 100:300] = True
    assert (found != expected).mean() < 0.002  # the border is bent by its way through degrees
    west = listed(tmp_path / "c", tmp_path / "n", window_px=128, area_of_interest="-75.001,40.64,-74.995,40.66")
    assert {row["window"]["x"] for row in west} == {0}


@pytest.mark.parametrize(
    ("area", "words"),
    [
        ("10,20,30", "no file of polygons and no box"),
        ("10,50,20,40", "is no box"),
        ("missing.geojson", "does not exist"),
        ("-10,0,-9,1", "1 scenes, none of which meets --area-of-interest"),
    ],
)
def test_areas_that_make_no_sense(tmp_path: Path, area: str, words: str) -> None:
    write_scene(tmp_path / "c" / "s.tif", smooth(64, 64))
    with pytest.raises(InputError, match=words):
        listed(tmp_path / "c", tmp_path / "m", area_of_interest=area)
    assert not (tmp_path / "m").exists() or not list((tmp_path / "m").iterdir())


def test_an_area_without_a_crs_is_refused(tmp_path: Path) -> None:
    write_scene(tmp_path / "c" / "s.tif", smooth(64, 64))
    geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 1, 1)]).to_file(tmp_path / "bare.shp")
    with pytest.raises(InputError, match="has no crs"):
        listed(tmp_path / "c", tmp_path / "m", area_of_interest=str(tmp_path / "bare.shp"))


def item(name: str, assets: dict[str, Any], **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "stac_version": "1.0.0", "id": name, "assets": assets, "properties": properties}


def test_assets_of_stac_items_are_one_stack(tmp_path: Path) -> None:
    bands = {name: smooth(64, 64, 1, "uint16", seed=i) for i, name in enumerate(("red", "nir"))}
    write_scene(tmp_path / "B04.tif", bands["red"])
    write_scene(tmp_path / "sub" / "B08.tif", bands["nir"][:32, :32], transform=UTM * Affine.scale(2))
    assets = {
        "B04": {"href": "./B04.tif", "type": "image/tiff", "eo:bands": [{"name": "B04", "common_name": "red"}]},
        "nir": {"href": str(tmp_path / "sub" / "B08.tif"), "type": "image/tiff"},
        "thumb": {"href": "t.jpg", "type": "image/jpeg", "roles": ["thumbnail"]},
    }
    good = item("b", assets, datetime="2024-05-01T10:00:00Z", **{"eo:cloud_cover": 12.5})
    search = {"type": "FeatureCollection", "features": [good, item("a", {"x": assets["thumb"]})]}
    (tmp_path / "search.json").write_text(json.dumps(search))
    (row,) = listed(tmp_path / "search.json", tmp_path / "m", assets="nir,red", resampling="nearest")
    assert (row["path"], row["acquired"], row["cloud_cover"]) == ("b", "2024-05-01T10:00:00Z", 12.5)
    assert [one["band"] for one in row["assets"]] == ["nir", "red"] and row["scene_width"] == 64
    (region,) = RegionReader().read([row])
    assert region.pixels is not None and region.pixels.shape == (64, 64, 2), region.error
    np.testing.assert_array_equal(region.pixels.values[..., 1], bands["red"][..., 0])
    with pytest.raises(InputError, match="no item has the assets swir.*B04, nir"):
        listed(tmp_path / "search.json", tmp_path / "n", assets="swir")
    with pytest.raises(InputError, match="items have several rasters.*--assets"):
        listed(tmp_path / "search.json", tmp_path / "n")
    with pytest.raises(InputError, match="--assets is for STAC items"):
        listed(tmp_path, tmp_path / "n", assets="red")


def test_a_static_catalogue_is_walked(tmp_path: Path) -> None:
    write_scene(tmp_path / "items" / "s.tif", smooth(64, 64))
    one = item("s", {"data": {"href": "s.tif", "type": "image/tiff; application=geotiff", "roles": ["data"]}})
    (tmp_path / "items" / "s.json").write_text(json.dumps(one))
    links = [{"rel": "item", "href": "./items/s.json"}, {"rel": "self", "href": "https://nowhere.test/c.json"}]
    (tmp_path / "catalog.json").write_text(json.dumps({"type": "Catalog", "links": links}))
    (row,) = listed(tmp_path / "catalog.json", tmp_path / "m")
    assert row["path"] == "s" and row["assets"] is None and row["uri"].endswith("items/s.tif")
    (tmp_path / "items" / "s.json").unlink()
    with pytest.raises(InputError, match="leads nowhere"):
        listed(tmp_path / "catalog.json", tmp_path / "n")


def test_items_as_they_are_published(tmp_path: Path, data_dir: Path) -> None:
    """Their files are out of reach here: the manifest has a row for each, which names its assets."""
    (row,) = listed(data_dir / "stac" / "eo-example-landsat8.json", tmp_path / "m", assets="B4,B3,B2")
    assert [one["band"] for one in row["assets"]] == ["B4", "B3", "B2"] and row["kind"] == "raster"
