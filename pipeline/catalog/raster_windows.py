"""Raster scenes as windows: each scene's header is read, and the scene becomes the rows of a regular grid.

The cores tile the scene without overlap; what is read is the core with its halo, moved inwards at the scene's edges, so
that all windows of a scene have one shape (and make full batches) and every one starts on the network's grid. Cut off
at the scene's edge and never padded, a window sees there what a network that saw the whole scene would see.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from pipeline import storage
from pipeline.catalog.entry import Entry
from pipeline.decode import DecodeError
from pipeline.decode.child import DecodeChild
from pipeline.decode.raster_header import Asset, RasterHeader
from pipeline.errors import InputError

GRID_PX = 32  # the deepest stride of any network here: windows start on it
HEADER_DEADLINE_S, REMOTE_HEADER_DEADLINE_S = 20.0, 60.0
_AHEAD = 4  # headers under way, a process
Rectangle = tuple[int, int, int, int]  # x, y, width, height


@dataclass(frozen=True)
class WindowOptions:
    """`window_px` is the side of a core, `halo_px` what is read around it. Raises InputError where they do not go
    together."""

    window_px: int = 1024
    halo_px: int = 128
    resampling: str = "bilinear"  # of files coarser than their scene's grid

    def __post_init__(self) -> None:
        if self.window_px < GRID_PX or self.window_px % GRID_PX:
            raise InputError(
                "--window-px out of range",
                found=self.window_px,
                expected=f"a multiple of {GRID_PX}, the deepest output stride of a network",
            )
        if self.halo_px < 0 or self.halo_px % GRID_PX:
            raise InputError("--halo-px out of range", found=self.halo_px, expected=f"0 or a multiple of {GRID_PX}")
        if 2 * self.halo_px >= self.window_px:
            raise InputError(
                "--halo-px of half a window or more reads most pixels four times and over",
                found=f"--window-px {self.window_px} --halo-px {self.halo_px}",
                todo=f"--window-px {4 * self.halo_px}",
            )


def cut(side_px: int, window_px: int, halo_px: int) -> list[tuple[int, int, int, int]]:
    """One side of a scene as (first px and length of the core, first px and length of what is read), in order.

    What is read has one length for the whole side: core and halos, and so much more that it starts on the grid and can
    end with the scene.
    """
    wanted = window_px + 2 * halo_px
    length = wanted + (side_px - wanted) % GRID_PX if side_px > wanted else side_px
    if side_px <= length:
        return [(at, min(window_px, side_px - at), 0, side_px) for at in range(0, side_px, window_px)]
    return [
        (at, min(window_px, side_px - at), min(max(0, at - halo_px), side_px - length), length)
        for at in range(0, side_px, window_px)
    ]


def windows_of(width: int, height: int, options: WindowOptions) -> Iterator[tuple[Rectangle, Rectangle]]:
    """(core, what is read) of every window of a scene, row by row."""
    columns = cut(width, options.window_px, options.halo_px)
    for y, rows, read_y, read_rows in cut(height, options.window_px, options.halo_px):
        for x, wide, read_x, read_wide in columns:
            yield (x, y, wide, rows), (read_x, read_y, read_wide, read_rows)


@dataclass
class Headers:
    """What the headers said, for the manifest's summary: scenes by bands and type, those that could not be read."""

    scenes: int = 0
    unreadable: int = 0
    example: str | None = None
    kinds: dict[str, int] | None = None
    resampled: int = 0

    def add(self, header: RasterHeader) -> None:
        self.scenes += 1
        self.kinds = self.kinds or {}
        kind = f"{header.bands} {header.dtype}"
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        self.resampled += bool(header.resampled)

    def fail(self, path: str, error: Exception) -> None:
        self.unreadable += 1
        self.example = self.example or f"{path}: {error}"


def expand(
    entries: Iterable[Entry],
    options: WindowOptions,
    headers: Headers,
    *,
    keep: Callable[[RasterHeader, list[tuple[Rectangle, Rectangle]]], list[Any]] | None = None,
    whole: bool = False,
) -> Iterator[Entry]:
    """Each raster as an entry for each of its windows, in place; other entries as they are.

    Headers are read ahead by several processes. A scene whose header cannot be read stays one entry, which then fails
    with its reason; so does one that fits into a window. `keep` says of each window whether it is wanted (False, or an
    area that it is masked by, or None). With `whole` no scene is cut: training draws windows of its own.
    """
    children = [DecodeChild() for _ in range(os.cpu_count() or 1)]
    turns = count()
    ahead: deque[tuple[Entry, Future[RasterHeader] | None]] = deque()

    def read(entry: Entry) -> RasterHeader:
        child = children[next(turns) % len(children)]
        assets = _assets(entry)
        local = all(storage.is_local(asset.uri) for asset in assets)
        deadline_s = HEADER_DEADLINE_S if local else REMOTE_HEADER_DEADLINE_S
        return child.scene_header(assets, resampling=options.resampling, deadline_s=deadline_s)

    def windows(entry: Entry, header: Future[RasterHeader] | None) -> Iterator[Entry]:
        if header is None:
            yield entry
            return
        try:
            found = header.result()
        except DecodeError as error:
            headers.fail(entry.path, error)
            yield entry
            return
        headers.add(found)
        yield from _cut_entry(entry, found, options, keep, whole)

    threads = ThreadPoolExecutor(len(children) * _AHEAD, thread_name_prefix="header")
    try:
        for entry in entries:
            ahead.append((entry, threads.submit(read, entry) if entry.kind == "raster" else None))
            if len(ahead) > 2 * _AHEAD * len(children):
                yield from windows(*ahead.popleft())
        while ahead:
            yield from windows(*ahead.popleft())
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.close()


def _cut_entry(
    entry: Entry,
    header: RasterHeader,
    options: WindowOptions,
    keep: Callable[[RasterHeader, list[tuple[Rectangle, Rectangle]]], list[Any]] | None,
    whole: bool,
) -> Iterator[Entry]:
    side = None if header.transform is None else abs(complex(header.transform[0], header.transform[3]))
    columns = {**entry.columns, "scene_acquired": header.acquired, "scene_resolution": side}
    scene = replace(entry, columns=columns, scene_size=(header.width, header.height))
    small = max(header.width, header.height) <= options.window_px
    if whole or (small and keep is None):
        yield scene
        return
    cores_and_reads = list(windows_of(header.width, header.height, options))
    wanted = [None] * len(cores_and_reads) if keep is None else keep(header, cores_and_reads)
    for (core, read), area in zip(cores_and_reads, wanted, strict=True):
        if area is not False:
            yield replace(scene, window=core, read_window=read, area=area)


def _assets(entry: Entry) -> tuple[Asset, ...]:
    return tuple(Asset(*asset) for asset in entry.assets) or (Asset(entry.uri),)
