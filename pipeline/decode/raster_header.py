"""What a raster scene says of itself before a pixel is read, and whether that fits a network. Free of GDAL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.decode.header import DecodeError


@dataclass(frozen=True)
class Asset:
    """A file of a scene, and which of its bands is taken (from 1; None = all but alpha)."""

    uri: str
    index: int | None = None
    band: str | None = None  # what the band is called


@dataclass(frozen=True)
class RasterHeader:
    """What a scene's files say before a pixel is read. `block` is the file's own (height, width)."""

    width: int
    height: int
    bands: int
    dtype: str
    band_names: tuple[str | None, ...]
    crs: str | None  # authority and code, else WKT
    transform: tuple[float, ...] | None  # six numbers, as affine.Affine
    block: tuple[int, int]
    nodata: float | None
    georeference: str  # transform | gcps | none
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    resampled: tuple[str, ...] = ()  # files that are not on the scene's grid
    acquired: str | None = None


def chosen_bands(header: RasterHeader, bands: Sequence[str]) -> list[int]:
    """Places (from 0) of the bands that are asked for by name or number (from 1); none asked for are all.

    Raises DecodeError for one that the scene does not have.
    """
    names = [(name or "").lower() for name in header.band_names]
    chosen = []
    for band in bands:
        place = names.index(band.lower()) if band.lower() in names else int(band) - 1 if band.isdigit() else -1
        if not 0 <= place < header.bands:
            there = ", ".join(name or str(i) for i, name in enumerate(header.band_names, 1))
            raise DecodeError(f"no band {band!r}: the scene has {header.bands} ({there}); choose others with --bands")
        chosen.append(place)
    return chosen or list(range(header.bands))


def misfit(header: RasterHeader, bands: Sequence[str], num_bands: int, bytes_only: bool | None) -> str | None:
    """Why a scene does not fit a network that takes so many bands, of bytes, of wider values or (None) of any; None
    where it does."""
    try:
        count = len(chosen_bands(header, bands))
    except DecodeError as error:
        return str(error)
    kind = "any type" if bytes_only is None else "uint8" if bytes_only else "wider than bytes"
    has = f"the scene has {count} band{'s' * (count != 1)} of {header.dtype}"
    takes = f"the network takes {num_bands} of {kind}"
    if count != num_bands:
        example = ",".join(str(i + 1) for i in range(num_bands))
        return f"{has}, {takes}" + (f": choose with --bands {example}" if count > num_bands else "")
    if bytes_only is not None and bytes_only == wide_type(header.dtype):
        return f"{has}, {takes}: it would see other numbers than it learnt; bring them with --scaling"
    return None


def wide_type(dtype: str) -> bool:
    """Whether values of a type are wider than bytes."""
    return dtype not in ("uint8", "int8")


def header_json(header: RasterHeader) -> dict[str, Any]:
    return asdict(header)


def header_of(text: dict[str, Any]) -> RasterHeader:
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in text.items()}
    return RasterHeader(**values)
