"""One file that GDAL has opened (a rasterio data set): its mask, palette, bands and place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.decode.header import DecodeError


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a scene lie, for labels that are to be brought there."""

    crs: str | None
    transform: tuple[float, ...] | None
    width: int
    height: int


def valid_pixels(file: Any, indexes: list[int], window: Any) -> np.ndarray | None:
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


def brought(file: Any, onto: Grid) -> Any:
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


def palette(file: Any) -> np.ndarray | None:
    """Colours of the indices of a palette, N x 3 uint8."""
    try:
        colors = file.colormap(1)
    except ValueError:
        return None
    table = np.zeros((max(256, max(colors) + 1), 3), np.uint8)
    for index, color in colors.items():
        table[index] = color[:3]
    return table


def is_alpha(file: Any, index: int) -> bool:
    return bool(file.colorinterp[index - 1].name == "alpha")


def band_name(file: Any, index: int) -> str | None:
    name = file.descriptions[index - 1]
    color = file.colorinterp[index - 1].name
    return name or (color if color in ("red", "green", "blue") else None)


def crs_text(crs: Any) -> str | None:
    if crs is None:
        return None
    authority = crs.to_authority()
    return ":".join(authority) if authority else crs.to_wkt()


def same_place(file: Any, other: Any) -> bool:
    return bool(file.crs == other.crs and file.transform.almost_equals(other.transform, 1e-6))


def require_same_extent(file: Any, finest: Any, uri: str) -> None:
    """Raises DecodeError where a file of a scene covers another area than the finest, by over a pixel of its own."""
    pixel = math.sqrt(abs(file.transform.determinant))
    apart = max(abs(a - b) for a, b in zip(file.bounds, finest.bounds, strict=True))
    if file.crs != finest.crs or apart > pixel or file.transform.is_identity != finest.transform.is_identity:
        raise DecodeError(
            f"files of one scene cover different areas: {uri} {tuple(file.bounds)} in {crs_text(file.crs)},"
            f" {finest.name} {tuple(finest.bounds)} in {crs_text(finest.crs)}"
        )
