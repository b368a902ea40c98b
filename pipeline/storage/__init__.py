"""Files anywhere: local disks and object stores, by URI.

In: a URI. Out: bytes that are checked, files that are put whole or only if absent, folders listed in order.

Reading order:
    files     one file: read, written, put only if absent; the fsspec and pyarrow file systems of a URI
    folders   many files: listed as a stream, moved, removed
"""

from pipeline.storage.files import (
    AccessDenied,
    FileInfo,
    Replaced,
    absolute,
    arrow_filesystem,
    exists,
    file_info,
    filesystem,
    info,
    is_local,
    is_s3,
    join,
    local_path,
    move,
    put_if_absent,
    reachable,
    read_bytes,
    read_json,
    read_version,
    remove,
    write_bytes,
    write_json,
)

__all__ = [
    "AccessDenied",
    "FileInfo",
    "Replaced",
    "absolute",
    "arrow_filesystem",
    "exists",
    "file_info",
    "filesystem",
    "info",
    "is_local",
    "is_s3",
    "join",
    "local_path",
    "move",
    "put_if_absent",
    "reachable",
    "read_bytes",
    "read_json",
    "read_version",
    "remove",
    "write_bytes",
    "write_json",
]
