"""The options of an export."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.runtime.options import INPUT, OUTPUT, SPEED, option, validate
from pipeline.runtime.output_config import ClusterOutputConfig

FORMATS = ("cog", "geoparquet", "geojson", "png", "coco")


@dataclass
class ExportConfig(ClusterOutputConfig):
    """Make maps, polygons or pictures of predictions: a file a scene or picture. The same command on the same output
    goes on where it was broken off."""

    predictions: str = option(help="OUTPUT of jobs/segment.py, or its predictions/.", group=INPUT)
    format: str = option(help="What is written.", group=OUTPUT, choices=FORMATS)
    output: str = option(help="Folder or prefix that receives a folder of that name.", group=OUTPUT)
    classes: str | None = option(None, "Only polygons of these classes, by name: road,water.", group=OUTPUT)
    min_area_m2: float = option(0.0, "Leave smaller polygons out; needs a crs.", group=OUTPUT, low=0)
    simplify_m: float = option(0.0, "Simplify polygons by as much; neighbours keep their border.", group=OUTPUT, low=0)
    crs: str | None = option(
        None, "Coordinates of the polygons (default: the scene's; GeoJSON is in EPSG:4326).", group=OUTPUT
    )
    grey: bool = option(False, "PNGs of class ids in place of the classes' colours.", group=OUTPUT)
    max_pixels: int = option(100_000_000, "No PNG of a larger scene.", group=OUTPUT, low=1)
    runner: str = option(
        "auto",
        "On Ray, or in processes of this machine alone. auto is ray where RAY_ADDRESS names a cluster.",
        group=SPEED,
        choices=("auto", "processes", "ray"),
    )

    def __post_init__(self) -> None:
        validate(self)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in (self.classes or "").split(",") if name.strip())
