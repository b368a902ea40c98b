"""Areas in square metres beside pyproj's geodesic polygons; where they cannot be known, the reason."""

from __future__ import annotations

import numpy as np
import pyproj
import pytest
from rasterio.transform import Affine

from pipeline.metrics.areas import class_areas_m2
from pipeline.reading.pixels import Place


def geodesic(transform: Affine, height: int, width: int) -> float:
    """The area inside the border of a grid, followed pixel by pixel."""
    top = [(x, 0) for x in range(width)]
    right = [(width, y) for y in range(height)]
    bottom = [(x, height) for x in range(width, 0, -1)]
    left = [(0, y) for y in range(height, 0, -1)]
    longitudes, latitudes = zip(*(transform * corner for corner in top + right + bottom + left), strict=True)
    return abs(pyproj.Geod(ellps="WGS84").polygon_area_perimeter(longitudes, latitudes)[0])


@pytest.mark.parametrize(
    "transform",
    [
        Affine(0.01, 0, 8.0, 0, -0.01, 47.0),
        Affine(0.01, 0, 20.0, 0, -0.01, 88.9),
        Affine(0.05, 0, 178.0, 0, -0.05, -60.0),  # across the date line
        Affine(0.01, 0, -70.0, 0, 0.01, -1.0),  # south to north
        Affine.translation(10, 60) * Affine.rotation(30) * Affine.scale(0.01, -0.01),
        Affine(0.01, 0.002, 10, 0, -0.01, 60),  # sheared
    ],
)
def test_geographic_areas_are_geodesic(transform: Affine) -> None:
    class_map = np.zeros((80, 100), np.uint8)
    class_map[:, 50:] = 1
    class_map[:4] = 255
    place = Place("EPSG:4326", tuple(transform)[:6], "transform")
    areas, reason = class_areas_m2(class_map, place, 3)
    assert areas is not None and reason is None and areas[2] == 0
    expected = geodesic(transform * Affine.translation(0, 4), 76, 100)
    assert sum(areas) == pytest.approx(expected, rel=1e-3)
    assert areas[0] == pytest.approx(geodesic(transform * Affine.translation(0, 4), 76, 50), rel=1e-3)


def test_projected_areas_are_by_the_unit() -> None:
    class_map = np.zeros((10, 10), np.uint8)
    rotated = tuple(Affine.rotation(20) * Affine.scale(10, -10))[:6]
    assert class_areas_m2(class_map, Place("EPSG:32618", rotated, "transform"), 1)[0] == pytest.approx([10_000])
    feet = class_areas_m2(class_map, Place("EPSG:2263", (1.0, 0, 0, 0, -1.0, 0), "transform"), 1)[0]
    assert feet == pytest.approx([100 * (1200 / 3937) ** 2])


def test_no_area_is_guessed() -> None:
    nothing = np.zeros((4, 4), np.uint8)
    assert class_areas_m2(nothing, Place(None, None, "none"), 1) == (None, "no crs")
    assert "ground control points" in str(class_areas_m2(nothing, Place("EPSG:4326", None, "gcps"), 1)[1])
    assert class_areas_m2(nothing, Place("EPSG:4326", None, "none"), 1) == (None, "no transform")
