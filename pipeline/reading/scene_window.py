"""One window of a raster scene: which files, bands and pixels a manifest row asks for, and how long is tried.

GDAL fetches by ranges in the decoding child, so fetching and decoding are one step here, with both deadlines.
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.decode import DecodeError, DecoderDied, DecodeTimeout, TooLarge
from pipeline.decode.gdal import is_remote
from pipeline.decode.gdal_file import Grid
from pipeline.decode.pool import DecodePool
from pipeline.decode.raster import RasterWindow
from pipeline.decode.raster_header import Asset
from pipeline.reading.pixels import Pixels, Place

Row = dict[str, Any]
Rectangle = tuple[int, int, int, int]

_VERSION_HOLDS_S = 60.0
_PASSING = ("HTTP", "CURL", "curl", "response", "timed out", "Timeout", "Connection", "SSL", "/vsis3/", "/vsicurl/")


@dataclass(frozen=True)
class SceneOptions:
    """How scenes are read for a network; in no fingerprint, for the checkpoint's own is."""

    bands: tuple[str, ...] = ()  # by name or number, none = all
    takes: tuple[int, bool | None] | None = None  # bands of the network, and whether they are bytes
    physical: bool = False  # values times the file's scale plus its offset
    resampling: str = "bilinear"  # of files coarser than the scene's grid


@dataclass(frozen=True)
class SceneWindow:
    """Pixels, where their core lies, and the grid of the whole scene."""

    pixels: Pixels
    place: Place
    grid: Grid


def assets_of(row: Row) -> tuple[Asset, ...]:
    """The files and bands of a row's scene."""
    if row.get("assets"):
        return tuple(Asset(one["uri"], one["index"], one["band"]) for one in row["assets"])
    return (Asset(row["uri"]),)


def rectangle(window: dict[str, int] | None) -> Rectangle | None:
    return None if window is None else (window["x"], window["y"], window["width"], window["height"])


def read_window(decoders: DecodePool, row: Row, options: SceneOptions, limits: dict[str, float]) -> SceneWindow:
    """The pixels of a row of kind raster. Raises DecodeError and its kin; `SceneUnreachable` where a store failed.

    `limits` are `deadline_s`, `fetch_s` (added to it where a store is asked), `retry_s` and `max_pixels`.
    """
    core, read = rectangle(row.get("window")), rectangle(row.get("read_window"))
    read = read or core
    found = _persistently(
        decoders,
        assets_of(row),
        read,
        limits,
        bands=options.bands,
        takes=options.takes,
        physical=options.physical,
        resampling=options.resampling,
    )
    header = found.header
    grid = Grid(header.crs, header.transform, header.width, header.height)
    inside = None
    if core is not None and read is not None and core != read:
        x, y = core[0] - read[0], core[1] - read[1]
        inside = (slice(y, y + core[3]), slice(x, x + core[2]))
    valid = found.valid
    if row.get("scene_area") is not None and core is not None and read is not None:
        asked = _drawn(row["scene_area"], read)
        valid = asked if valid is None else valid & asked
    pixels = Pixels(found.values, valid, inside)
    transform = None
    if header.georeference == "transform" and header.transform is not None:
        transform = moved(header.transform, *(core or (0, 0))[:2])
    return SceneWindow(pixels, Place(header.crs, transform, header.georeference), grid)


def _drawn(wkb: bytes, read: Rectangle) -> np.ndarray:
    """H x W bool: the pixels of what is read, halo too, whose centres lie within an area in px of the scene."""
    import shapely
    from rasterio.features import geometry_mask
    from rasterio.transform import Affine

    x, y, width, height = read
    return geometry_mask([shapely.from_wkb(wkb)], (height, width), Affine.translation(x, y), invert=True)


def read_truth(decoders: DecodePool, uri: str, grid: Grid, core: Rectangle, limits: dict[str, float]) -> RasterWindow:
    """The raw label values of a part of a scene, from a raster on the scene's or another grid (nearest)."""
    return _persistently(decoders, (Asset(uri),), core, limits, onto=grid, as_labels=True)


def grid_of_result(row: Row) -> Grid | None:
    """The grid of the whole scene, of a row of predictions of one of its windows; None of any other row."""
    window = rectangle(row.get("window"))
    if (
        window is None
        or not row.get("scene_width")
        or "transform" not in row
        or importlib.util.find_spec("rasterio") is None
    ):
        return None
    transform = row.get("transform")
    whole = None if transform is None else moved(tuple(transform), -window[0], -window[1])
    return Grid(row.get("crs"), whole, row["scene_width"], row["scene_height"])


def moved(transform: tuple[float, ...], x: int, y: int) -> tuple[float, ...]:
    """The affine transform of a part of a scene that begins at column x, row y."""
    a, b, c, d, e, f = transform
    return (a, b, c + a * x + b * y, d, e, f + d * x + e * y)


class SceneUnreachable(DecodeError):
    """A store that failed for longer than fetching is retried."""

    status = "fetch_error"


def _persistently(
    decoders: DecodePool, assets: tuple[Asset, ...], window: Rectangle | None, limits: dict[str, float], **how: Any
) -> RasterWindow:
    """As `DecodePool.scene`; what may be a store's passing trouble is tried again."""
    started_s, pause_s = time.monotonic(), 0.25
    remote, died = any(is_remote(asset.uri) for asset in assets), False
    deadline_s = limits["deadline_s"] + limits["fetch_s"] * remote
    while True:
        try:
            return decoders.scene(assets, window, max_pixels=int(limits["max_pixels"]), deadline_s=deadline_s, **how)
        except TooLarge:
            raise
        except DecoderDied:  # of this window, or of something else: where memory runs out, decoders go first
            if died:
                raise
            died = True
        except DecodeTimeout:
            if not remote or time.monotonic() - started_s >= limits["retry_s"]:
                raise
        except DecodeError as error:
            passing = remote and any(word in str(error) for word in _PASSING)
            if not passing:
                raise
            elapsed_s = time.monotonic() - started_s
            if elapsed_s >= limits["retry_s"]:
                raise SceneUnreachable(f"{error}; gave up after {elapsed_s:.0f} s") from None
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 8.0)


class Versions:
    """Whether files still are those of the manifest; each is asked about once a minute at most."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, storage.FileInfo | None]] = {}

    def changed(self, uri: str, size_bytes: int | None, version: str | None) -> str | None:
        """What has changed, or None."""
        if version is None and size_bytes is None:
            return None
        asked_s, info = self._known.get(uri, (-1e9, None))
        if time.monotonic() - asked_s > _VERSION_HOLDS_S:
            try:
                info = storage.info(uri)
            except FileNotFoundError:
                return "FileNotFoundError: gone since the manifest was made"
            except Exception:  # reading it will say what is wrong
                return None
            self._known[uri] = (time.monotonic(), info)
            if len(self._known) > 1000:
                self._known.pop(next(iter(self._known)))
        assert info is not None
        if size_bytes is not None and info.size_bytes != size_bytes:
            return f"manifest says {size_bytes} bytes, the store has {info.size_bytes}"
        if version and info.version and info.version != version:
            return f"manifest says version {version}, the store has {info.version}"
        return None


def without_prediction(pixels: Pixels) -> bool:
    """Whether no pixel of the core is valid, so that no network need see it."""
    return pixels.valid is not None and not bool(np.any(pixels.valid[pixels.core_slices]))
