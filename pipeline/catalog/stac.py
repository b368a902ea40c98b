"""STAC items as scenes: a saved answer of a search (ItemCollection), one item, or a static catalogue.

The assets that are asked for become the bands of a scene, in that order, whatever files they lie in.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.catalog.collection import Collection
from pipeline.catalog.entry import Entry
from pipeline.errors import InputError, nearest

FIELDS = [
    pa.field("acquired", pa.string()),
    pa.field("cloud_cover", pa.float64()),
    pa.field("stac_collection", pa.string()),
]
_RASTER = ("image/tiff", "image/jp2", "image/vnd.stac.geotiff", "image/png", "image/jpeg")
_KINDS = ("Feature", "FeatureCollection", "Catalog", "Collection")


def is_stac(source: str) -> bool:
    """Whether a source is a JSON file of STAC's, by what it says of itself."""
    if not source.lower().endswith((".json", ".geojson")):
        return False
    try:
        text = storage.read_json(source)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, PermissionError):
        return False
    return isinstance(text, dict) and text.get("type") in _KINDS


def list_stac(source: str, assets: tuple[str, ...] | None) -> Collection:
    """A scene for each item, in the order of their ids. `assets` are names of assets, or common names of their bands;
    None takes the one raster that an item has.

    Raises InputError where no item has them, with the names that there are.
    """
    source = storage.absolute(source)
    items = sorted(_items(source, storage.read_json(source)), key=lambda pair: _path(pair[1]).encode())
    if not items:
        raise InputError("no STAC item", where=source)
    collection = Collection(posixpath.dirname(source), iter(()), extra_fields=list(FIELDS))
    entries = []
    for where, item in items:
        chosen = _chosen(item, assets, where)
        if chosen is None:
            collection.skip(_path(item))
        else:
            entries.append(_entry(item, chosen))
    if not entries:
        names = sorted({name for _, item in items for name in item.get("assets", {})})
        asked = ", ".join(assets or ())
        raise InputError(
            f"no item has the assets {asked}" if assets else "items have several rasters",
            where=source,
            found=", ".join(names),
            todo=f"--assets {nearest(assets[0], names) if assets else ','.join(names[:3])}",
        )
    collection.entries = iter(entries)
    return collection


def _items(where: str, text: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Items with the URI that their relative links start from."""
    kind = text.get("type")
    if kind == "Feature":
        yield where, text
    elif kind == "FeatureCollection":
        for item in text.get("features", []):
            yield where, item
    else:
        for link in text.get("links", []):
            if link.get("rel") in ("item", "child"):
                uri = _resolved(where, link["href"])
                try:
                    yield from _items(uri, json.loads(storage.read_bytes(uri)))
                except (FileNotFoundError, ValueError) as error:
                    raise InputError("a link of a STAC catalogue leads nowhere", where=uri, found=error) from None


def _chosen(
    item: dict[str, Any], assets: tuple[str, ...] | None, where: str
) -> list[tuple[str, int | None, str | None]] | None:
    there = item.get("assets", {})
    if assets is None:
        rasters = [
            asset
            for asset in there.values()
            if str(asset.get("type", "")).startswith(_RASTER) and "thumbnail" not in asset.get("roles", [])
        ]
        data = [asset for asset in rasters if "data" in asset.get("roles", [])] or rasters
        return [(_resolved(where, data[0]["href"]), None, None)] if len(data) == 1 else None
    found: list[tuple[str, int | None, str | None]] = []
    for name in assets:
        if name in there:
            found.append((_resolved(where, there[name]["href"]), None, name))
            continue
        for asset in there.values():
            bands = asset.get("bands") or asset.get("eo:bands") or []
            common = [band.get("eo:common_name", band.get("common_name")) for band in bands]
            if name in common:
                found.append((_resolved(where, asset["href"]), common.index(name) + 1, name))
                break
        else:
            return None
    return [(uri, index or 1, name) for uri, index, name in found]


def _entry(item: dict[str, Any], chosen: list[tuple[str, int | None, str | None]]) -> Entry:
    properties = item.get("properties", {})
    single = len(chosen) == 1 and chosen[0][1] is None
    return Entry(
        path=_path(item),
        uri=chosen[0][0],
        kind="raster",
        size_bytes=None,
        version=None,
        columns={
            "acquired": properties.get("datetime") or properties.get("start_datetime"),
            "cloud_cover": properties.get("eo:cloud_cover"),
            "stac_collection": item.get("collection"),
        },
        assets=() if single else tuple(chosen),
    )


def _path(item: dict[str, Any]) -> str:
    collection = item.get("collection")
    return f"{collection}/{item['id']}" if collection else str(item["id"])


def _resolved(where: str, href: str) -> str:
    if "://" in href or href.startswith("/"):
        return href
    folder, parts = posixpath.dirname(where), href.split("/")
    while parts and parts[0] in (".", ".."):
        folder = posixpath.dirname(folder) if parts.pop(0) == ".." else folder
    return storage.join(folder, *parts)
