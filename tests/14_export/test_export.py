"""Exports through the job: maps equal to their source to the pixel, polygons that know no windows, resumption."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco
from rasterio.transform import Affine
from rio_cogeo.cogeo import cog_validate
from scene_files import UTM

from pipeline.catalog import schema
from pipeline.errors import InputError, PipelineError
from pipeline.export.config import ExportConfig
from pipeline.export.job import MARKS, export
from pipeline.export.polygons import trace
from pipeline.export.scene import WindowMap
from pipeline.labels import LabelSet
from pipeline.reading.scene_window import moved
from pipeline.tables.masks import encode_mask
from pipeline.tables.prediction_table import metadata

LABELS = LabelSet("land", ("field", "wood", "water"), ((200, 180, 60), (20, 90, 20), (30, 60, 200)))


def blotches(height: int, width: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    coarse = random.choice([0, 1, 2, 255], (height // 7 + 2, width // 7 + 2), p=[0.4, 0.3, 0.2, 0.1])
    return coarse.repeat(7, 0).repeat(7, 1)[:height, :width].astype(np.uint8)


def rows_of(path: str, class_map: np.ndarray, window: int, transform: Affine | None, crs: str | None) -> list[dict]:
    rows = []
    for y in range(0, class_map.shape[0], window):
        for x in range(0, class_map.shape[1], window):
            part = np.ascontiguousarray(class_map[y : y + window, x : x + window])
            rows.append(
                {
                    "region_id": 0,
                    "region_key": f"{path}{x}{y}",
                    "path": path,
                    "uri": path,
                    "window": {"x": x, "y": y, "width": part.shape[1], "height": part.shape[0]},
                    "scene_width": class_map.shape[1],
                    "scene_height": class_map.shape[0],
                    "height": part.shape[0],
                    "width": part.shape[1],
                    "status": "ok",
                    "mask": bytes(encode_mask(part)),
                    "mask_format": "raw",
                    "mask_dtype": "uint8",
                    "confidence": np.full(part.shape, 51, np.uint8).tobytes(),
                    "crs": crs,
                    "transform": None if transform is None else moved(tuple(transform)[:6], x, y),
                }
            )
    return rows


def predictions(folder: Path, rows: list[dict]) -> str:
    described = schema.predictions_schema(metadata=metadata(LABELS, "r", "m", "raw"))
    (folder / "predictions").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, described), folder / "predictions" / "ok-0.parquet", row_group_size=5)
    return str(folder)


def options(tmp_path: Path, kind: str, **more: object) -> ExportConfig:
    return ExportConfig(
        predictions=str(tmp_path / "p"), format=kind, output=str(tmp_path / kind), **{"runner": "processes"} | more
    )


def test_a_map_is_the_source_to_the_pixel(tmp_path: Path) -> None:
    north, tilted = blotches(300, 220), blotches(90, 130, seed=1)
    turned = Affine.translation(500_000, 4e6) * Affine.rotation(12) * Affine.scale(2, -2)
    rows = rows_of("a/north.tif", north, 128, UTM, "EPSG:32618") + rows_of(
        "tilted.tif", tilted, 64, turned, "EPSG:32618"
    )
    rows += rows_of("bare.tif", tilted, 64, None, None)
    predictions(tmp_path / "p", rows)
    assert export(options(tmp_path, "cog")).startswith("3 of 3 scenes as cog")
    for name, class_map, transform in (("a/north", north, UTM), ("tilted", tilted, turned), ("bare", tilted, None)):
        path = tmp_path / "cog" / "cog" / f"{name}.tif"
        assert cog_validate(str(path), quiet=True)[:2] == (True, [])
        with rasterio.open(path) as file:
            np.testing.assert_array_equal(file.read(1), class_map)
            assert (
                file.nodata == 255 and file.colormap(1)[1][:3] == LABELS.colors[1] and file.tags()["CLASS_2"] == "water"
            )
            assert transform is None or file.transform.almost_equals(transform)
            assert (file.crs is None) == (transform is None)
        with rasterio.open(path.with_name(f"{path.stem}.confidence.tif")) as file:
            assert set(np.unique(file.read(1))) == {51}
    item = json.loads((tmp_path / "cog" / "cog" / "a" / "north.json").read_text())
    assert item["properties"]["proj:code"] == "EPSG:32618" and item["properties"]["proj:shape"] == [300, 220]
    assert len(item["assets"]["classes"]["classification:classes"]) == 3 and -75.1 < item["bbox"][0] < -74.9
    assert not (tmp_path / "cog" / "cog" / "bare.json").exists()
    collection = json.loads((tmp_path / "cog" / "cog" / "collection.json").read_text())
    links = {link["href"] for link in collection["links"] if link["rel"] == "item"}
    assert links == {"./a/north.json", "./tilted.json"} and collection["type"] == "Collection"


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(3, 40), st.integers(3, 40), st.sampled_from([4, 7, 16]))
def test_polygons_know_no_windows(seed: int, height: int, width: int, window: int) -> None:
    class_map = np.random.default_rng(seed).choice([0, 1, 255], (height, width), p=[0.5, 0.4, 0.1]).astype(np.uint8)
    parts = [
        WindowMap(x, y, np.ascontiguousarray(class_map[y : y + window, x : x + window]), None)
        for y in range(0, height, window)
        for x in range(0, width, window)
    ]
    traced = trace(parts, {0, 1})
    whole = rasterio.features.shapes(class_map, mask=class_map < 255, connectivity=4)
    expected = sorted((int(value), shapely.normalize(shapely.geometry.shape(shape)).wkt) for shape, value in whole)
    found = sorted(
        (int(k), shapely.normalize(geometry).wkt) for k, geometry in zip(traced.classes, traced.geometries, strict=True)
    )
    assert len(found) == len(expected)
    for (k, ours), (of, theirs) in zip(sorted(found), sorted(expected), strict=True):
        assert k == of and (ours == theirs or shapely.equals(shapely.from_wkt(ours), shapely.from_wkt(theirs)))


def test_polygons_with_class_area_and_confidence(tmp_path: Path) -> None:
    class_map = np.ones((100, 120), np.uint8)
    class_map[20:80, 30:90] = 0  # a field over four windows, in a wood that is one polygon with a hole
    class_map[:3, :2] = 2
    predictions(tmp_path / "p", rows_of("s.tif", class_map, 64, UTM, "EPSG:32618"))
    export(options(tmp_path, "geoparquet", min_area_m2=700))
    frame = geopandas.read_parquet(tmp_path / "geoparquet" / "geoparquet" / "s.parquet")
    assert frame.crs.to_epsg() == 32618 and sorted(frame["class"]) == ["field", "wood"]
    field = frame[frame["class"] == "field"].iloc[0]
    assert field.area_m2 == 60 * 60 * 100 and field.geometry.equals(shapely.box(500_300, 4_499_200, 500_900, 4_499_800))
    assert field.mean_confidence == pytest.approx(0.2) and field.scene == "s.tif"
    assert len(frame[frame["class"] == "wood"].iloc[0].geometry.interiors) == 1
    import duckdb

    count = duckdb.connect().execute(
        f"select count(*) from '{tmp_path}/geoparquet/geoparquet/s.parquet' where bbox.xmin > 500200"
    )
    assert count.fetchall() == [(1,)]
    export(options(tmp_path, "geojson", classes="field,water"))
    text = json.loads((tmp_path / "geojson" / "geojson" / "s.geojson").read_text())
    assert {item["properties"]["class"] for item in text["features"]} == {"field", "water"}
    assert all(-75.1 < x < -74.9 for x, _ in text["features"][0]["geometry"]["coordinates"][0])


def test_geographic_polygons_have_geodesic_areas(tmp_path: Path) -> None:
    transform = Affine(0.01, 0, 10.0, 0, -0.01, 71.0)
    class_map = np.zeros((50, 200), np.uint8)
    predictions(tmp_path / "p", rows_of("n.tif", class_map, 64, transform, "EPSG:4326"))
    export(options(tmp_path, "geoparquet"))
    (area,) = geopandas.read_parquet(tmp_path / "geoparquet" / "geoparquet" / "n.parquet").area_m2
    from pipeline.metrics.areas import class_areas_m2
    from pipeline.reading.pixels import Place

    by_pixel, _ = class_areas_m2(class_map, Place("EPSG:4326", tuple(transform)[:6], "transform"), 1)
    assert by_pixel is not None and area == pytest.approx(by_pixel[0], rel=1e-4)


def test_pictures_and_coco(tmp_path: Path) -> None:
    class_map = blotches(70, 90)
    predictions(tmp_path / "p", rows_of("x.tif", class_map, 64, None, None))
    export(options(tmp_path, "png", grey=True))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "png" / "png" / "x.png")), class_map)
    export(options(tmp_path, "coco"))
    text = json.loads((tmp_path / "coco" / "coco" / "predictions.json").read_text())
    assert [category["name"] for category in text["categories"]] == list(LABELS.names)
    for annotation in text["annotations"]:
        assert annotation["area"] == coco.area(annotation["segmentation"])
        mask = coco.decode(annotation["segmentation"]).astype(bool)
        np.testing.assert_array_equal(mask, class_map == annotation["category_id"])
        assert annotation["bbox"] == coco.toBbox(annotation["segmentation"]).tolist()


def test_a_second_start_does_what_is_left(tmp_path: Path) -> None:
    rows = [row for i in range(4) for row in rows_of(f"{i}.tif", blotches(40, 40, i), 64, UTM, "EPSG:32618")]
    predictions(tmp_path / "p", rows)
    export(options(tmp_path, "png"))
    whole = {path.name: path.read_bytes() for path in (tmp_path / "png" / "png").iterdir()}
    (tmp_path / "png" / "_SUCCESS").unlink()
    marks = sorted((tmp_path / "png" / MARKS).iterdir())
    marks[0].unlink()
    lost = json.loads(marks[1].read_text())["files"][0]
    Path(lost).unlink()  # marked as done: not made again, so that what is left is seen to be done alone
    export(options(tmp_path, "png"))
    again = {path.name: path.read_bytes() for path in (tmp_path / "png" / "png").iterdir()}
    assert again == {name: data for name, data in whole.items() if name != Path(lost).name}
    assert export(options(tmp_path, "png")).startswith("complete: 4 of 4 scenes")
    with pytest.raises(InputError, match="grey"):
        export(options(tmp_path, "png", grey=True))


def test_one_bad_scene_stops_nothing(tmp_path: Path) -> None:
    rows = rows_of("good.tif", blotches(30, 30), 64, UTM, "EPSG:32618")
    rows += [
        row | {"status": "decode_error", "error": "torn", "mask": None}
        for row in rows_of("bad.tif", blotches(9, 9), 64, None, None)
    ]
    predictions(tmp_path / "p", rows)
    assert "1 of 2 scenes as cog, 1 not" in export(options(tmp_path, "cog"))
    assert "torn" in json.loads((tmp_path / "cog" / "failed.json").read_text())["bad.tif"]
    with pytest.raises(InputError, match="no 'filed'.*did you mean 'field'"):
        export(options(tmp_path, "geojson", classes="filed"))
    with pytest.raises(InputError, match="--crs is not known"):
        export(options(tmp_path, "geoparquet", crs="EPSG:1"))
    bare = tmp_path / "bare"
    predictions(bare / "p", rows_of("b.tif", blotches(9, 9), 64, None, None))
    with pytest.raises(PipelineError, match="none of 1 scenes.*a scene without a crs has no metres"):
        export(options(bare, "geoparquet", min_area_m2=10))
