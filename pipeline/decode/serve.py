"""The decoding process: `child` starts it as `python -m pipeline.decode.serve PARENT MEMORY LIMIT`."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.decode.gdal_file import Grid
from pipeline.decode.header import DecodeError, read_header
from pipeline.decode.memory_file import write
from pipeline.decode.picture import decode, decode_label
from pipeline.decode.raster import Scenes
from pipeline.decode.raster_header import Asset, header_json
from pipeline.runtime.process import end_with_parent


def serve(memory: int) -> None:
    """Answer requests until the pipe closes; `memory` is the descriptor of the memory file."""
    requests, replies = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a decoder that prints must not garble the replies
    replies.write(b'{"ready": true}\n')
    while line := requests.readline():
        replies.write(json.dumps(_answer(memory, json.loads(line))).encode() + b"\n")


_scenes = Scenes()  # open between requests


def _answer(memory: int, request: dict[str, Any]) -> dict[str, Any]:
    kind, max_pixels = request["kind"], request["max_pixels"]
    try:
        if kind in ("scene header", "scene"):
            return _of_scene(memory, kind, request.pop("assets"), max_pixels, request["scene"])
        data = os.pread(memory, request["size_bytes"], 0)
        if kind == "header":
            return {"header": vars(read_header(data, max_pixels=max_pixels))}
        pixels = (decode_label if kind == "label" else decode)(data, max_pixels=max_pixels)
        write(memory, pixels.reshape(-1).view(np.uint8).data)
        return {"shape": pixels.shape, "dtype": pixels.dtype.str}
    except DecodeError as error:
        return {"error": type(error).__name__, "text": str(error)[:2000]}
    except MemoryError:
        return {"error": "DecodeError", "text": "more memory needed than the decoder may use"}


def _of_scene(memory: int, kind: str, assets: Any, max_pixels: int | None, how: dict[str, Any]) -> dict[str, Any]:
    files = tuple(Asset(*asset) for asset in assets)
    if kind == "scene header":
        return {"header": header_json(_scenes.header(files, **how))}
    window = how.pop("window")
    if how.get("onto") is not None:
        crs, transform, width, height = how["onto"]
        how["onto"] = Grid(crs, None if transform is None else tuple(transform), width, height)
    found = _scenes.read(files, None if window is None else tuple(window), max_pixels=max_pixels, **how)
    values = found.values.reshape(-1).view(np.uint8).data
    write(memory, values)
    if found.valid is not None:
        write(memory, np.packbits(found.valid).data, len(values))
    return {
        "shape": found.values.shape,
        "dtype": found.values.dtype.str,
        "has_mask": found.valid is not None,
        "header": header_json(found.header),
    }


def main(parent: int, memory: int, memory_limit_bytes: int) -> None:
    end_with_parent(parent)
    with contextlib.suppress(OSError):  # where memory runs out, this process goes first
        Path("/proc/self/oom_score_adj").write_text("800")
    resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    serve(memory)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
