"""Scenes made for tests: GeoTIFFs of any type with a georeference, a mask, holes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import Affine

UTM = Affine(10.0, 0, 500_000.0, 0, -10.0, 4_500_000.0)


def write_scene(path: Path, values: np.ndarray, **profile: Any) -> Path:
    """H x W x B (or H x W) as a tiled GeoTIFF in EPSG:32618, 10 m a pixel, unless `profile` says otherwise."""
    planes = values[..., None] if values.ndim == 2 else values
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"crs": "EPSG:32618", "transform": UTM, "compress": "deflate"} | profile
    profile |= {"tiled": True, "blockxsize": 128, "blockysize": 128} if "tiled" not in profile else {}
    mask = profile.pop("mask", None)
    height, width, count = planes.shape
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(
            path, "w", driver="GTiff", height=height, width=width, count=count, dtype=planes.dtype, **profile
        ) as file,
    ):
        file.write(np.moveaxis(planes, -1, 0))
        if mask is not None:
            file.write_mask(mask)
    return path


def smooth(height: int, width: int, bands: int = 3, dtype: str = "uint8", seed: int = 0, top: int = 255) -> np.ndarray:
    """H x W x B of blotches that a network sees something in."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, top + 1, (height // 8 + 2, width // 8 + 2, bands))
    return coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width].astype(dtype)
