"""What lies at a source: pictures in path order, each with its split and, where there is one, its label file.

A source is a folder or prefix (takes names with a picture, raster or video suffix and counts the others), a glob (takes
every file it matches) or one file; `collection_table` takes a table of pictures, `inventory` an S3 Inventory.

Label files are found beside the pictures: in the folder next to theirs (`train/` and `trainannot/`, `images/` and
`masks/` or `labels/`), or in the same folder (`x.jpg` with `x_mask.png`, `x_label.png`, or a grey or palette
`x.png`).
"""

from __future__ import annotations

import functools
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from fsspec.utils import glob_translate

from pipeline import folders, storage
from pipeline.errors import InputError
from pipeline.storage import FileInfo

PICTURE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .ppm .pgm .pbm .pnm .tga .jp2 .j2k .avif .heic".split()
)
RASTER_SUFFIXES = frozenset(".tif .tiff .vrt .img".split())
VIDEO_SUFFIXES = frozenset(".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg".split())
LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")  # lossless ones, in order of preference

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLITS |= {"test": "test", "testing": "test"}

_PICTURE_FOLDER = re.compile(r"(images?|imgs?|pictures?|photos?|frames?|rgb|JPEGImages|leftImg8bit)$", re.I)
_LABEL_FOLDER = re.compile(r"(masks?|labels?|annotations?|gt|gtFine|SegmentationClass)([_-].*)?$", re.I)
_LABEL_FOLDERS = "masks mask labels label annotations annotation gt gtFine SegmentationClass".split()
_LABEL_NAME = re.compile(r"[._-](mask|masks|label|labels|gt|gtFine_labelIds|labelIds|annotation)$", re.I)
_PICTURE_NAME = re.compile(r"_leftImg8bit$")

_MOST_HELD_BACK = 10_000  # pictures waiting for a label file further down the same folder
_SHOWN = 5

Match = Callable[[str], bool]


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


@dataclass
class Collection:
    """A listing under way: iterate once. The counts are complete when the iteration is."""

    root: str
    entries: Iterator[Entry]
    extra_fields: list[pa.Field] = field(default_factory=list)
    skipped: int = 0
    skipped_examples: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Entry]:
        return self.entries

    def skip(self, path: str) -> None:
        self.skipped += 1
        if len(self.skipped_examples) < _SHOWN:
            self.skipped_examples.append(path)


def list_collection(source: str, *, labels: str | None = None) -> Collection:
    """The pictures at `source`, streamed in path order. Raises InputError for a source that does not exist.

    `labels` names the label files where they are not found by themselves: the name of the folder beside the pictures'
    (`masks_ignore`), or the URI of a folder with the same paths.
    """
    source = source.rstrip("/") or "/"
    is_folder = folders.is_folder(source)
    if not is_folder and storage.exists(source):
        root, name = posixpath.split(storage.absolute(source))
        return list_files(root, folders.walk_files(root), labels=labels, match=lambda path: path == name)
    if not is_folder and any(mark in source for mark in "*?["):
        root, pattern = _split_glob(source)
        matches = re.compile(glob_translate(pattern)).match
        return list_files(root, folders.walk_files(root), labels=labels, match=lambda path: bool(matches(path)))
    if not is_folder:
        raise InputError(
            "source does not exist",
            where=source,
            expected="a folder, a prefix, a glob, a .csv or .parquet table of pictures, an S3 Inventory, or a manifest",
        )
    root = storage.absolute(source)
    return list_files(root, folders.walk_files(root), labels=labels)


def list_files(
    root: str, files: Iterable[FileInfo], *, labels: str | None = None, match: Match | None = None
) -> Collection:
    """The pictures among files below `root` that come in path order; `match` chooses files in place of their suffix."""
    collection = Collection(root, iter(()))
    collection.entries = _pair_within_folders(_entries(collection, files, labels, match))
    return collection


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


def _entries(
    collection: Collection, files: Iterable[FileInfo], labels: str | None, match: Match | None
) -> Iterator[Entry]:
    """Files -> entries with the label of the folder beside; label folders and foreign names are left out."""
    beside = _LabelFolders(collection.root, labels)
    for file in files:
        if match is not None and not match(file.path):
            continue
        folder, name = posixpath.split(file.path)
        kind = kind_of(name)
        if match is None and (kind is None or name.startswith(".")):
            collection.skip(file.path)
            continue
        if match is None and beside.is_label_folder(folder):
            continue
        yield Entry(
            path=file.path,
            uri=file.uri,
            kind=kind or "picture",
            size_bytes=file.size_bytes,
            version=file.version,
            split=split_of(f"{posixpath.basename(collection.root)}/{file.path}"),
            label_uri=beside.label_of(folder, name),
        )


class _LabelFolders:
    """Finds the label folder beside a picture folder, and the label file of a picture in it."""

    def __init__(self, root: str, labels: str | None) -> None:
        self._root_name = posixpath.basename(root)
        self._base = root.removesuffix(self._root_name)  # ends in "/"; "s3://" above a whole bucket
        self._tree = labels if labels and ("/" in labels or folders.is_folder(labels)) else None
        self._folder_name = labels if self._tree is None else None
        if self._tree is not None and not folders.is_folder(self._tree):
            raise InputError("label folder does not exist", where=self._tree)
        self._exists = functools.lru_cache(maxsize=100_000)(lambda path: folders.is_folder(self._base + path))
        self._names = functools.lru_cache(maxsize=4)(self._read_names)
        self.label_folder = functools.lru_cache(maxsize=1024)(self._find)
        self.is_label_folder = functools.lru_cache(maxsize=1024)(self._is_label_folder)

    def label_of(self, folder: str, name: str) -> str | None:
        uri = self.label_folder(folder)
        if uri is None:
            return None
        label = self._names(uri).get(_picture_stem(name))
        return None if label is None else storage.join(uri, label)

    def _find(self, folder: str) -> str | None:
        if self._tree is not None:
            return storage.join(self._tree, folder) if folder else self._tree
        for candidate in self._candidates(self._parts(folder)):
            if self._exists(candidate):
                return self._base + candidate
        return None

    def _candidates(self, parts: list[str]) -> Iterator[str]:
        for i in reversed(range(len(parts))):
            names: list[str] = []
            if _PICTURE_FOLDER.match(parts[i]):
                names = [self._folder_name] if self._folder_name else _LABEL_FOLDERS
            elif parts[i].lower() in SPLITS:
                names = [self._folder_name] if self._folder_name else [f"{parts[i]}annot"]
            for name in names:
                yield posixpath.join(*parts[:i], name, *parts[i + 1 :])

    def _is_label_folder(self, folder: str) -> bool:
        """Whether a folder below the root holds the labels of a folder beside it."""
        parts = self._parts(folder)
        for i in range(1, len(parts)):
            above, name = parts[:i], parts[i]
            if name.lower().endswith("annot") and self._exists(posixpath.join(*above, name[: -len("annot")])):
                return True
            if _LABEL_FOLDER.match(name) or name == self._folder_name:
                siblings = folders.list_names(self._base + posixpath.join(*above))
                if any(_PICTURE_FOLDER.match(sibling) for sibling in siblings):
                    return True
        return False

    def _parts(self, folder: str) -> list[str]:
        return [self._root_name, *(part for part in folder.split("/") if part)]

    def _read_names(self, uri: str) -> dict[str, str]:
        found: dict[str, str] = {}
        rank = {suffix: i for i, suffix in enumerate(LABEL_SUFFIXES)}
        for name in sorted(folders.list_names(uri), key=lambda n: -rank.get(_suffix(n), 99)):
            if _suffix(name) in rank:
                found[_label_stem(name)] = name  # the preferred suffix comes last and stays
        return found


def _pair_within_folders(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Takes label files that lie in the pictures' own folder out of the stream and hangs them on their pictures.

    In path order all names that begin with a picture's stem follow it, so a picture waits only for those.
    """
    held: list[Entry] = []  # in order
    open_stems: list[tuple[str, int]] = []  # nested prefixes: (path without suffix, place in held)
    for entry in entries:
        while open_stems and not entry.path.startswith(open_stems[-1][0]):
            open_stems.pop()
        if not open_stems or len(held) > _MOST_HELD_BACK:
            yield from held
            held.clear()
            open_stems.clear()
        of = next((place for stem, place in open_stems if _is_label_of(entry, stem, held[place])), None)
        if of is not None:
            held[of] = replace(held[of], label_uri=entry.uri)
            continue
        open_stems.append((posixpath.splitext(entry.path)[0], len(held)))
        held.append(entry)
    yield from held


def _is_label_of(entry: Entry, stem: str, picture: Entry) -> bool:
    own_stem, suffix = posixpath.splitext(entry.path)
    if suffix.lower() not in LABEL_SUFFIXES or picture.label_uri is not None:
        return False
    if own_stem == stem:
        return suffix.lower() == ".png" and picture.path != entry.path and _is_grey_or_palette(entry.uri)
    return _LABEL_NAME.sub("", own_stem) == stem


def _is_grey_or_palette(uri: str) -> bool:
    """Whether a PNG's header says one value a pixel: then `x.png` beside `x.jpg` is its label, not a picture."""
    try:
        with storage.filesystem(uri)[0].open(storage.filesystem(uri)[1], "rb", block_size=4096) as file:
            header = file.read(26)
    except OSError:
        return False
    return header[:8] == b"\x89PNG\r\n\x1a\n" and header[25] in (0, 3)


def _split_glob(source: str) -> tuple[str, str]:
    """The folder before the first part with a mark of a pattern, and the pattern relative to it."""
    parts = source.split("/")
    first = next(i for i, part in enumerate(parts) if any(mark in part for mark in "*?["))
    return storage.absolute("/".join(parts[:first]) or ("/" if source.startswith("/") else ".")), "/".join(
        parts[first:]
    )


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _picture_stem(name: str) -> str:
    return _PICTURE_NAME.sub("", posixpath.splitext(name)[0])


def _label_stem(name: str) -> str:
    return _LABEL_NAME.sub("", posixpath.splitext(name)[0])
