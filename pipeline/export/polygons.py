"""Class maps cut into windows -> polygons that know no windows: a field that crosses four of them is one polygon.

Each window is traced by itself (rasterio.features.shapes, pixels that share an edge belong together) in whole pixels of
the scene, so coordinates are exact. Pieces of a class that share an edge along a window's border are then united; the
others never meet again. The result is that of tracing the whole scene at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.export.scene import WindowMap


@dataclass(frozen=True)
class Traced:
    """Polygons in px of the scene (shapely, N), their class (N) and mean confidence (N, nan where it was not kept)."""

    geometries: np.ndarray
    classes: np.ndarray
    confidence: np.ndarray


def trace(windows: Iterable[WindowMap], classes: set[int]) -> Traced:
    """The polygons of `classes` in the windows of one scene."""
    import shapely

    pieces: list[Any] = []
    kinds: list[int] = []
    sums: list[tuple[float, int]] = []  # of confidence, and how many pixels
    borders: list[bool] = []
    for window in windows:
        found, of = _trace_window(window, classes)
        height, width = window.class_map.shape
        inner = shapely.box(window.x + 0.5, window.y + 0.5, window.x + width - 0.5, window.y + height - 0.5)
        boxes = shapely.bounds(found) if found else np.zeros((0, 4))
        low, high = np.array(inner.bounds[:2]), np.array(inner.bounds[2:])
        touching: Any = (boxes[:, :2] < low).any(axis=1) | (boxes[:, 2:] > high).any(axis=1)
        borders += touching.tolist()
        pieces += found
        kinds += of
        sums += _confidence_sums(window, found)
    groups = _united(np.array(pieces, object), np.array(kinds, np.int64), np.array(borders, bool))
    geometries = [
        pieces[group[0]] if len(group) == 1 else shapely.union_all([pieces[i] for i in group]) for group in groups
    ]
    geometries = [
        shapely.simplify(geometry, 0) if len(group) > 1 else geometry
        for geometry, group in zip(geometries, groups, strict=True)
    ]
    totals = np.array([[sum(sums[i][0] for i in group), sum(sums[i][1] for i in group)] for group in groups])
    totals = totals.reshape(-1, 2)
    with np.errstate(invalid="ignore"):
        confidence = totals[:, 0] / totals[:, 1] / 255
    return Traced(np.array(geometries, object), np.array([kinds[group[0]] for group in groups], np.int64), confidence)


def _trace_window(window: WindowMap, classes: set[int]) -> tuple[list[Any], list[int]]:
    import shapely.geometry
    from rasterio.features import shapes
    from rasterio.transform import Affine

    class_map = window.class_map
    if class_map.dtype == np.uint16:
        class_map = class_map.astype(np.int32)  # of which GDAL's polygonizer has a version for any value
    wanted = np.isin(window.class_map, sorted(classes))
    found = shapes(class_map, mask=wanted, connectivity=4, transform=Affine.translation(window.x, window.y))
    both = [(shapely.geometry.shape(geometry), int(value)) for geometry, value in found]
    return [geometry for geometry, _ in both], [value for _, value in both]


def _confidence_sums(window: WindowMap, pieces: list[Any]) -> list[tuple[float, int]]:
    """The sum of confidence (0 to 255) over each piece, and its pixels; nothing where it was not kept."""
    if window.confidence is None or not pieces:
        return [(np.nan, 1)] * len(pieces)
    from rasterio.features import rasterize
    from rasterio.transform import Affine

    size, place = window.class_map.shape, Affine.translation(window.x, window.y)
    zones = rasterize(list(zip(pieces, range(1, len(pieces) + 1), strict=True)), size, transform=place, dtype="int32")
    sums = np.bincount(zones.ravel(), weights=window.confidence.ravel(), minlength=len(pieces) + 1)
    counts = np.bincount(zones.ravel(), minlength=len(pieces) + 1)
    return list(zip(sums[1:].tolist(), counts[1:].tolist(), strict=True))


def _united(pieces: np.ndarray, kinds: np.ndarray, borders: np.ndarray) -> list[list[int]]:
    """Which pieces belong together: groups of indices, those of a group sharing edges one after the other."""
    import shapely

    parent = np.arange(len(pieces))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    at = np.flatnonzero(borders)
    if at.size:
        one, other = shapely.STRtree(pieces[at]).query(pieces[at], predicate="intersects")
        one, other = at[one], at[other]
        pairs = (one < other) & (kinds[one] == kinds[other])
        one, other = one[pairs], other[pairs]
        shared = shapely.length(shapely.intersection(pieces[one], pieces[other])) > 0  # an edge, not a corner
        for a, b in zip(one[shared].tolist(), other[shared].tolist(), strict=True):
            parent[root(b)] = root(a)
    groups: dict[int, list[int]] = {}
    for i in range(len(pieces)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())
