"""A map of classes as a cloud-optimised GeoTIFF, written window by window: memory holds one window.

One band of class ids with the classes' colours and names, where nothing is predicted 255 (65535 above 254 classes);
overviews by the mode. A palette goes with one band only, so confidence, where it was kept, is a second file beside it.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.export.scene import Scene
from pipeline.labels import LabelSet

BLOCK_PX = 512
CACHE_BYTES = 128 << 20


def write_cog(scene: Scene, output: str) -> list[str]:
    """`OUTPUT/<name>.tif`, its STAC item `<name>.json`, and with confidence `<name>.confidence.tif`; their URIs."""
    written = []
    with tempfile.TemporaryDirectory() as folder:
        for name, confidence in (("", False), (".confidence", True)):
            if confidence and not scene.has_confidence:
                continue
            local = os.path.join(folder, f"map{name}.tif")
            _write(scene, local, os.path.join(folder, "plain.tif"), confidence)
            with open(local, "rb") as file:
                data = file.read()
            written.append(storage.join(output, f"{scene.name}{name}.tif"))
            storage.write_bytes(written[-1], data)
        if scene.crs is not None and scene.transform is not None:
            item = stac_item(scene, os.path.join(folder, "map.tif"))
            if item is not None:
                written.append(storage.join(output, f"{scene.name}.json"))
                storage.write_json(written[-1], item)
    return written


def _write(scene: Scene, local: str, plain: str, confidence: bool) -> None:
    import rasterio
    import rasterio.shutil
    from rasterio.windows import Window

    names, ignore = scene.label_set.names, scene.ignore_value
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "width": scene.width,
        "height": scene.height,
        "count": 1,
        "dtype": "uint8" if confidence else scene.label_set.mask_dtype,
        "nodata": 0 if confidence else ignore,
        "crs": scene.crs,
        "tiled": True,
        "blockxsize": BLOCK_PX,
        "blockysize": BLOCK_PX,
        "compress": "deflate",
        "bigtiff": "if_safer",
        "sparse_ok": True,
    }
    if scene.transform is not None:
        profile["transform"] = rasterio.Affine(*scene.transform)
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), rasterio.open(plain, "w", **profile) as file:
        if not confidence and np.dtype(scene.label_set.mask_dtype) == np.uint8:
            colors = {k: (*color, 255) for k, color in enumerate(scene.label_set.colors)}
            file.write_colormap(1, {**colors, ignore: (0, 0, 0, 0)})
        file.set_band_description(1, "confidence" if confidence else "class")
        if not confidence:
            file.update_tags(**{f"CLASS_{k}": name for k, name in enumerate(names)}, LABEL_SET=scene.label_set.name)
        file.update_tags(
            TIFFTAG_IMAGEDESCRIPTION=f"{'confidence times 255' if confidence else 'classes'}: {scene.path}"
        )
        for window in scene.windows():
            plane = window.confidence if confidence else window.class_map
            if plane is not None:
                file.write(plane, 1, window=Window(window.x, window.y, plane.shape[1], plane.shape[0]))
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        rasterio.shutil.copy(
            plain,
            local,
            driver="COG",
            compress="deflate",
            blocksize=BLOCK_PX,
            overview_resampling="average" if confidence else "mode",
            resampling="nearest",
            bigtiff="if_safer",
        )


def stac_item(scene: Scene, local: str) -> dict[str, Any] | None:
    """A STAC 1.1 item of a map with a crs: footprint, projection and classes; None where there is no way to degrees.

    `local` is the map's file.
    """
    import datetime

    import pystac
    import rasterio
    from rasterio.warp import transform_bounds, transform_geom

    with rasterio.open(local) as file:
        left, bottom, right, top = file.bounds
        corners = [[left, top], [left, bottom], [right, bottom], [right, top], [left, top]]
        if scene.transform is not None and (scene.transform[1] or scene.transform[3]):
            at = [(0, 0), (0, file.height), (file.width, file.height), (file.width, 0), (0, 0)]
            corners = [list(file.transform * corner) for corner in at]
        try:
            footprint = transform_geom(file.crs, "EPSG:4326", {"type": "Polygon", "coordinates": [corners]})
            box = list(transform_bounds(file.crs, "EPSG:4326", *file.bounds, densify_pts=21))
        except Exception as error:  # of GDAL, in a class for each of its errors
            if type(error).__module__.split(".")[0] != "rasterio":
                raise
            return None  # of another body than the earth
        properties: dict[str, Any] = {
            "proj:shape": [file.height, file.width],
            "proj:transform": list(file.transform)[:6],
            "proj:code" if ":" in (scene.crs or "")[:12] else "proj:wkt2": scene.crs,
        }
    item = pystac.Item(
        id=scene.name.replace("/", "_"),
        geometry=footprint,
        bbox=box,
        datetime=datetime.datetime.now(datetime.UTC).replace(microsecond=0),
        properties=properties,
        stac_extensions=[
            "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
            "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
        ],
    )
    classes = [
        {"value": k, "name": name, "color_hint": "".join(f"{part:02X}" for part in color)}
        for k, (name, color) in enumerate(zip(scene.label_set.names, scene.label_set.colors, strict=True))
    ]
    item.add_asset(
        "classes",
        pystac.Asset(
            href=f"./{scene.name.rsplit('/', 1)[-1]}.tif",
            media_type=pystac.MediaType.COG,
            roles=["data"],
            extra_fields={"classification:classes": classes},
        ),
    )
    return dict(item.to_dict(include_self_link=False))


def stac_collection(label_set: LabelSet, output: str, items: list[str]) -> dict[str, Any] | None:
    """A STAC collection above the items (their URIs below `output`); None where there is none."""
    import pystac

    found = [storage.read_json(uri) for uri in items]
    if not found:
        return None
    boxes = np.array([item["bbox"] for item in found])
    times = sorted(pystac.utils.str_to_datetime(item["properties"]["datetime"]) for item in found)
    collection = pystac.Collection(
        id=label_set.name,
        description=f"Maps of {', '.join(label_set.names)}",
        extent=pystac.Extent(
            pystac.SpatialExtent([[*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()]]),
            pystac.TemporalExtent([[times[0], times[-1]]]),
        ),
        license="other",
    )
    for uri, item in zip(items, found, strict=True):
        href = f"./{uri.removeprefix(output).lstrip('/')}"
        collection.add_link(pystac.Link("item", href, media_type="application/geo+json", title=item["id"]))
    return dict(collection.to_dict(include_self_link=False, transform_hrefs=False))
