"""One picture of a collection, and what its path says of it: kind and split."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from typing import Any

PICTURE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .ppm .pgm .pbm .pnm .tga .jp2 .j2k .avif .heic".split()
)
RASTER_SUFFIXES = frozenset(".tif .tiff .vrt .img".split())
VIDEO_SUFFIXES = frozenset(".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg".split())

_NOT_DATA = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN"})  # of macOS, Synology, Windows

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLITS |= {"test": "test", "testing": "test"}


@dataclass(frozen=True)
class Entry:
    """One picture, raster or video of a collection. `path` is relative to the collection's root."""

    path: str
    uri: str
    kind: str  # picture | raster | video
    size_bytes: int | None
    version: str | None
    split: str | None = None
    label_uri: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    assets: tuple[tuple[str, int | None, str | None], ...] = ()  # of a scene of several files: uri, band index, name
    window: tuple[int, int, int, int] | None = None  # of a scene: x, y, width, height of the core
    read_window: tuple[int, int, int, int] | None = None  # and with the halo
    scene_size: tuple[int, int] | None = None  # width, height
    area: bytes | None = None  # what of the window is asked for, as WKB in its scene's pixels; None = all


def is_hidden(path: str) -> bool:
    """Whether a file is hidden, or lies in a hidden folder: `.ipynb_checkpoints/`, `__MACOSX/`, `._picture.jpg`.

    `path` is relative to the collection's root; folders above it do not count.
    """
    return any(part.startswith(".") or part in _NOT_DATA for part in path.split("/"))


def split_of(path: str) -> str | None:
    """The split that the deepest folder of a path names, if one does."""
    for part in reversed(path.split("/")[:-1]):
        if part.lower() in SPLITS:
            return SPLITS[part.lower()]
    return None


def kind_of(path: str) -> str | None:
    """picture | raster | video by the suffix, in any case; None for other names."""
    suffix = posixpath.splitext(path)[1].lower()
    if suffix in PICTURE_SUFFIXES:
        return "picture"
    if suffix in RASTER_SUFFIXES:
        return "raster"
    return "video" if suffix in VIDEO_SUFFIXES else None
