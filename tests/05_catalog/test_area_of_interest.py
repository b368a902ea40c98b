"""The area of interest by itself: which pixels of a scene it holds, in any crs, across the date line, at the poles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pyproj
import pytest
import rasterio
import shapely
from rasterio.features import geometry_mask
from rasterio.transform import Affine

from pipeline.catalog.area_of_interest import AreaOfInterest, read_area
from pipeline.decode.raster_header import RasterHeader
from pipeline.errors import InputError

SIDE = 100


def scene(crs: str | None, *transform: float) -> RasterHeader:
    return RasterHeader(
        width=SIDE,
        height=SIDE,
        bands=1,
        dtype="uint8",
        band_names=(None,),
        crs=crs,
        transform=transform,
        block=(SIDE, SIDE),
        nodata=None,
        georeference="transform" if crs else "none",
        scales=(1.0,),
        offsets=(0.0,),
    )


def held(area: AreaOfInterest, header: RasterHeader) -> np.ndarray:
    """Pixels of a scene that lie within, from the four windows of it; a window that is left out holds none."""
    half = SIDE // 2
    windows = [((x, y, half, half), (x, y, half, half)) for y in (0, half) for x in (0, half)]
    found = np.zeros((SIDE, SIDE), bool)
    for ((x, y, _, _), _), part in zip(windows, area.parts(header, windows), strict=True):
        inside = np.full((half, half), part is None)
        if isinstance(part, bytes):
            inside = geometry_mask(
                [shapely.from_wkb(part)], (half, half), Affine.translation(x, y), invert=True, all_touched=False
            )
        found[y : y + half, x : x + half] = inside
    return found


def degrees(header: RasterHeader) -> tuple[np.ndarray, np.ndarray]:
    """Longitude and latitude of each pixel's centre."""
    columns, rows = np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5)
    assert header.transform is not None
    x, y = Affine(*header.transform) @ (columns, rows)
    return pyproj.Transformer.from_crs(header.crs, "EPSG:4326", always_xy=True).transform(x, y)


SCENES = {
    "utm": scene("EPSG:32618", 1000.0, 0, 450_000.0, 0, -1000.0, 4_500_000.0),
    "rotated": scene("EPSG:32618", 700.0, 700.0, 450_000.0, 700.0, -700.0, 4_500_000.0),
    "beside the date line": scene("EPSG:32760", 3000.0, 0, 650_000.0, 0, -3000.0, 8_000_000.0),
    "degrees past 180": scene("EPSG:4326", 0.1, 0, 175.0, 0, -0.1, -10.0),
    "the earth from 0 to 360": scene("EPSG:4326", 3.6, 0, 0.0, 0, -1.8, 90.0),
    "another datum past 180": scene("EPSG:4269", 0.1, 0, 175.0, 0, -0.1, 20.0),
    "the south pole": scene("EPSG:3031", 20_000.0, 0, -700_000.0, 0, -20_000.0, 1_200_000.0),
    "the north pole": scene(
        "EPSG:3413", 20_000.0, 0, -1_003_000.0, 0, -20_000.0, 1_000_000.0
    ),  # no centre on a meridian
    "Mercator": scene("EPSG:3857", 400_000.0, 0, -20_000_000.0, 0, -400_000.0, 20_000_000.0),
}
BOXES = {
    "the earth": (-180, -90, 180, 90),
    "a hemisphere": (-180, 0, 180, 90),
    "the other": (-180, -90, 180, 0),
    "a continent": (-170, 10, -30, 80),
    "across the date line": (170, -40, -178, 20),
    "past 180": (178, -40, 190, 20),
    "the south": (-180, -90, 180, -60),
    "a quarter": (-90, -90, 0, 90),
    "a part of a state": (-75.3, 40.0, -74.6, 40.4),
}


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
@pytest.mark.parametrize("header", SCENES.values(), ids=SCENES)
def test_an_area_holds_what_its_degrees_say_of_each_pixel(
    header: RasterHeader, box: tuple[float, float, float, float]
) -> None:
    """Pixel by pixel: the area moved to the scene equals the pixels moved to degrees."""
    west, south, east, north = box
    longitude, latitude = degrees(header)
    expected = ((longitude - west) % 360 <= ((east - west) % 360 or 360)) & (south <= latitude) & (latitude <= north)
    found = held(read_area(",".join(map(str, box))), header)
    assert (found != expected).mean() <= 0.002, f"{found.mean():.3f} of the scene in place of {expected.mean():.3f}"


@pytest.mark.parametrize("crs", ["EPSG:6933", "EPSG:3857"])
def test_the_earth_in_metres_holds_every_scene(crs: str) -> None:
    area = read_area(f"-17000000,-7000000,17000000,7000000;{crs}")
    assert held(area, SCENES["utm"]).all() and held(area, SCENES["rotated"]).all()


def test_a_box_in_the_crs_of_the_scene_is_exact() -> None:
    found = held(read_area("460000,4430000,480000,4490000; EPSG:32618"), SCENES["utm"])
    expected = np.zeros((SIDE, SIDE), bool)
    expected[10:70, 10:30] = True
    np.testing.assert_array_equal(found, expected)


def test_a_scene_without_a_place_meets_nothing() -> None:
    assert not held(read_area("-180,-90,180,90"), scene(None, 1.0, 0, 0, 0, 1.0, 0)).any()


@pytest.mark.parametrize("suffix", [".geojson", ".gpkg", ".shp", ".fgb", ".parquet"])
def test_every_kind_of_file_is_the_same_area(tmp_path: Path, suffix: str) -> None:
    """Real scene, an area around its middle in the scene's crs; GeoJSON is in degrees by its standard."""
    area = shapely.box(460_000, 4_430_000, 480_000, 4_490_000)
    frame = geopandas.GeoDataFrame({"name": ["a"]}, geometry=[area], crs="EPSG:32618")
    path = str(tmp_path / f"area{suffix}")
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        (frame.to_crs("EPSG:4326") if suffix == ".geojson" else frame).to_file(path)
    expected = held(read_area("460000,4430000,480000,4490000;EPSG:32618"), SCENES["utm"])
    assert (held(read_area(path), SCENES["utm"]) != expected).mean() <= (0.002 if suffix == ".geojson" else 0)


def test_a_fingerprint_is_of_the_area_not_of_its_file(tmp_path: Path) -> None:
    area = shapely.box(-75, 40, -74, 41)
    geopandas.GeoDataFrame(geometry=[area], crs="EPSG:4326").to_file(tmp_path / "one.geojson")
    geopandas.GeoDataFrame(geometry=[area.reverse()], crs="EPSG:4326").to_file(tmp_path / "two.gpkg")
    one, two, box = (
        read_area(text).fingerprint
        for text in (str(tmp_path / "one.geojson"), str(tmp_path / "two.gpkg"), "-75,40,-74,41")
    )
    assert one == two == box and len(box) == 32
    assert read_area("-75,40,-74,42").fingerprint != box
    assert read_area("-75,40,-74,41;EPSG:4269").fingerprint != box


def test_a_real_scene_lies_within_its_own_bounds(data_dir: Path) -> None:
    with rasterio.open(data_dir / "geotiff" / "rio-tiler__red.tif") as file:
        window = ((0, 0, file.width, file.height),) * 2
        bounds = ",".join(str(side) for side in file.bounds)
        header = replace(scene(str(file.crs), *tuple(file.transform)[:6]), width=file.width, height=file.height)
    assert read_area(f"{bounds};{header.crs}").parts(header, [window]) == [None]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2,3,4;EPSG:nothing", "crs that is not known"),
        ("3,2,1,4;EPSG:32618", "is no box.*west,south,east,north;CRS"),
        ("0,nan,1,2;EPSG:32618", "is no box"),
        ("-10,50,10,40", "is no box"),
        ("broken.geojson", "cannot be read"),
        ("empty.geojson", "is empty"),
        ("points.geojson", "holds no polygon.*found Point"),
    ],
)
def test_what_is_no_area_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.geojson").write_text("{")
    Path("empty.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    geopandas.GeoDataFrame(geometry=[shapely.Point(1, 2)], crs="EPSG:4326").to_file("points.geojson")
    with pytest.raises(InputError, match=words):
        read_area(text)
