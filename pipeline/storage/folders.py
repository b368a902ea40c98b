"""Folders and prefixes: what lies in them, streamed in order; moved and removed whole.

An object store has no folders, only keys that begin alike: there nothing is atomic but a single file.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import shutil
import time
from collections.abc import Iterator
from typing import Any

from fsspec.asyn import sync as run_on_fsspec_loop

from pipeline.storage import files


def is_folder(uri: str) -> bool:
    """True where something lies under `uri` (S3 has no empty folders)."""
    fs, path = files.filesystem(uri)
    return bool(fs.isdir(path))


def list_names(uri: str) -> list[str]:
    """Sorted names of the files and folders directly under `uri`; empty where there is nothing."""
    fs, path = files.filesystem(uri)
    if files.is_local(uri):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(name for name in os.listdir(path) if not name.endswith(".tmp"))
        return []
    fs.invalidate_cache()
    with contextlib.suppress(FileNotFoundError):
        found = (posixpath.basename(entry.rstrip("/")) for entry in fs.ls(path, detail=False))
        return sorted(name for name in found if name and name != posixpath.basename(path))
    return []


def walk_files(uri: str) -> Iterator[files.FileInfo]:
    """Every file under a folder or prefix, in the order of its path's UTF-8 bytes, streamed.

    Memory holds one page of an S3 listing, elsewhere the folders on the way to a file, at a time. A missing folder
    yields nothing. Local names that are no UTF-8 keep their bytes by surrogate escapes.
    """
    fs, path = files.filesystem(uri)
    if files.is_local(uri):
        yield from _walk_local(path, "")
    elif files.is_s3(fs):
        yield from _walk_s3(fs, uri.rstrip("/"), path)
    else:
        yield from _walk_folders(fs, uri, path, "")


def move_tree(source: str, target: str) -> None:
    """Rename a file or folder, or move a prefix file by file. Not atomic on object stores."""
    if files.is_local(source) or not is_folder(source):
        files.move(source, target)
        return
    for file in list(walk_files(source)):
        files.move(file.uri, files.join(target, file.path))


def remove_tree(uri: str) -> None:
    """Remove a folder with all it holds, also while others still write there; nothing happens where there is none."""
    fs, path = files.filesystem(uri)
    if files.is_local(uri):
        _remove_local_tree(path)
        return
    fs.invalidate_cache()
    with contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=True)
    fs.invalidate_cache()


def _walk_local(root: str, folder: str) -> Iterator[files.FileInfo]:
    try:
        entries = list(os.scandir(os.path.join(root, folder)))
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    # "a/" sorts where its files do: after "a-b" and before "a0", as in an object store's listing
    entries.sort(key=lambda entry: os.fsencode(entry.name) + (b"/" if entry.is_dir() else b""))
    for entry in entries:
        relative = posixpath.join(folder, entry.name)
        if entry.is_dir(follow_symlinks=True):
            if not entry.is_symlink() or os.path.realpath(entry.path) not in os.path.realpath(root):
                yield from _walk_local(root, relative)
        elif entry.is_file():
            status = entry.stat()
            yield files.FileInfo(entry.path, relative, status.st_size, f"mtime-{status.st_mtime_ns}")


def _walk_folders(fs: Any, uri: str, root: str, folder: str) -> Iterator[files.FileInfo]:
    """Folder by folder, for stores whose client gives no pages."""
    path = posixpath.join(root, folder)
    try:
        listed = fs.ls(path, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return
    entries = []
    for entry in listed:
        name = posixpath.basename(entry["name"].rstrip("/"))
        if entry["name"].rstrip("/") != path.rstrip("/"):  # some stores list a folder's own placeholder in it
            entries.append((os.fsencode(name) + b"/" * (entry["type"] == "directory"), name, entry))
    for _, name, entry in sorted(entries, key=lambda item: item[0]):
        relative = posixpath.join(folder, name)
        if entry["type"] == "directory":
            yield from _walk_folders(fs, uri, root, relative)
        else:
            yield files.file_info(fs, entry, files.join(uri, relative), relative)


def _walk_s3(fs: Any, uri: str, path: str) -> Iterator[files.FileInfo]:
    bucket, _, prefix = path.partition("/")
    pages = fs._iterdir(bucket, prefix=f"{prefix}/" if prefix else "", delimiter="")

    async def next_page(limit: int = 1000) -> list[dict[str, Any]]:
        page: list[dict[str, Any]] = []
        with contextlib.suppress(StopAsyncIteration):
            while len(page) < limit:
                page.append(await anext(pages))
        return page

    while page := run_on_fsspec_loop(fs.loop, next_page):
        for entry in page:
            if entry["type"] == "file" and not entry["name"].endswith("/"):
                relative = entry["name"][len(path) + 1 :]
                yield files.file_info(fs, entry, f"{uri}/{relative}", relative)


def _remove_local_tree(path: str, tries: int = 20) -> None:
    # a file that comes or goes in between breaks the walk off, with the rest still there
    for left in reversed(range(tries)):
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            if not os.path.lexists(path):
                return
        except OSError:
            if not left:
                raise
            time.sleep(0.01)
