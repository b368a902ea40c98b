"""What lies at a source: pictures in path order, each with its split and, where there is one, its label file.

A source is a folder or prefix (takes names with a picture, raster or video suffix and counts the others), a glob (takes
every file it matches) or one file; `picture_table` takes a table of pictures, `inventory` an S3 Inventory.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
from fsspec.utils import glob_translate

from pipeline import storage
from pipeline.catalog.entry import Entry, is_hidden, kind_of, split_of
from pipeline.catalog.label_files import LabelFolders, pair_within_folders
from pipeline.errors import InputError
from pipeline.storage import FileInfo, folders

_SHOWN = 5

Match = Callable[[str], bool]


@dataclass
class Collection:
    """A listing, to be iterated once. Its counts are complete at the end of the iteration."""

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
        file = storage.info(storage.absolute(source))
        root = posixpath.dirname(file.uri)
        return list_files(root, [file], labels=labels, match=lambda path: True, hidden_too=True)
    if not is_folder and any(mark in source for mark in "*?["):
        root, pattern = _split_glob(source)
        matches = re.compile(glob_translate(pattern)).match
        asked_for = is_hidden(posixpath.dirname(pattern))
        return list_files(
            root, folders.walk_files(root), labels=labels, match=lambda path: bool(matches(path)), hidden_too=asked_for
        )
    if not is_folder:
        raise InputError(
            "source does not exist",
            where=source,
            expected="a folder, a prefix, a glob, a .csv or .parquet table of pictures, an S3 Inventory, or a manifest",
        )
    root = storage.absolute(source)
    return list_files(root, folders.walk_files(root), labels=labels)


def list_files(
    root: str,
    files: Iterable[FileInfo],
    *,
    labels: str | None = None,
    match: Match | None = None,
    hidden_too: bool = False,
) -> Collection:
    """The pictures among files below `root` that come in path order; `match` chooses files in place of their suffix,
    and with `hidden_too` also those in hidden folders."""
    collection = Collection(root, iter(()))
    collection.entries = pair_within_folders(_entries(collection, files, labels, match, hidden_too))
    return collection


def _entries(
    collection: Collection, files: Iterable[FileInfo], labels: str | None, match: Match | None, hidden_too: bool
) -> Iterator[Entry]:
    """Files -> entries with the label of the folder beside; label folders, hidden and foreign names are left out."""
    beside = LabelFolders(collection.root, labels)
    for file in files:
        if match is not None and not match(file.path):
            continue
        folder, name = posixpath.split(file.path)
        kind = kind_of(name)
        # a glob takes every name that it matches, though not from folders that hide themselves, nor a Mac's `._` files
        hidden = not hidden_too and (is_hidden(folder) or name.startswith("._"))
        if hidden or (match is None and (kind is None or is_hidden(name))):
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


def _split_glob(source: str) -> tuple[str, str]:
    """The folder before the first part with a mark of a pattern, and the pattern relative to it."""
    parts = source.split("/")
    first = next(i for i, part in enumerate(parts) if any(mark in part for mark in "*?["))
    return storage.absolute("/".join(parts[:first]) or ("/" if source.startswith("/") else ".")), "/".join(
        parts[first:]
    )
