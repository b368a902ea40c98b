"""The label file that belongs to a picture, by where it lies and what it is called.

Label files lie beside the pictures: in the folder next to theirs (`train/` and `trainannot/`, `images/` and `masks/` or
`labels/`), or in the same folder (`x.jpg` with `x_mask.png`, `x_label.png`, or a grey or palette `x.png`).
"""

from __future__ import annotations

import functools
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

from pipeline import storage
from pipeline.catalog.entry import SPLITS, Entry
from pipeline.errors import InputError
from pipeline.storage import folders

LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")  # lossless ones, in order of preference

_PICTURE_FOLDER = re.compile(r"(images?|imgs?|pictures?|photos?|frames?|rgb|JPEGImages|leftImg8bit)$", re.I)
_LABEL_FOLDER = re.compile(r"(masks?|labels?|annotations?|gt|gtFine|SegmentationClass)([_-].*)?$", re.I)
_LABEL_FOLDERS = "masks mask labels label annotations annotation gt gtFine SegmentationClass".split()
_LABEL_NAME = re.compile(r"[._-](mask|masks|label|labels|gt|gtFine_labelIds|labelIds|annotation)$", re.I)
_PICTURE_NAME = re.compile(r"_leftImg8bit$")

_MOST_HELD_BACK = 10_000  # pictures waiting for a label file further down the same folder


class LabelFolders:
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
        stem, (exact, normal) = _picture_stem(name), self._names(uri)
        label = exact.get(stem)
        if label is None:
            # a folder that was on a Mac holds the same letters in another form; only one such file can be meant
            same = normal.get(_nfc(stem), [])
            label = same[0] if len(same) == 1 else None
        return None if label is None else storage.join(uri, label)

    def _find(self, folder: str) -> str | None:
        if self._tree is not None:
            tree = self._tree.rstrip("/") + "/"
            return tree + (_folder_of_this_look(tree, folder) or folder) if folder else self._tree
        candidates = list(self._candidates(self._parts(folder)))
        found = next(filter(self._exists, candidates), None)
        if found is None:
            found = next(filter(None, (_folder_of_this_look(self._base, candidate) for candidate in candidates)), None)
        return None if found is None else self._base + found

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

    def _read_names(self, uri: str) -> tuple[dict[str, str], dict[str, list[str]]]:
        """The label file of each stem, and of each stem in Unicode's composed form."""
        found: dict[str, str] = {}
        rank = {suffix: i for i, suffix in enumerate(LABEL_SUFFIXES)}
        for name in sorted(folders.list_names(uri), key=lambda n: -rank.get(_suffix(n), 99)):
            if _suffix(name) in rank:
                found[_label_stem(name)] = name  # the preferred suffix comes last and stays
        normal: dict[str, list[str]] = {}
        for stem, name in found.items():
            normal.setdefault(_nfc(stem), []).append(name)
        return found, normal


def pair_within_folders(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Pair label files that lie in the pictures' own folder with their pictures; they leave the stream."""
    return _pair_by_look(_pair_by_bytes(entries))


def _pair_by_bytes(entries: Iterable[Entry]) -> Iterator[Entry]:
    """In path order all names that begin with a picture's stem follow it, so a picture waits only for those."""
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


def _pair_by_look(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The two forms of a name lie apart in path order: names that are not ASCII wait for the end of their folder."""
    held: list[Entry] = []
    folder = ""
    for entry in entries:
        if held and (not entry.path.startswith(folder) or len(held) > _MOST_HELD_BACK):
            yield from _paired_by_look(held)
            held.clear()
        if not held:
            folder, name = posixpath.split(entry.path)
            folder += "/" if folder else ""
            if name.isascii():
                yield entry
                continue
        held.append(entry)
    yield from _paired_by_look(held)


def _paired_by_look(held: list[Entry]) -> list[Entry]:
    """Entries in path order with the label files among them hung on the one picture that has the same name."""
    alike: dict[str, list[int]] = defaultdict(list)  # stem -> places in held
    labels: dict[str, list[int]] = defaultdict(list)  # stem of the picture that a name like x_mask belongs to -> places
    for place, entry in enumerate(held):
        stem, suffix = posixpath.splitext(_nfc(entry.path))
        if entry.label_uri is None and not stem.isascii():
            alike[stem].append(place)
            if suffix.lower() in LABEL_SUFFIXES and _LABEL_NAME.search(stem):
                labels[_LABEL_NAME.sub("", stem)].append(place)
    for stem, places in alike.items():  # a grey or palette x.png beside x.jpg
        if len(places) == 2 and stem not in labels:
            labels[stem] = [place for place in places if _suffix(held[place].path) == ".png"]
            if len(labels[stem]) == 1 and _is_grey_or_palette(held[labels[stem][0]].uri):
                places.remove(labels[stem][0])
    taken: set[int] = set()
    for stem, found in labels.items():
        if len(found) == 1 == len(alike[stem]) and found != alike[stem]:
            (picture,) = alike[stem]
            held[picture] = replace(held[picture], label_uri=held[found[0]].uri)
            taken.add(found[0])
    return [entry for place, entry in enumerate(held) if place not in taken]


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


def _folder_of_this_look(base: str, path: str) -> str | None:
    """The one folder below `base` (ends in "/") that has this path in another Unicode form; None where none has."""
    if path.isascii():
        return None
    found = ""
    for part in path.split("/"):
        names = [part]
        if not part.isascii():
            there = folders.list_names(base + found)
            names = [part] if part in there else [name for name in there if _nfc(name) == _nfc(part)]
        if len(names) != 1:
            return None
        found = posixpath.join(found, names[0])
    return found if folders.is_folder(base + found) else None


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _picture_stem(name: str) -> str:
    return _PICTURE_NAME.sub("", posixpath.splitext(name)[0])


def _label_stem(name: str) -> str:
    return _LABEL_NAME.sub("", posixpath.splitext(name)[0])


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
