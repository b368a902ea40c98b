"""Files anywhere: read whole and checked, put atomically, put only if absent (folders: `folders`).

A URI is a local path or anything fsspec knows (`s3://bucket/key`). S3's endpoint and keys come from the standard AWS
variables (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, ...). Ray and pyarrow are handed the same fsspec file systems:
pyarrow's own S3 client returns short reads without an error when responses are cut.
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow.fs
from fsspec.asyn import sync as run_on_fsspec_loop

from pipeline.errors import InputError

# What clients raise where a store cannot be reached: by name, since botocore and aiohttp are not imported here
_UNREACHABLE = {
    *("ConnectionError", "TimeoutError", "gaierror", "PermissionError"),
    *("ClientConnectorError", "ClientResponseError", "ServerTimeoutError", "InvalidURL"),
    *("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "HTTPClientError"),
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"),
    "ParamValidationError",  # no name of a bucket
}


@dataclass(frozen=True)
class FileInfo:
    """One listed file: its URI, its path relative to the listed folder, size, and version (etag or mtime in ns)."""

    uri: str
    path: str
    size_bytes: int
    version: str


class AccessDenied(InputError):
    """The store answers, and does not give what was asked for; of what is not there a store may say the same."""


class Replaced(Exception):
    """The file is there, but not the version that was asked for."""


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI and the path within it. Raises InputError for an unknown protocol."""
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


def is_s3(fs: fsspec.AbstractFileSystem) -> bool:
    return "s3" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


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


def info(uri: str) -> FileInfo:
    """Size and version of one file. Raises FileNotFoundError."""
    fs, path = filesystem(uri)
    return file_info(fs, fs.info(path), uri, posixpath.basename(path))


def file_info(fs: Any, entry: dict[str, Any], uri: str, relative: str) -> FileInfo:
    """Size and version as a store's client gives them in `entry`, of its `info` or its listing."""
    if entry.get("ETag"):
        version = "etag-" + str(entry["ETag"]).strip('"')
    elif is_local(uri):
        version = f"mtime-{os.stat(local_path(uri)).st_mtime_ns}"
    else:
        version = f"mtime-{entry.get('mtime') or entry.get('created') or entry.get('LastModified') or ''}"
    return FileInfo(uri, relative, int(entry.get("size") or 0), version)


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
    if not is_s3(fs):
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
    if not is_s3(fs):
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


@contextlib.contextmanager
def reachable(uri: str) -> Iterator[None]:
    """While a source is opened or listed: InputError in place of what a store's client says where it cannot be reached.

    That is: no such host, no answer, access denied, no credentials. Other errors pass.
    """
    try:
        yield
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if is_local(uri) or not kinds & _UNREACHABLE:
            raise
        refused = getattr(error, "status", None) in (401, 403)  # aiohttp's
        denied = refused or isinstance(error, PermissionError) or "Credentials" in type(error).__name__
        todo = "check the credentials, or set AWS_NO_SIGN_REQUEST=YES for a public bucket" if denied else None
        found = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        kind = AccessDenied if denied else InputError
        raise kind(
            "access is denied" if denied else "cannot be reached",
            where=uri,
            found=found,
            todo=todo or "check the address and the network",
        ) from None


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


def remove(uri: str) -> None:
    """Remove one file; nothing happens where there is none."""
    fs, path = filesystem(uri)
    with contextlib.suppress(FileNotFoundError), _naming(uri):
        fs.rm_file(path)


def _options(uri: str) -> dict[str, Any]:
    # a cached listing would hide what other processes write; each request's own time-outs let deadlines be kept.
    # standard retries wait up to 20 s each and about 55 s in all: a store that is away for 20 s ends no run
    if uri.startswith(("s3://", "s3a://")):
        return {
            "use_listings_cache": False,
            "anon": os.environ.get("AWS_NO_SIGN_REQUEST", "").lower() in ("yes", "true", "on", "1"),
            "requester_pays": os.environ.get("AWS_REQUEST_PAYER", "").lower() == "requester",
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


def _temporary(path: str) -> str:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, f".{os.path.basename(path)[:100]}-{uuid.uuid4().hex[:8]}.tmp")
