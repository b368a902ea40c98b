"""Raster scenes by GDAL (rasterio): the header, and windows of pixels with their valid mask.

A scene is one file, or several that give a band each (`Asset`): the finest of their grids is the scene's, coarser ones
are brought to it. An alpha band is the valid mask, never a band; a palette is read as its colours, as labels as its
indices. Runs in the child (`serve`), which keeps files open: neighbouring windows share their blocks.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.decode.gdal import gdal_options, gdal_path
from pipeline.decode.gdal_file import (
    Grid,
    band_name,
    brought,
    crs_text,
    is_alpha,
    palette,
    require_same_extent,
    same_place,
    valid_pixels,
)
from pipeline.decode.header import DecodeError, TooLarge
from pipeline.decode.raster_header import Asset, RasterHeader, chosen_bands, misfit

MOST_OPEN = 32  # files
RESAMPLINGS = ("nearest", "bilinear")
Window = tuple[int, int, int, int]  # x, y, width, height in pixels of the scene


@dataclass(frozen=True)
class RasterWindow:
    """Pixels of a window, H x W x B in the file's own type, and which of them are valid (None = all)."""

    values: np.ndarray
    valid: np.ndarray | None
    header: RasterHeader


class _Scene:
    """The open files of a scene, on one grid."""

    def __init__(self, assets: Sequence[Asset], resampling: str, onto: Grid | None) -> None:
        import rasterio
        from rasterio.enums import Resampling
        from rasterio.vrt import WarpedVRT

        self.sources = [rasterio.open(gdal_path(asset.uri)) for asset in assets]
        if onto is not None:
            self.sources = [brought(file, onto) for file in self.sources]
        finest = min(self.sources, key=lambda file: abs(file.transform.determinant))
        self.grid = finest
        self.resampled = []
        self.files = []
        for asset, file in zip(assets, self.sources, strict=True):
            if (file.width, file.height) != (finest.width, finest.height) or not same_place(file, finest):
                require_same_extent(file, finest, asset.uri)
                self.resampled.append(asset.uri)
                file = WarpedVRT(
                    file,
                    crs=finest.crs,
                    transform=finest.transform,
                    width=finest.width,
                    height=finest.height,
                    resampling=Resampling[resampling],
                )
            self.files.append(file)
        self.indexes = [
            [asset.index] if asset.index else [i for i in file.indexes if not is_alpha(file, i)]
            for asset, file in zip(assets, self.files, strict=True)
        ]
        for asset, file, indexes in zip(assets, self.files, self.indexes, strict=True):
            if not indexes or max(indexes) > file.count:
                raise DecodeError(f"{asset.uri} has {file.count} bands, not band {max(indexes, default=1)}")
        self.palette = palette(self.files[0]) if len(assets) == 1 and self.indexes == [[1]] else None
        self.header = self._header(assets)

    def _header(self, assets: Sequence[Asset]) -> RasterHeader:
        grid = self.grid
        kinds = [file.dtypes[i - 1] for file, indexes in zip(self.files, self.indexes, strict=True) for i in indexes]
        if any(kind.startswith("complex") for kind in kinds):
            raise DecodeError(f"complex values ({kinds[0]}) are no pixels")
        names = [
            asset.band or band_name(file, i)
            for asset, file, indexes in zip(assets, self.sources, self.indexes, strict=True)
            for i in indexes
        ]
        pairs = [(file, i) for file, indexes in zip(self.sources, self.indexes, strict=True) for i in indexes]
        bands, dtype = len(kinds), str(np.result_type(*kinds))
        if self.palette is not None:
            bands, dtype, names, pairs = 3, "uint8", ["red", "green", "blue"], pairs * 3
        has_gcps = bool(grid.gcps[0]) or bool(grid.rpcs)
        placed = grid.crs is not None and not grid.transform.is_identity
        return RasterHeader(
            width=grid.width,
            height=grid.height,
            bands=bands,
            dtype=dtype,
            band_names=tuple(names),
            crs=crs_text(grid.crs),
            transform=tuple(grid.transform)[:6] if not grid.transform.is_identity else None,
            block=tuple(grid.block_shapes[0]),
            nodata=None if grid.nodata is None else float(grid.nodata),
            georeference="transform" if placed else "gcps" if has_gcps else "none",
            scales=tuple(float(file.scales[i - 1]) for file, i in pairs),
            offsets=tuple(float(file.offsets[i - 1]) for file, i in pairs),
            resampled=tuple(self.resampled),
            acquired=grid.tags().get("TIFFTAG_DATETIME") or grid.tags().get("ACQUISITIONDATETIME"),
        )

    def read(
        self, window: Window, *, bands: Sequence[str] = (), as_labels: bool = False, physical: bool = False
    ) -> RasterWindow:
        from rasterio.windows import Window as Rectangle

        here = Rectangle(*window)
        chosen = chosen_bands(self.header, bands)
        planes: list[np.ndarray] = []
        masks, first = [], 0
        for file, indexes in zip(self.files, self.indexes, strict=True):
            wanted = [i for place, i in enumerate(indexes, first) if place in chosen or self.palette is not None]
            first += len(indexes)
            if wanted:
                planes.extend(file.read(wanted, window=here))
                masks.append(valid_pixels(file, wanted, here))
        values = np.stack(planes)
        known = [mask for mask in masks if mask is not None]
        valid = np.logical_and.reduce(known) if known else None
        if self.palette is not None and as_labels:
            pass  # the indices themselves
        elif self.palette is not None:
            values = np.moveaxis(self.palette[values[0].view(np.uint8) if values.itemsize == 1 else values[0]], -1, 0)
        else:
            values = values[[sorted(set(chosen)).index(place) for place in chosen]]  # in the order asked for
        if physical:
            scales, offsets = (
                np.array([numbers[i] for i in chosen]) for numbers in (self.header.scales, self.header.offsets)
            )
            values = (values * scales[:, None, None] + offsets[:, None, None]).astype(np.float32)
        if values.dtype.kind == "f":
            finite = np.isfinite(values).all(axis=0)
            if not finite.all():
                valid = finite if valid is None else valid & finite
        return RasterWindow(np.ascontiguousarray(np.moveaxis(values, 0, -1)), valid, self.header)

    def close(self) -> None:
        for file in {id(file): file for file in [*self.files, *self.sources]}.values():
            file.close()


class Scenes:
    """The scenes that a process has open, the ones used last."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[Any, ...], _Scene] = OrderedDict()

    def header(self, assets: Sequence[Asset], *, resampling: str = "bilinear") -> RasterHeader:
        with _gdal():
            return self._scene(assets, resampling, fresh=True).header

    def read(
        self,
        assets: Sequence[Asset],
        window: Window | None,
        *,
        resampling: str = "bilinear",
        onto: Grid | None = None,
        max_pixels: int | None = None,
        bands: Sequence[str] = (),
        takes: tuple[int, bool | None] | None = None,
        as_labels: bool = False,
        physical: bool = False,
    ) -> RasterWindow:
        """A window (None: the whole scene).

        `onto` is the grid of another scene (nearest); without a georeference on one side the sizes must be equal.
        `bands` are chosen by name or number (from 1); none are all. `takes` is what the network takes: how many bands,
        and whether bytes. Raises DecodeError (found on the header where bands or type do not fit), TooLarge above
        `max_pixels`.
        """
        with _gdal():
            scene = self._scene(assets, resampling, onto)
            if takes is not None and (reason := misfit(scene.header, bands, *takes)):
                raise DecodeError(reason)
            width, height = scene.header.width, scene.header.height
            window = window or (0, 0, width, height)
            if max_pixels is not None and window[2] * window[3] > max_pixels:
                raise TooLarge(f"{window[2] * window[3]} pixels ({window[2]}x{window[3]}), limit {max_pixels}")
            if window[0] + window[2] > width or window[1] + window[3] > height or min(window[:2]) < 0:
                raise DecodeError(f"window {window} lies outside of the scene of {width}x{height}")
            try:
                return scene.read(window, bands=bands, as_labels=as_labels, physical=physical)
            except BaseException:
                self.forget(assets)  # what a failed read leaves in a file's cache is not known
                raise

    def forget(self, assets: Sequence[Asset]) -> None:
        for key in [key for key in self._open if key[1] == tuple(assets)]:
            with contextlib.suppress(Exception):
                self._open.pop(key).close()

    def _scene(self, assets: Sequence[Asset], resampling: str, onto: Grid | None = None, fresh: bool = False) -> _Scene:
        key = (resampling, tuple(assets), onto)
        if fresh:
            self.forget(assets)
        if key not in self._open:
            self._open[key] = _Scene(assets, resampling, onto)
            while len(self._open) > 1 and sum(len(key[1]) for key in self._open) > MOST_OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(key)
        return self._open[key]


@contextlib.contextmanager
def _gdal() -> Any:
    """GDAL's errors as DecodeError, with the deepest reason it gives."""
    try:
        import rasterio
        import rasterio.errors
    except ImportError:
        raise DecodeError(
            "rasterio is not installed; scenes are read with: pip install 'ray-segmentation[raster]'"
        ) from None
    try:
        with rasterio.Env(**gdal_options()):
            yield
    except (rasterio.errors.RasterioError, rasterio.errors.CRSError, ValueError, IndexError) as error:
        reasons = [str(error)]
        while (error := error.__cause__) is not None:  # type: ignore[assignment]
            reasons.append(str(error))
        raise DecodeError("; ".join(dict.fromkeys(" ".join(text.split()) for text in reasons if text))) from None
