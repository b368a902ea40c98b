"""Which label file belongs to which region: an index small enough for ten million, looked up by many workers.

The index is an Arrow table of (16-byte key, label URI) sorted by key. It lives in Ray's object store, where the workers
of a node read the same memory; the driver never holds it. Keys are region keys where the truth is a manifest with
labels, and hashes of the path without its suffix where it is a folder of label files. Such paths may differ in their
Unicode form (a folder that was on a Mac has NFD): their keys are those of NFC, unless two label files then share one.
"""

from __future__ import annotations

import hashlib
import posixpath
import unicodedata
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.catalog.label_files import LABEL_SUFFIXES
from pipeline.catalog.manifest import Manifest

INDEX = pa.schema([pa.field("key", pa.binary(16)), pa.field("label_uri", pa.large_string())])
_KEY = np.dtype("S16")  # numpy drops trailing zero bytes on both sides of a comparison: equal keys stay equal


def joins_by_path(manifest: Manifest) -> bool:
    """Whether this is a folder of label files (nothing in it has a label of its own) and not a labelled collection."""
    return manifest.labelled == 0


def describe_truth(manifest: Manifest) -> str:
    """What was found to compare with: label files, or pictures that have labels."""
    if not joins_by_path(manifest):
        return manifest.summary()
    skipped = f", {manifest.skipped} other files skipped" if manifest.skipped else ""
    return f"{manifest.num_rows} label files{skipped}"


def key_of_path(path: str) -> bytes:
    """16 bytes that a picture and its label file share: a hash of the path without its suffix, byte for byte."""
    stem = posixpath.splitext(path)[0]
    return hashlib.blake2b(stem.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def key_of_look(path: str) -> bytes:
    """The same for paths that look the same: the key of the path in Unicode's composed form (NFC)."""
    return key_of_path(unicodedata.normalize("NFC", path))


def build_index(manifest: Manifest, split: str | None = None) -> pa.Table:
    """The index of a manifest's labels (of one split), sorted by key.

    Of label files that differ in their suffix only, the one with the first of `LABEL_SUFFIXES` counts.
    """
    by_path = joins_by_path(manifest)
    columns = ["path", "uri"] if by_path else ["region_key", "label_uri"]
    parts = [pa.table([pa.array([], INDEX.field(name).type) for name in INDEX.names], schema=INDEX)]
    exact: list[np.ndarray] = []
    for part in manifest.part_uris():
        fs, path = storage.arrow_filesystem(part)
        table = pq.read_table(path, filesystem=fs, columns=[*columns, "split"])
        if split is not None:
            table = table.filter(pc.equal(table["split"], split))
        if by_path:
            ranks = np.array([_rank(path) for path in table["path"].to_pylist()], np.int64)
            table = table.take(pa.array(np.argsort(ranks, kind="stable")))
            paths = table["path"].to_pylist()
            keys, uris = [key_of_look(path) for path in paths], table["uri"]
            exact.append(np.array([key_of_path(path) for path in paths], dtype=_KEY))
        else:
            table = table.filter(pc.is_valid(table["label_uri"]))
            keys, uris = [bytes.fromhex(key) for key in table["region_key"].to_pylist()], table["label_uri"]
        parts.append(pa.table([pa.array(keys, pa.binary(16)), uris.cast(pa.large_string())], schema=INDEX))
    whole = pa.concat_tables(parts).combine_chunks()
    if by_path and whole.num_rows:
        whole = whole.set_column(0, INDEX.field("key"), _told_apart(_keys(whole), np.concatenate(exact)))
    order = np.argsort(_keys(whole), kind="stable")
    return whole.take(pa.array(order)).combine_chunks()


def _told_apart(look: np.ndarray, exact: np.ndarray) -> pa.Array:
    """The keys `look`, but the `exact` ones where paths of other bytes share the look."""
    order = np.argsort(look, kind="stable")
    shared = (look[order][1:] == look[order][:-1]) & (exact[order][1:] != exact[order][:-1])
    keys = np.where(np.isin(look, look[order][1:][shared]), exact, look)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, pa.py_buffer(keys.tobytes())])


def find_labels_by_path(index: pa.Table, paths: Sequence[str]) -> list[str | None]:
    """The label URI of each picture's path: of the same bytes, or else of the same look; None where there is none."""
    found = find_labels(index, [key_of_path(path) for path in paths])
    lacking = [i for i, path in enumerate(paths) if found[i] is None and not path.isascii()]
    for i, uri in zip(lacking, find_labels(index, [key_of_look(paths[i]) for i in lacking]), strict=True):
        found[i] = uri
    return found


def find_labels(index: pa.Table, keys: Sequence[bytes]) -> list[str | None]:
    """The label URI of each key, None where there is none."""
    known = _keys(index)
    if not len(known) or not keys:
        return [None] * len(keys)
    wanted = np.array(keys, dtype=_KEY)
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    found = known[at] == wanted
    uris = index["label_uri"]
    return [uris[int(i)].as_py() if hit else None for i, hit in zip(at, found, strict=True)]


def _keys(index: pa.Table) -> np.ndarray:
    """The key column as S16, without a copy."""
    column = index["key"]
    if not index.num_rows:
        return np.zeros(0, dtype=_KEY)
    chunk = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    assert len(chunk) == index.num_rows, "the index is one chunk"
    return np.frombuffer(chunk.buffers()[1], dtype=_KEY)[chunk.offset : chunk.offset + len(chunk)]


def _rank(path: str) -> int:
    suffix = posixpath.splitext(path)[1].lower()
    return LABEL_SUFFIXES.index(suffix) if suffix in LABEL_SUFFIXES else len(LABEL_SUFFIXES)
