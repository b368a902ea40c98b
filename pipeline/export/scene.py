"""The rows of one scene: windows of class ids on one grid. Masks are read one by one, never all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.errors import InputError
from pipeline.labels import LabelSet
from pipeline.reading.scene_window import moved
from pipeline.tables.prediction_table import prediction_files, with_arrays

_PLACE = "path status error window scene_width scene_height crs transform height width".split()
_MASK = "mask mask_format mask_dtype confidence".split()
Piece = tuple[str, int]  # a file of predictions, and one of its row groups


@dataclass(frozen=True)
class WindowMap:
    """The class map (h x w) of one window, which begins at column x, row y of its scene; h x w confidence (uint8, times
    255) where it was kept."""

    x: int
    y: int
    class_map: np.ndarray
    confidence: np.ndarray | None


@dataclass(frozen=True)
class Scene:
    """One scene, or one picture, which is a scene of one window. `transform` is of the whole, six numbers."""

    path: str
    label_set: LabelSet
    pieces: tuple[Piece, ...]
    width: int
    height: int
    crs: str | None
    transform: tuple[float, ...] | None
    predicted: int  # windows with a mask
    failed: int
    error: str | None
    has_confidence: bool

    @property
    def name(self) -> str:
        """The path without its suffix."""
        folder, _, file = self.path.rpartition("/")
        stem = file.rsplit(".", 1)[0] or file
        return f"{folder}/{stem}" if folder else stem

    @property
    def ignore_value(self) -> int:
        return self.label_set.ignore_value

    def windows(self) -> Iterator[WindowMap]:
        """Every window that has a mask, in the order of the table."""
        for row in _rows(self.pieces, self.path, [*_PLACE, *_MASK]):
            if row["status"] == "ok" and row["mask"] is not None:
                row = with_arrays(row)
                x, y = (row["window"]["x"], row["window"]["y"]) if row["window"] else (0, 0)
                yield WindowMap(x, y, row["mask"], row.get("confidence"))

    def whole(self) -> np.ndarray:
        """The class map of the whole scene, H x W."""
        found = np.full((self.height, self.width), self.ignore_value, self.label_set.mask_dtype)
        for window in self.windows():
            height, width = window.class_map.shape
            found[window.y : window.y + height, window.x : window.x + width] = window.class_map
        return found


def scenes_of(uri: str) -> dict[str, list[Piece]]:
    """The paths in predictions, sorted, each with the row groups that hold its rows. Masks are not read."""
    found: dict[str, list[Piece]] = {}
    for file in prediction_files(uri):
        fs, path = storage.arrow_filesystem(file)
        with pq.ParquetFile(path, filesystem=fs) as parquet:
            for group in range(parquet.num_row_groups):
                for name in pc.unique(parquet.read_row_group(group, columns=["path"])["path"]).to_pylist():
                    found.setdefault(name, []).append((file, group))
    return dict(sorted(found.items()))


def open_scene(path: str, pieces: list[Piece], label_set: LabelSet) -> Scene:
    """What the rows of a scene say of it, masks unread. Raises InputError where masks were not kept."""
    columns = [*_PLACE, "mask_format"]
    width = height = predicted = failed = 0
    crs, transform, error, unkept = None, None, None, False
    for row in _rows(tuple(pieces), path, columns):
        x, y = (row["window"]["x"], row["window"]["y"]) if row["window"] else (0, 0)
        width = max(width, row["scene_width"] or x + (row["width"] or 0))
        height = max(height, row["scene_height"] or y + (row["height"] or 0))
        if row["status"] != "ok":
            failed, error = failed + 1, error or row["error"]
            continue
        predicted += 1
        unkept = unkept or row["mask_format"] is None
        crs = crs or row["crs"]
        if transform is None and row["transform"] is not None:
            transform = moved(tuple(row["transform"]), -x, -y)
    if predicted and unkept:
        raise InputError("predictions without masks", where=path, found="--mask-format none", expected="raw, png, rle")
    kept = _has_confidence(pieces, path)
    return Scene(path, label_set, tuple(pieces), width, height, crs, transform, predicted, failed, error, kept)


def _has_confidence(pieces: list[Piece], path: str) -> bool:
    file, group = pieces[0]
    fs, name = storage.arrow_filesystem(file)
    with pq.ParquetFile(name, filesystem=fs) as parquet:
        place = parquet.schema_arrow.names.index("confidence")
        statistics = parquet.metadata.row_group(group).column(_leaf(parquet, place)).statistics
        return statistics is None or statistics.null_count < parquet.metadata.row_group(group).num_rows


def _leaf(parquet: pq.ParquetFile, column: int) -> int:
    """The number of a flat column among the leaves, where nested columns stand before it."""
    name = parquet.schema_arrow.names[column]
    group = parquet.metadata.row_group(0)
    return next(i for i in range(group.num_columns) if group.column(i).path_in_schema == name)


def _rows(pieces: tuple[Piece, ...], path: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    for file, group in pieces:
        fs, name = storage.arrow_filesystem(file)
        with pq.ParquetFile(name, filesystem=fs) as parquet:
            there = [column for column in columns if column in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(batch_size=16, row_groups=[group], columns=there):
                for row in batch.filter(pc.equal(batch["path"], path)).to_pylist():
                    yield {**dict.fromkeys(columns), **row}
