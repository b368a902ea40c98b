"""How a side of a large picture is cut into tiles that overlap, so that the tiles together see what the whole would."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Cut:
    """One side of a tile, in pixels of the picture: what is read, and the part of it that is kept."""

    read: slice
    keep: slice


def cut_side(side_px: int, tile_px: int, overlap_px: int, grid_px: int) -> list[Cut]:
    """Cut one side into tiles of one length <= `tile_px` that start on the grid and end with the picture.

    So every tile sees the same strided grid and the same borders as the whole picture would. Neighbours overlap by at
    least `overlap_px` and meet in the middle of the overlap. Of all such cuts the one that reads the fewest pixels.
    """
    if side_px <= tile_px:
        return [Cut(slice(0, side_px), slice(0, side_px))]
    candidates = []
    for step in range(grid_px, tile_px - overlap_px + 1, grid_px):
        count = math.ceil((side_px - tile_px) / step) + 1
        length = side_px - (count - 1) * step
        if length - step >= overlap_px:  # holds at the latest where 2 * step <= tile_px - overlap_px
            candidates.append((count * length, count, length, step))
    _, count, length, step = min(candidates)
    margin = (length - step) // 2
    starts = [i * step for i in range(count)]
    edges = [0, *(start + margin for start in starts[1:]), side_px]
    return [Cut(slice(start, start + length), slice(edges[i], edges[i + 1])) for i, start in enumerate(starts)]


def cut_fixed(side_px: int, tile_px: int, overlap_px: int) -> list[Cut]:
    """Cut one side into tiles of exactly `tile_px`, spread evenly, for a network that takes no other length.

    Neighbours overlap by at least `overlap_px` (at most a quarter of a tile) and meet in the middle of the overlap. A
    shorter side is one cut of its own length, to be padded.
    """
    if side_px <= tile_px:
        return [Cut(slice(0, side_px), slice(0, side_px))]
    overlap_px = min(overlap_px, tile_px // 4)
    gaps = math.ceil((side_px - tile_px) / (tile_px - overlap_px))
    starts = [(side_px - tile_px) * i // gaps for i in range(gaps + 1)]
    edges = [0, *((end + tile_px + start) // 2 for end, start in zip(starts, starts[1:], strict=False)), side_px]
    return [Cut(slice(start, start + tile_px), slice(*edges[i : i + 2])) for i, start in enumerate(starts)]
