"""The options that every job shares that may list raster scenes."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

from pipeline.catalog.raster_windows import WindowOptions
from pipeline.decode.raster import RESAMPLINGS
from pipeline.errors import InputError
from pipeline.runtime.options import SCENES, option


@dataclass(kw_only=True)
class SceneConfig:
    """How raster scenes are listed: as windows, of which part, and from which files."""

    window_px: int | None = option(
        None, "Side of a window of a scene, without its halo (default: 1024); a multiple of 32.", group=SCENES
    )
    halo_px: int | None = option(
        None, "What is read around a window and then cut off (default: 128); a multiple of 32.", group=SCENES
    )
    area_of_interest: str | None = option(
        None,
        "Only what lies within: a GeoJSON, GeoParquet, shapefile or GeoPackage, or west,south,east,north in degrees "
        "or west,south,east,north;EPSG:32618 in a crs.",
        group=SCENES,
    )
    assets: str | None = option(
        None,
        "Assets of STAC items, or common names of their bands, that make up a scene: red,green,blue,nir.",
        group=SCENES,
    )
    resampling: str = option(
        "bilinear", "How files coarser than their scene's grid are brought to it.", group=SCENES, choices=RESAMPLINGS
    )

    @property
    def window_options(self) -> WindowOptions:
        """Raises InputError for options out of range."""
        default = WindowOptions()
        window_px = self.window_px or default.window_px
        halo_px = default.halo_px if self.halo_px is None else self.halo_px
        if self.halo_px is None and 2 * halo_px >= window_px:
            halo_px = window_px // 4 // 32 * 32
        return WindowOptions(window_px, halo_px, self.resampling)

    @property
    def asset_names(self) -> tuple[str, ...] | None:
        return None if self.assets is None else tuple(name.strip() for name in self.assets.split(",") if name.strip())

    @property
    def scene_choices(self) -> dict[str, Any]:
        """What was asked for, for fingerprints; nothing where nothing was."""
        names = ("window_px", "halo_px", "area_of_interest", "assets")
        found = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return found | ({} if self.resampling == "bilinear" else {"resampling": self.resampling})


def require_raster(what: str) -> None:
    """Raises InputError where what opens scenes is not installed."""
    if importlib.util.find_spec("rasterio") is None:
        raise InputError(
            f"{what}: rasterio is not installed", todo="install it with: pip install 'ray-segmentation[raster]'"
        )
