"""Raster scenes by GDAL (rasterio): the header, and windows of pixels with their valid mask.

A scene is one file, or several that give a band each (`Asset`): the finest of their grids is the scene's, coarser ones
are brought to it. An alpha band is the valid mask, never a band; a palette is read as its colours, as labels as its
indices. Runs in the child (`serve`), which keeps files open: neighbouring windows share their blocks.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.decode.gdal import gdal_options, gdal_path
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


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a scene lie, for labels that are to be brought there."""

    crs: str | None
    transform: tuple[float, ...] | None
    width: int
    height: int


class _Scene:
    """The open files of a scene, on one grid."""

    def __init__(self, assets: Sequence[Asset], resampling: str, onto: Grid | None) -> None:
        import rasterio
        from rasterio.enums import Resampling
        from rasterio.vrt import WarpedVRT

        self.sources = [rasterio.open(gdal_path(asset.uri)) for asset in assets]
        if onto is not None:
            self.sources = [_brought(file, onto) for file in self.sources]
        finest = min(self.sources, key=lambda file: abs(file.transform.determinant))
        self.grid = finest
        self.resampled = []
        self.files = []
        for asset, file in zip(assets, self.sources, strict=True):
            if (file.width, file.height) != (finest.width, finest.height) or not _same_place(file, finest):
                _require_same_extent(file, finest, asset.uri)
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
            [asset.index] if asset.index else [i for i in file.indexes if not _is_alpha(file, i)]
            for asset, file in zip(assets, self.files, strict=True)
        ]
        for asset, file, indexes in zip(assets, self.files, self.indexes, strict=True):
            if not indexes or max(indexes) > file.count:
                raise DecodeError(f"{asset.uri} has {file.count} bands, not band {max(indexes, default=1)}")
        self.palette = _palette(self.files[0]) if len(assets) == 1 and self.indexes == [[1]] else None
        self.header = self._header(assets)

    def _header(self, assets: Sequence[Asset]) -> RasterHeader:
        grid = self.grid
        kinds = [file.dtypes[i - 1] for file, indexes in zip(self.files, self.indexes, strict=True) for i in indexes]
        if any(kind.startswith("complex") for kind in kinds):
            raise DecodeError(f"complex values ({kinds[0]}) are no pixels")
        names = [
            asset.band or _band_name(file, i)
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
            crs=_crs_text(grid.crs),
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
                masks.append(_valid(file, wanted, here))
        values = np.stack(planes)
        known = [mask for mask in masks if mask is not None]
        valid = np.logical_and.reduce(known) if known else None
        if self.palette is not None and not as_labels:
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
        takes: tuple[int, bool] | None = None,
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


def _valid(file: Any, indexes: list[int], window: Any) -> np.ndarray | None:
    """H x W, or None where nothing is masked. A nodata value of 0 counts where all bands have it, for one dark band is
    no gap; every other one where any band has it. A mask or an alpha of 0 counts by itself."""
    from rasterio.enums import MaskFlags

    flags = [file.mask_flag_enums[i - 1] for i in indexes]
    if all(MaskFlags.all_valid in flag for flag in flags):
        return None
    if any(MaskFlags.nodata in flag for flag in flags):
        invalid = file.read_masks(indexes, window=window) == 0
        zero = all(file.nodatavals[i - 1] == 0 for i in indexes)
        valid = ~(invalid.all(axis=0) if zero else invalid.any(axis=0))
    else:
        valid = file.read_masks(indexes[0], window=window) != 0
    return None if valid.all() else valid


def _brought(file: Any, onto: Grid) -> Any:
    """A file of labels on another grid, nearest; pixels that it does not cover are not valid."""
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.vrt import WarpedVRT

    size = (onto.width, onto.height)
    if file.crs is None or onto.crs is None or onto.transform is None:
        if (file.width, file.height) != size:
            raise DecodeError(
                f"{file.width}x{file.height} for a picture of {size[0]}x{size[1]}, and without a georeference on both"
                " sides one cannot be brought to the other"
            )
        return file
    crs, transform = rasterio.crs.CRS.from_user_input(onto.crs), rasterio.Affine(*onto.transform)
    if (file.width, file.height) == size and file.crs == crs and file.transform.almost_equals(transform, 1e-6):
        return file
    return WarpedVRT(
        file,
        crs=crs,
        transform=transform,
        width=onto.width,
        height=onto.height,
        resampling=Resampling.nearest,
        src_nodata=None,
        nodata=None,
        add_alpha=True,
    )


def _palette(file: Any) -> np.ndarray | None:
    """Colours of the indices of a palette, N x 3 uint8."""
    try:
        colors = file.colormap(1)
    except ValueError:
        return None
    table = np.zeros((max(256, max(colors) + 1), 3), np.uint8)
    for index, color in colors.items():
        table[index] = color[:3]
    return table


def _is_alpha(file: Any, index: int) -> bool:
    return bool(file.colorinterp[index - 1].name == "alpha")


def _band_name(file: Any, index: int) -> str | None:
    name = file.descriptions[index - 1]
    color = file.colorinterp[index - 1].name
    return name or (color if color in ("red", "green", "blue") else None)


def _crs_text(crs: Any) -> str | None:
    if crs is None:
        return None
    authority = crs.to_authority()
    return ":".join(authority) if authority else crs.to_wkt()


def _same_place(file: Any, other: Any) -> bool:
    return bool(file.crs == other.crs and file.transform.almost_equals(other.transform, 1e-6))


def _require_same_extent(file: Any, finest: Any, uri: str) -> None:
    """Raises DecodeError where a file of a scene covers another area than the finest, by over a pixel of its own."""
    pixel = math.sqrt(abs(file.transform.determinant))
    apart = max(abs(a - b) for a, b in zip(file.bounds, finest.bounds, strict=True))
    if file.crs != finest.crs or apart > pixel or file.transform.is_identity != finest.transform.is_identity:
        raise DecodeError(
            f"files of one scene cover different areas: {uri} {tuple(file.bounds)} in {_crs_text(file.crs)},"
            f" {finest.name} {tuple(finest.bounds)} in {_crs_text(finest.crs)}"
        )
