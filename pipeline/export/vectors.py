"""Polygons of a scene with class, area and confidence, as GeoParquet 1.1 or GeoJSON (RFC 7946)."""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.errors import InputError
from pipeline.export.config import ExportConfig
from pipeline.export.polygons import Traced, trace
from pipeline.export.scene import Scene

_STEP_PX = 16  # a long edge along a parallel is no geodesic: it is measured in steps


def write_vectors(scene: Scene, output: str, config: ExportConfig) -> list[str]:
    """`OUTPUT/<name>.parquet` or `.geojson`; its URI. Raises InputError where options ask for metres without a crs."""
    frame = polygons_frame(scene, config)
    suffix = "parquet" if config.format == "geoparquet" else "geojson"
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, f"polygons.{suffix}")
        if suffix == "parquet":
            frame.to_parquet(local, write_covering_bbox=True, schema_version="1.1.0", compression="zstd")
        else:
            frame.to_file(local, driver="GeoJSON", engine="pyogrio", RFC7946="YES" if frame.crs else "NO")
        with open(local, "rb") as file:
            data = file.read()
    uri = storage.join(output, f"{scene.name}.{suffix}")
    storage.write_bytes(uri, data)
    return [uri]


def polygons_frame(scene: Scene, config: ExportConfig) -> Any:
    """A GeoDataFrame: class_id, class, area_m2 (null without a crs), mean_confidence, scene, geometry."""
    import geopandas
    import shapely
    from rasterio.transform import Affine

    names = scene.label_set.names
    wanted = {names.index(name) for name in config.class_names} or set(range(len(names)))
    placed = scene.crs is not None and scene.transform is not None
    if not placed and (config.min_area_m2 or config.simplify_m or config.crs):
        raise InputError(
            "a scene without a crs has no metres",
            where=scene.path,
            todo="leave --min-area-m2, --simplify-m and --crs out",
        )
    traced = trace(scene.windows(), wanted)
    geometries = traced.geometries
    areas = np.full(len(geometries), np.nan)
    if placed and len(geometries):
        assert scene.transform is not None and scene.crs is not None
        matrix = Affine(*scene.transform)
        areas = _areas_m2(traced, matrix, scene.crs)
        keep = areas >= config.min_area_m2
        traced = Traced(geometries[keep], traced.classes[keep], traced.confidence[keep])
        areas, geometries = areas[keep], traced.geometries
        if config.simplify_m and len(geometries):
            pixel_m = float(np.sqrt(areas.sum() / shapely.area(geometries).sum()))
            geometries = shapely.coverage_simplify(geometries, config.simplify_m / pixel_m)
        geometries = _moved(geometries, matrix)
    frame = geopandas.GeoDataFrame(
        {
            "class_id": traced.classes,
            "class": [names[k] for k in traced.classes],
            "area_m2": areas,
            "mean_confidence": traced.confidence,
            "scene": [scene.path] * len(geometries),
        },
        geometry=geopandas.GeoSeries(list(geometries), crs=scene.crs if placed else None),
    )
    target = config.crs or ("EPSG:4326" if config.format == "geojson" else None)
    return frame.to_crs(target) if placed and target else frame


def _moved(geometries: np.ndarray, matrix: Any) -> np.ndarray:
    """From px of the scene into its crs."""
    import shapely

    a, b, c, d, e, f = tuple(matrix)[:6]

    def move(points: np.ndarray) -> np.ndarray:
        x, y = points[:, 0], points[:, 1]
        return np.column_stack([a * x + b * y + c, d * x + e * y + f])

    return np.asarray(shapely.transform(geometries, move))


def _areas_m2(traced: Traced, matrix: Any, crs_text: str) -> np.ndarray:
    """By the unit of a projected crs; geodesic, edges in short steps, of a geographic one; nan of another."""
    import pyproj
    import shapely

    crs = pyproj.CRS.from_user_input(crs_text)
    if crs.is_projected:
        unit_m = float(crs.axis_info[0].unit_conversion_factor)
        return np.asarray(shapely.area(traced.geometries) * abs(matrix.determinant) * unit_m**2)
    if not crs.is_geographic:
        return np.full(len(traced.geometries), np.nan)
    geod: Any = crs.get_geod()
    degrees = float(crs.axis_info[0].unit_conversion_factor) / (np.pi / 180)
    stepped = shapely.transform(
        _moved(shapely.segmentize(traced.geometries, _STEP_PX), matrix), lambda points: points * degrees
    )
    return np.array([abs(geod.geometry_area_perimeter(shapely.orient_polygons(one))[0]) for one in stepped])
