"""The part of the earth that is asked for: which windows of a scene meet it, and what of them lies within."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import posixpath
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline import storage
from pipeline.decode.raster_header import RasterHeader
from pipeline.errors import InputError

_STEPS = 64  # a long edge is no straight line in another crs
_SAMPLES = 33  # points a side by which a scene's surroundings are found: odd, so that one is its middle
_MARGIN = 0.05  # of a scene's side, around it
_TURN = 360.0  # degrees
_SUFFIXES = (".geojson", ".json", ".gpkg", ".fgb", ".shp", ".zip")
Rectangle = tuple[int, int, int, int]


@dataclass(frozen=True)
class AreaOfInterest:
    """A geometry (WKB) in a crs."""

    wkb: bytes
    crs: str

    @property
    def fingerprint(self) -> str:
        """32 hex digits of geometry and crs; the same whatever file or spelling they came from."""
        import shapely

        plain = shapely.to_wkb(shapely.normalize(shapely.from_wkb(self.wkb)), byte_order=1, output_dimension=2)
        return hashlib.sha256(self.crs.encode() + b"\n" + plain).hexdigest()[:32]

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
        nearby = _on_scene(self.wkb, self.crs, header)
        area = shapely.make_valid(shapely.transform(nearby, lambda points: _moved(back, points)))
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
    """A file (GeoJSON, GeoPackage, shapefile, GeoParquet, any crs) or `west,south,east,north` in degrees (EPSG:4326),
    or in the crs that follows a semicolon: `500000,4400000,510000,4410000;EPSG:32618`.

    Raises InputError for what is neither, is empty, or has no crs.
    """
    import shapely

    box_text, _, crs = text.partition(";")
    try:
        west, south, east, north = (float(number) for number in box_text.split(","))
    except ValueError:
        return _read_file(text)
    if crs:
        return _box_in(text, crs.strip(), (west, south, east, north))
    if not (-90 <= south < north <= 90 and -180 <= west <= 360 and -180 <= east <= 360):
        raise InputError("--area-of-interest is no box", found=text, expected="west,south,east,north in degrees")
    if west > east:  # across the date line
        box = shapely.union(shapely.box(west, south, 180, north), shapely.box(-180, south, east, north))
    else:
        box = shapely.box(west, south, east, north)
    return AreaOfInterest(shapely.to_wkb(box), "EPSG:4326")


def _box_in(text: str, crs: str, sides: tuple[float, float, float, float]) -> AreaOfInterest:
    import pyproj
    import shapely

    try:
        pyproj.CRS(crs)
    except pyproj.exceptions.CRSError as error:
        raise InputError("--area-of-interest has a crs that is not known", where=text, found=error) from None
    west, south, east, north = sides
    if not (-math.inf < west < east < math.inf and -math.inf < south < north < math.inf):
        raise InputError("--area-of-interest is no box", found=text, expected="west,south,east,north;CRS")
    return AreaOfInterest(shapely.to_wkb(shapely.box(*sides)), crs)


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
    whole = shapely.make_valid(shapely.force_2d(frame.geometry.union_all()))
    if not whole.area:
        kinds = ", ".join(sorted(set(frame.geometry.geom_type.dropna())))
        raise InputError("--area-of-interest holds no polygon", where=uri, found=kinds)
    return AreaOfInterest(shapely.to_wkb(whole), ":".join(authority) if authority else frame.crs.to_wkt())


def _on_scene(wkb: bytes, crs: str, header: RasterHeader) -> Any:
    """What of the area lies around a scene, in the scene's crs, its edges followed in steps.

    The area is cut to the scene's surroundings before it is moved: far from where a projection holds, as with a
    continent in one UTM zone, points move to anywhere or to infinity, and the area would come out inside out.
    """
    import numpy as np
    import pyproj
    import shapely
    from rasterio.transform import Affine

    assert header.crs is not None and header.transform is not None
    area, to_scene, to_area = _geometry(wkb), _transformer(crs, header.crs), _transformer(header.crs, crs)
    forward = Affine(*header.transform)
    steps = np.linspace(0.0, 1.0, _SAMPLES)
    columns, rows = (grid.ravel() for grid in np.meshgrid(steps * header.width, steps * header.height))
    scene = _moved(forward, np.column_stack([columns, rows]))
    around = np.column_stack(to_area.transform(scene[:, 0], scene[:, 1]))
    if pyproj.CRS(crs).is_geographic:
        place = pyproj.CRS(header.crs)
        middle = scene[:, 0] if place.is_geographic else around[len(around) // 2, 0]
        around[:, 0] += _TURN * np.round((middle - around[:, 0]) / _TURN)
        box = _surroundings(around)
        if not box.is_empty and not place.is_geographic:
            box = _with_poles(box, float(around[len(around) // 2, 0]), to_scene, forward, header)
        area = shapely.union_all([shapely.intersection(turn, box) for turn in _turns(area, box)])
    else:
        area = shapely.intersection(area, _surroundings(around))
    if area.is_empty or crs == header.crs:
        return area
    left, bottom, right, top = area.bounds
    step = max(right - left, top - bottom) / _STEPS
    if not step:  # it touches the scene's surroundings in a point
        return shapely.Polygon()
    both_geographic = to_scene.source_crs.is_geographic and to_scene.target_crs.is_geographic

    def move(points: Any) -> Any:
        moved = np.column_stack(to_scene.transform(points[:, 0], points[:, 1]))
        if both_geographic:
            moved[:, 0] += _TURN * np.round((points[:, 0] - moved[:, 0]) / _TURN)
        if not np.isfinite(moved).all():
            raise InputError("--area-of-interest cannot be brought into the crs of a scene", found=header.crs)
        return moved

    return shapely.make_valid(shapely.transform(shapely.segmentize(area, step), move))


def _surroundings(points: Any) -> Any:
    """The box around points, of those that have a place, with a margin for what bends between them."""
    import numpy as np
    import shapely

    placed = points[np.isfinite(points).all(axis=1)]
    if not len(placed):
        return shapely.Polygon()
    low, high = placed.min(axis=0), placed.max(axis=0)
    margin = _MARGIN * (high - low).max()
    return shapely.box(*(low - margin), *(high + margin))


def _turns(area: Any, box: Any) -> Iterator[Any]:
    """The area in degrees wherever it comes by the box: the same meridian is -170 in one file and 190 in another."""
    import numpy as np
    import shapely

    for turn in (-_TURN, 0.0, _TURN):
        if shapely.intersects(shapely.box(*(area.bounds + np.array([turn, 0.0, turn, 0.0]))), box):
            yield shapely.transform(area, lambda points, turn=turn: points + [turn, 0.0])


def _with_poles(box: Any, middle: float, to_scene: Any, forward: Any, header: RasterHeader) -> Any:
    """The surroundings in degrees of a scene that may hold a pole: then all meridians, up to the pole."""
    import numpy as np
    import shapely

    west, south, east, north = box.bounds
    if east - west > _TURN / 2:
        west, east = middle - _TURN / 2, middle + _TURN / 2
    for pole in (-90.0, 90.0):
        ((x, y),) = _moved(~forward, np.column_stack(to_scene.transform([middle], [pole])))
        if 0 <= x <= header.width and 0 <= y <= header.height:
            west, east = middle - _TURN / 2, middle + _TURN / 2
            south, north = min(south, pole), max(north, pole)
    return shapely.box(west, max(south, -90.0), east, min(north, 90.0))


def _moved(affine: Any, points: Any) -> Any:
    import numpy as np

    a, b, c, d, e, f = tuple(affine)[:6]
    x, y = points[:, 0], points[:, 1]
    return np.column_stack([a * x + b * y + c, d * x + e * y + f])


@functools.lru_cache(2)
def _geometry(wkb: bytes) -> Any:
    import shapely

    return shapely.from_wkb(wkb)


@functools.lru_cache(64)
def _transformer(source: str, target: str) -> Any:
    import pyproj

    return pyproj.Transformer.from_crs(source, target, always_xy=True)
