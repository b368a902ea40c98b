"""Square metres of every class in a window: by the crs's unit where it is projected, geodesic where it is not.

A geographic pixel's area depends on its latitude alone, so it is computed once a row of pixels (pyproj.Geod on the
pixel's own quadrilateral); with a rotated or sheared transform once a pixel corner grid is needed, and is made.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from pipeline.reading.pixels import Place

Areas = tuple[list[float] | None, str | None]


def class_areas_m2(class_map: np.ndarray, place: Place, classes: int) -> Areas:
    """The area of each class in an H x W class map; or None, and why it cannot be known."""
    if place.georeference == "gcps":
        return None, "only ground control points: warp the scene first (gdalwarp)"
    if place.crs is None:
        return None, "no crs"
    if place.transform is None:
        return None, "no transform"
    kind, unit_m, geod = _about(place.crs)
    a, b, _, d, e, _ = place.transform
    if kind == "projected":
        pixel_m2 = abs(a * e - b * d) * unit_m**2
        return (_counts(class_map, classes) * pixel_m2).tolist(), None
    if kind != "geographic":
        return None, f"a {kind} crs has no areas"
    if b == 0 and d == 0:
        weights = _row_areas_m2(geod, place.transform, class_map.shape[0], unit_m)
        by_row = _counts_by_row(class_map, classes)
        return (weights @ by_row).tolist(), None
    weights = _pixel_areas_m2(geod, place.transform, class_map.shape, unit_m)
    flat = np.minimum(class_map.ravel(), classes)
    return np.bincount(flat, weights=weights.ravel(), minlength=classes + 1)[:classes].tolist(), None


@functools.lru_cache(64)
def _about(crs_text: str) -> tuple[str, float, Any]:
    """projected | geographic | another kind; metres (or radians) of a unit; the ellipsoid."""
    import pyproj

    try:
        crs = pyproj.CRS.from_user_input(crs_text)
    except pyproj.exceptions.CRSError:
        return "unknown", 1.0, None
    factor = float(crs.axis_info[0].unit_conversion_factor) if crs.axis_info else 1.0
    kind = "projected" if crs.is_projected else "geographic" if crs.is_geographic else "local"
    return kind, factor, crs.get_geod()


def _row_areas_m2(geod: Any, transform: tuple[float, ...], rows: int, unit_rad: float) -> np.ndarray:
    """Of one pixel in each row: the closed formula for the zone between two parallels on the ellipsoid."""
    a, _, _, _, e, f = transform
    edges = np.clip((f + e * np.arange(rows + 1)) * unit_rad, -np.pi / 2, np.pi / 2)
    zone = _zone_m2(geod, edges)
    return np.abs(np.diff(zone)) * abs(a) * unit_rad


def _zone_m2(geod: Any, latitude_rad: np.ndarray) -> np.ndarray:
    """Area between the equator and each latitude, for one radian of longitude (Snyder 1987, equation 3-12, halved)."""
    b, e2 = geod.b, geod.es
    sine = np.sin(latitude_rad)
    if e2 == 0:
        return np.asarray(geod.a**2 * sine)
    e = np.sqrt(e2)
    return np.asarray(b**2 / 2 * (sine / (1 - e2 * sine**2) + np.arctanh(e * sine) / e))


def _pixel_areas_m2(geod: Any, transform: tuple[float, ...], size: tuple[int, ...], unit_rad: float) -> np.ndarray:
    """Of each pixel of a rotated or sheared grid: its parallelogram in degrees, times a square degree's area there."""
    a, b, _, d, e, f = transform
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]] + 0.5
    latitude = (f + d * columns + e * rows) * unit_rad
    sine2 = np.sin(latitude) ** 2
    # dA = M N cos(latitude) d(latitude) d(longitude), with the radii of curvature M and N (Snyder 1987, 4-18 to 4-20)
    per_rad2 = geod.a**2 * (1 - geod.es) * np.cos(latitude) / (1 - geod.es * sine2) ** 2
    return np.asarray(per_rad2 * abs(a * e - b * d) * unit_rad**2)


def _counts(class_map: np.ndarray, classes: int) -> np.ndarray:
    return np.bincount(np.minimum(class_map.ravel(), classes), minlength=classes + 1)[:classes]


def _counts_by_row(class_map: np.ndarray, classes: int) -> np.ndarray:
    """H x K pixels."""
    rows = np.arange(class_map.shape[0], dtype=np.int64)[:, None] * (classes + 1)
    flat = (rows + np.minimum(class_map, classes)).ravel()
    counts = np.bincount(flat, minlength=class_map.shape[0] * (classes + 1))
    return counts.reshape(class_map.shape[0], classes + 1)[:, :classes]
