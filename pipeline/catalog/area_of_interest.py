"""The part of the earth that is asked for: which windows of a scene meet it, and what of them lies within."""

from __future__ import annotations

import functools
import os
import posixpath
import tempfile
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.decode.raster_header import RasterHeader
from pipeline.errors import InputError

_STEPS = 64  # a long edge is no straight line in another crs
_SUFFIXES = (".geojson", ".json", ".gpkg", ".fgb", ".shp", ".zip")
Rectangle = tuple[int, int, int, int]


@dataclass(frozen=True)
class AreaOfInterest:
    """A geometry (WKB) in a crs."""

    wkb: bytes
    crs: str

    def parts(self, header: RasterHeader, windows: list[tuple[Rectangle, Rectangle]]) -> list[Any]:
        """Of each window (core and what is read; x, y, width, height in px of the scene): False where its core does not
        meet the area, None where all that is read lies within, else what of it lies within, as WKB in px of the scene.

        Halo and all, so that neighbours see the same. A scene whose place is not known meets nothing.
        """
        import shapely
        from rasterio.transform import Affine

        if header.crs is None or header.transform is None or header.georeference != "transform":
            return [False] * len(windows)
        back = ~Affine(*header.transform)
        a, b, c, d, e, f = tuple(back)[:6]

        def move(points: Any) -> Any:
            import numpy as np

            x, y = points[:, 0], points[:, 1]
            return np.column_stack([a * x + b * y + c, d * x + e * y + f])

        area = shapely.make_valid(shapely.transform(shapely.from_wkb(_in_crs(self.wkb, self.crs, header.crs)), move))
        shapely.prepare(area)
        found: list[Any] = []
        for core, read in windows:
            inner, outer = (shapely.box(x, y, x + width, y + height) for x, y, width, height in (core, read))
            if shapely.contains(area, outer):
                found.append(None)
            elif shapely.intersection(area, inner).area > 0:
                found.append(shapely.to_wkb(shapely.intersection(area, outer)))
            else:
                found.append(False)
        return found


def read_area(text: str) -> AreaOfInterest:
    """A file (GeoJSON, GeoPackage, shapefile, GeoParquet, any crs) or `west,south,east,north` in degrees (EPSG:4326).

    Raises InputError for what is neither, is empty, or has no crs.
    """
    import shapely

    try:
        west, south, east, north = (float(number) for number in text.split(","))
    except ValueError:
        return _read_file(text)
    if not (-90 <= south < north <= 90 and -180 <= west <= 360 and -180 <= east <= 360):
        raise InputError("--area-of-interest is no box", found=text, expected="west,south,east,north in degrees")
    if west > east:  # across the date line
        box = shapely.union(shapely.box(west, south, 180, north), shapely.box(-180, south, east, north))
    else:
        box = shapely.box(west, south, east, north)
    return AreaOfInterest(shapely.to_wkb(box), "EPSG:4326")


def _read_file(uri: str) -> AreaOfInterest:
    import geopandas
    import shapely

    suffix = posixpath.splitext(uri.lower())[1]
    if suffix not in (*_SUFFIXES, ".parquet"):
        raise InputError(
            "--area-of-interest is no file of polygons and no box",
            found=uri,
            expected=f"{', '.join((*_SUFFIXES, '.parquet'))}, or west,south,east,north in degrees",
        )
    with storage.reachable(uri), tempfile.TemporaryDirectory() as folder:
        local = uri
        if not storage.is_local(uri):
            local = os.path.join(folder, posixpath.basename(uri))
            with open(local, "wb") as file:
                file.write(storage.read_bytes(uri))
        elif not storage.exists(uri):
            raise InputError("--area-of-interest does not exist", where=uri)
        try:
            frame = geopandas.read_parquet(local) if suffix == ".parquet" else geopandas.read_file(local)
        except Exception as error:  # of pyogrio, GDAL or pyarrow, which have kinds of their own
            raise InputError("--area-of-interest cannot be read", where=uri, found=error) from None
    if not len(frame) or frame.geometry.is_empty.all():
        raise InputError("--area-of-interest is empty", where=uri)
    if frame.crs is None:
        raise InputError("--area-of-interest has no crs", where=uri, todo="write one into the file (ogr2ogr -a_srs)")
    authority = frame.crs.to_authority()
    whole = shapely.make_valid(frame.geometry.union_all())
    return AreaOfInterest(shapely.to_wkb(whole), ":".join(authority) if authority else frame.crs.to_wkt())


@functools.lru_cache(8)
def _in_crs(wkb: bytes, crs: str, target: str) -> bytes:
    """The area in another crs, its edges followed in steps."""
    import numpy as np
    import pyproj
    import shapely

    geometry = shapely.from_wkb(wkb)
    if crs == target:
        return wkb
    left, bottom, right, top = geometry.bounds
    step = max(right - left, top - bottom) / _STEPS
    move = pyproj.Transformer.from_crs(crs, target, always_xy=True).transform
    moved = shapely.transform(
        shapely.segmentize(geometry, step), lambda points: np.column_stack(move(points[:, 0], points[:, 1]))
    )
    return bytes(shapely.to_wkb(shapely.make_valid(moved)))
