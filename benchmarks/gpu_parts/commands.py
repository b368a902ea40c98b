"""The jobs as commands, for the parts that need the whole project; pictures to run them on."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent.parent


def job(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A job to its end. Raises RuntimeError with its last words where it fails."""
    command = [sys.executable, str(PROJECT / "jobs" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return done


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}


def labelled(options: argparse.Namespace, scratch: Path) -> tuple[str, str]:
    """A labelled collection and its label set: CamVid where it is there, drawn scenes elsewhere."""
    if options.pictures and not options.small:
        return str(options.pictures), "camvid"
    from pipeline.scenes import write_scenes

    write_scenes(str(scratch / "scenes"), train=24 if options.small else 300, unseen=4)
    return str(scratch / "scenes"), "scenes"


def jpegs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Pictures of H x W as JPEG files: smooth noise, which compresses about as a street does."""
    import simplejpeg

    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = random.integers(0, 256, (size[0] // 8 + 1, size[1] // 8 + 1, 3), np.uint8)
        pixels: Any = coarse.repeat(8, axis=0).repeat(8, axis=1)[: size[0], : size[1]]
        (folder / f"{number:05d}.jpg").write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=90))
