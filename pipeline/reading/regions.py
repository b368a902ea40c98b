"""Manifest rows -> pixels: fetch, check, decode, under deadlines, with a status instead of an exception.

Train, segment and evaluate all read through `RegionReader`. Fetching runs ahead in threads; decoding runs in a child
process, so that a picture which crashes or hangs its decoder costs its own row only.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from pipeline import storage
from pipeline.decode import DecodeError, DecoderDied
from pipeline.decode.gdal_file import Grid
from pipeline.decode.pool import DecodePool
from pipeline.labels import Encoded, LabelSet
from pipeline.reading.pixels import Pixels, Place
from pipeline.reading.scene_window import (
    SceneOptions,
    Versions,
    assets_of,
    grid_of_result,
    read_truth,
    read_window,
    rectangle,
)

Row = dict[str, Any]


@dataclass(frozen=True)
class ReadOptions:
    """Deadlines and limits of one region. None of them is part of a run's fingerprint but `max_pixels`."""

    fetch_deadline_s: float = 60.0  # of one attempt
    fetch_retry_s: float = 60.0  # a fetch that fails is retried for at least this long
    decode_deadline_s: float = 30.0
    max_pixels: int = 100_000_000  # judged from the header, before anything is allocated
    threads: int = 8  # fetches under way at once
    decoders: int = 1  # processes at most; a second is started when decoding is what the reader waits for
    scenes: SceneOptions = SceneOptions()

    @property
    def scene_limits(self) -> dict[str, float]:
        """Of a window, which is decoded and, from a store, fetched in one step."""
        return {
            "deadline_s": self.decode_deadline_s,
            "fetch_s": self.fetch_deadline_s,
            "retry_s": self.fetch_retry_s,
            "max_pixels": self.max_pixels,
        }


@dataclass
class Region:
    """One region as far as it could be read.

    `pixels` is not None exactly where `status` is "ok" and pictures were asked for; of a picture they are uint8 H x W x
    3 (RGB). `truth` is the encoded class map of their core; where it could not be had, `truth_error` says why. `labels`
    says which raw values of the label file were void or outside the label set. `place` is where the core of a scene's
    window lies.
    """

    row: Row
    status: str = "ok"
    error: str | None = None
    pixels: Pixels | None = None
    place: Place | None = None
    grid: Grid | None = field(default=None, repr=False)  # of the whole scene
    truth: np.ndarray | None = None
    truth_error: str | None = None
    labels: Encoded | None = None


class Failure(Exception):
    """Why a region could not be read: a status of `schema.STATUSES` and a text."""

    def __init__(self, status: str, error: str) -> None:
        super().__init__(error)
        self.status = status
        self.error = error


class RegionReader:
    """Reads manifest rows in order, `options.threads` ahead. Never raises for one region. Not to be pickled."""

    def __init__(self, options: ReadOptions | None = None, label_set: LabelSet | None = None) -> None:
        self.options = options or ReadOptions()
        self.label_set = label_set
        self._decoders = DecodePool(self.options.decoders)
        self._threads = ThreadPoolExecutor(self.options.threads, thread_name_prefix="fetch")
        self._fetch_s = 0.0  # of all threads together
        self._counting = threading.Lock()
        self._versions = Versions()
        self._grids: dict[str, Grid] = {}

    def read(self, rows: Iterable[Row], *, pictures: bool = True, labels: bool = False) -> Iterator[Region]:
        """One `Region` for each row, in order. A row needs `uri`; `size_bytes` and `version` are checked where
        given."""
        ahead: deque[Future[Region]] = deque()
        for row in rows:
            ahead.append(self._threads.submit(self._read_one, row, pictures, labels))
            if len(ahead) > 2 * self.options.threads:
                yield self._next(ahead)
        while ahead:
            yield self._next(ahead)

    def _next(self, ahead: deque[Future[Region]]) -> Region:
        begin_s = time.monotonic()
        region = ahead.popleft().result()
        end_s = time.monotonic()
        self._decoders.note_wait(end_s - begin_s, end_s)
        return region

    def take_busy(self) -> dict[str, float]:
        """Seconds of work since the last call: `fetch` of all threads together, `decode` of all processes together."""
        with self._counting:
            fetch_s, self._fetch_s = self._fetch_s, 0.0
        return {"fetch": fetch_s, "decode": self._decoders.take_busy()}

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._decoders.close()

    def _read_one(self, row: Row, pictures: bool, labels: bool) -> Region:
        region = Region(row)
        if pictures:
            try:
                self._read_pixels(region)
            except Failure as failure:
                region.status, region.error = failure.status, failure.error
            except Exception as error:  # a region never raises; an error of ours is still its row's reason
                region.status, region.error = "decode_error", f"{type(error).__name__}: {error}"
        if labels:
            try:
                self._read_truth(region)
            except Failure as failure:
                region.truth_error = failure.error
            except Exception as error:
                region.truth_error = f"{type(error).__name__}: {error}"
        return region

    def _read_pixels(self, region: Region) -> None:
        row = region.row
        if row.get("kind") == "video" or row.get("frame") is not None:
            raise Failure("decode_error", "video frames are not read by this version; extract them to pictures")
        if is_scene(row):
            if reason := self._versions.changed(row["uri"], row.get("size_bytes"), row.get("version")):
                raise Failure("changed", reason)
            with _failures():
                found = read_window(self._decoders, row, self.options.scenes, self.options.scene_limits)
            region.pixels, region.place, region.grid = found.pixels, found.place, found.grid
            return
        data = self._fetch(row["uri"], row.get("size_bytes"), row.get("version"))
        region.pixels = Pixels(self._decode(data, "picture"))

    def _read_truth(self, region: Region) -> None:
        uri = region.row.get("label_uri")
        if not uri:
            raise Failure("label_missing", "no label file")
        if self.label_set is None:
            raise ValueError("RegionReader needs a label set to read labels")
        grid = region.grid or grid_of_result(region.row) or self._grid(region.row)
        if grid is not None:
            core = rectangle(region.row.get("window")) or (0, 0, grid.width, grid.height)
            with _failures():
                found = read_truth(self._decoders, uri, grid, core, self.options.scene_limits)
            raw, valid = found.values[..., 0] if found.values.shape[2] == 1 else found.values, found.valid
        else:
            raw, valid = self._decode(self._fetch(uri, None, None), "label"), None
        region.labels = self.label_set.encode(raw)
        region.truth = region.labels.class_map
        for known in (valid, region.pixels.core_valid if region.pixels is not None else None):
            if known is not None and known.shape == region.truth.shape:
                region.truth = np.where(known, region.truth, region.truth.dtype.type(self.label_set.ignore_value))

    def _grid(self, row: Row) -> Grid | None:
        """The grid of a row's scene, from its header, where labels are read without the picture; None of a picture."""
        if not is_scene(row) or not row.get("scene_width"):
            return None
        if row["uri"] not in self._grids:
            with _failures():
                header = self._decoders.scene_header(assets_of(row), deadline_s=self.options.decode_deadline_s)
            self._grids[row["uri"]] = Grid(header.crs, header.transform, header.width, header.height)
        return self._grids[row["uri"]]

    def _fetch(self, uri: str, size_bytes: int | None, version: str | None) -> bytes:
        begin_s = time.monotonic()
        try:
            return fetch(uri, size_bytes, version, self.options)
        finally:
            with self._counting:
                self._fetch_s += time.monotonic() - begin_s

    def _decode(self, data: bytes, kind: Literal["picture", "label"]) -> np.ndarray:
        decode = functools.partial(
            self._decoders.decode,
            data,
            kind,
            max_pixels=self.options.max_pixels,
            deadline_s=self.options.decode_deadline_s,
        )
        with _failures():
            try:
                return decode()
            except DecoderDied:  # of this picture, or of something else: where memory runs out, decoders go first
                return decode()


@functools.cache
def shared_reader(options: ReadOptions, label_set_json: str | None = None) -> RegionReader:
    """This process's reader for these options: Ray's workers are reused, so is the reader with its child."""
    import json

    label_set = LabelSet.from_json(json.loads(label_set_json)) if label_set_json else None
    return RegionReader(options, label_set)


def fetch(uri: str, size_bytes: int | None, version: str | None, options: ReadOptions) -> bytes:
    """The whole object, checked against the manifest's size and version.

    Raises Failure: `changed` where the object is gone or another one, `fetch_error` where it could not be had in
    `fetch_retry_s`. A short read is retried: some clients return one without an error when a response is cut.
    """
    started_s = time.monotonic()
    pause_s = 0.25
    while True:
        try:
            data = storage.read_version(uri, version, timeout_s=options.fetch_deadline_s)
            if size_bytes is None or len(data) == size_bytes:
                return data
            now = storage.info(uri)
            if now.size_bytes != size_bytes or (version and now.version != version):
                raise Failure("changed", f"manifest says {size_bytes} bytes, the store has {now.size_bytes}")
            reason = f"short read: {len(data)} of {size_bytes} bytes"
        except storage.Replaced as error:
            raise Failure("changed", str(error)) from None
        except FileNotFoundError:
            raise Failure("changed", "FileNotFoundError: gone since the manifest was made") from None
        except (PermissionError, IsADirectoryError) as error:
            raise Failure("fetch_error", f"{type(error).__name__}: {error}") from None
        except TimeoutError:
            reason = f"no answer within {options.fetch_deadline_s:g} s"
        except Failure:
            raise
        except Exception as error:  # whatever a store's client raises may be gone at the next try
            reason = f"{type(error).__name__}: {error}"
        elapsed_s = time.monotonic() - started_s
        if elapsed_s >= options.fetch_retry_s:
            raise Failure("fetch_error", f"{reason}; gave up after {elapsed_s:.0f} s")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 8.0)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """What decoding raises, as the row's status."""
    try:
        yield
    except DecodeError as error:
        raise Failure(error.status, str(error)) from None


def is_scene(row: Row) -> bool:
    """Whether a row is read by windows of a scene: it is a raster, and what opens rasters is installed."""
    return row.get("kind") == "raster" and _opens_rasters()


@functools.cache
def _opens_rasters() -> bool:
    return importlib.util.find_spec("rasterio") is not None
