"""Files anywhere: list in order, read whole and checked, put atomically, put only if absent.

A URI is a local path or anything fsspec knows (`s3://bucket/key`). S3's endpoint and keys come from the standard AWS
variables (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ...). Ray and pyarrow are handed the same fsspec file systems:
pyarrow's own S3 client returns short reads without an error when responses are cut.
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow.fs
from fsspec.asyn import sync as run_on_fsspec_loop

from pipeline.errors import InputError


@dataclass(frozen=True)
class FileInfo:
    """One listed file: its URI, its path relative to the listed folder, size, and version (etag or mtime in ns)."""

    uri: str
    path: str
    size_bytes: int
    version: str


class Replaced(Exception):
    """The file is there, but not the version that was asked for."""


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path within it. Raises InputError for a protocol nobody knows."""
    try:
        fs, path = fsspec.core.url_to_fs(os.path.expanduser(uri), **_options(uri))
    except (ValueError, ImportError) as error:
        raise InputError("cannot open this kind of URI", where=uri, found=str(error)) from None
    return fs, path.rstrip("/") or "/"


def arrow_filesystem(uri: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The same for pyarrow and Ray, which take `(filesystem, path)`."""
    if is_local(uri):
        return pyarrow.fs.LocalFileSystem(), local_path(uri)
    fs, path = filesystem(uri)
    return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)), path


def is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith(("file://", "local://"))


def local_path(uri: str) -> str:
    return os.path.abspath(os.path.expanduser(uri.split("://", 1)[-1]))


def absolute(uri: str) -> str:
    """A local path made absolute; other URIs as they are, without a trailing slash."""
    return local_path(uri) if is_local(uri) else uri.rstrip("/")


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def exists(uri: str) -> bool:
    fs, path = filesystem(uri)
    return bool(fs.exists(path))


def is_folder(uri: str) -> bool:
    """True where something lies under `uri` (S3 has no empty folders)."""
    fs, path = filesystem(uri)
    return bool(fs.isdir(path))


def info(uri: str) -> FileInfo:
    """Size and version of one file. Raises FileNotFoundError."""
    fs, path = filesystem(uri)
    return _file_info(fs, fs.info(path), uri, posixpath.basename(path))


def read_bytes(uri: str) -> bytes:
    """The whole file, in one request. Raises FileNotFoundError or what the store says; see `regions` for retries."""
    if is_local(uri):
        with open(local_path(uri), "rb") as file:
            return file.read()
    fs, path = filesystem(uri)
    return bytes(fs.cat_file(path))


def read_version(uri: str, version: str | None, *, timeout_s: float) -> bytes:
    """The whole file if it still is that version (etag or mtime; None = any), in one request.

    Raises Replaced where it is another one, FileNotFoundError, TimeoutError, or what the store says.
    """
    if is_local(uri):
        with open(local_path(uri), "rb") as file:
            found = f"mtime-{os.fstat(file.fileno()).st_mtime_ns}"
            if version and version.startswith("mtime-") and found != version:
                raise Replaced(f"manifest says {version}, the file has {found}")
            return file.read()
    fs, path = filesystem(uri)
    if "s3" not in _protocols(fs):
        return bytes(fs.cat_file(path))
    bucket = fs.split_path(path)[0]
    key = path.removeprefix(f"{bucket}/")  # split_path itself would cut a key off at "?versionId="
    matching = {"IfMatch": version[5:]} if version and version.startswith("etag-") else {}

    async def get() -> bytes:
        response = await fs._call_s3("get_object", Bucket=bucket, Key=key, **matching, **fs.req_kw)
        return bytes(await response["Body"].read())

    try:
        return bytes(run_on_fsspec_loop(fs.loop, get, timeout=timeout_s))
    except OSError as error:
        if _precondition_failed(error):
            raise Replaced(f"manifest says {version}, the store has another version") from None
        raise


def write_bytes(uri: str, data: bytes) -> None:
    """Put a whole file so that no reader ever sees a part of it: a rename locally, one PUT on an object store."""
    fs, path = filesystem(uri)
    if is_local(uri):
        temporary = _temporary(path)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    else:
        with _naming(uri):
            fs.pipe_file(path, data)


def put_if_absent(uri: str, data: bytes) -> bool:
    """Put a file only where none is; False if there was one. Atomic: of two callers exactly one succeeds.

    Raises NotImplementedError for a store that cannot promise it.
    """
    fs, path = filesystem(uri)
    if is_local(uri):
        temporary = _temporary(path)
        with open(temporary, "wb") as file:
            file.write(data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        return True
    if "s3" not in _protocols(fs):
        raise NotImplementedError(f"{fs.protocol} has no put-if-absent")
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        return False
    except OSError as error:
        if _precondition_failed(error):
            return False
        raise
    finally:
        fs.invalidate_cache(posixpath.dirname(path))
    return True


def read_json(uri: str) -> Any:
    return json.loads(read_bytes(uri))


def write_json(uri: str, value: Any) -> None:
    write_bytes(uri, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def move(source: str, target: str) -> None:
    """Rename a file over `target` (locally), or copy on the server and delete (object stores)."""
    fs, from_path = filesystem(source)
    _, to_path = filesystem(target)
    if is_local(source):
        os.makedirs(os.path.dirname(to_path), exist_ok=True)
        os.replace(from_path, to_path)
    else:
        with _naming(target):
            fs.cp_file(from_path, to_path)
        with _naming(source):
            fs.rm_file(from_path)
        fs.invalidate_cache()


def move_tree(source: str, target: str) -> None:
    """Rename a file or folder, or move a prefix file by file. Not atomic on object stores."""
    if is_local(source) or not is_folder(source):
        move(source, target)
        return
    for file in list(walk_files(source)):
        move(file.uri, join(target, file.path))


def remove(uri: str) -> None:
    """Remove one file; nothing happens where there is none."""
    fs, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError), _naming(uri):
        fs.rm_file(path)


def remove_tree(uri: str) -> None:
    """Remove a folder with all it holds, also while others still write there; nothing happens where there is none."""
    fs, path = filesystem(uri)
    if is_local(uri):
        _remove_local_tree(path)
        return
    fs.invalidate_cache()
    with contextlib.suppress(FileNotFoundError):
        fs.rm(path, recursive=True)
    fs.invalidate_cache()


def list_names(uri: str) -> list[str]:
    """Sorted names of the files and folders directly under `uri`; empty where there is nothing."""
    fs, path = filesystem(uri)
    if is_local(uri):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(name for name in os.listdir(path) if not name.endswith(".tmp"))
        return []
    fs.invalidate_cache()
    with contextlib.suppress(FileNotFoundError):
        found = (posixpath.basename(entry.rstrip("/")) for entry in fs.ls(path, detail=False))
        return sorted(name for name in found if name and name != posixpath.basename(path))
    return []


def walk_files(uri: str) -> Iterator[FileInfo]:
    """Every file under a folder or prefix, in the order of its path's UTF-8 bytes, streamed.

    Memory holds one page of an S3 listing, elsewhere the folders on the way to a file, at a time. A missing folder
    yields nothing. Local names that are no UTF-8 keep their bytes by surrogate escapes.
    """
    fs, path = filesystem(uri)
    if is_local(uri):
        yield from _walk_local(path, "")
    elif "s3" in _protocols(fs):
        yield from _walk_s3(fs, uri.rstrip("/"), path)
    else:
        yield from _walk_folders(fs, uri, path, "")


def _walk_local(root: str, folder: str) -> Iterator[FileInfo]:
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
            yield FileInfo(entry.path, relative, status.st_size, f"mtime-{status.st_mtime_ns}")


def _walk_folders(fs: Any, uri: str, root: str, folder: str) -> Iterator[FileInfo]:
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
            yield _file_info(fs, entry, join(uri, relative), relative)


def _walk_s3(fs: Any, uri: str, path: str) -> Iterator[FileInfo]:
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
                yield _file_info(fs, entry, f"{uri}/{relative}", relative)


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


def _file_info(fs: Any, entry: dict[str, Any], uri: str, relative: str) -> FileInfo:
    if entry.get("ETag"):
        version = "etag-" + str(entry["ETag"]).strip('"')
    elif is_local(uri):
        version = f"mtime-{os.stat(local_path(uri)).st_mtime_ns}"
    else:
        version = f"mtime-{entry.get('mtime') or entry.get('created') or entry.get('LastModified') or ''}"
    return FileInfo(uri, relative, int(entry.get("size") or 0), version)


def _options(uri: str) -> dict[str, Any]:
    # a cached listing would hide what other processes write; each request's own time-outs let deadlines be kept.
    # standard retries wait up to 20 s each and about 55 s in all: a store that is away for 20 s ends no run
    if uri.startswith(("s3://", "s3a://")):
        return {
            "use_listings_cache": False,
            "config_kwargs": {
                "connect_timeout": 10,
                "read_timeout": 30,
                "retries": {"mode": "standard", "max_attempts": 10},
            },
        }
    return {}


@contextlib.contextmanager
def _naming(uri: str) -> Iterator[None]:
    """Object stores say "Access Denied", and not of what."""
    try:
        yield
    except PermissionError as error:
        if error.filename:
            raise
        raise PermissionError(f"{error}: {uri}") from error


def _precondition_failed(error: OSError) -> bool:
    # s3fs turns botocore's error code into an errno; the code itself stands in the chained ClientError
    text = f"{error} {error.__cause__}"
    return "PreconditionFailed" in text or "pre-conditions" in text or "(412)" in text


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _temporary(path: str) -> str:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, f".{os.path.basename(path)[:100]}-{uuid.uuid4().hex[:8]}.tmp")
