"""What a network learns to be fed with, from a sample of the training scenes: bands, type, scaling, mean and spread.

Taken once, before the first step, from windows spread evenly over the training rows; never from the picture at hand, so
that training and prediction see the same numbers. It is kept beside the run: a resumed one takes it from there.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.decode.raster_header import wide_type
from pipeline.errors import InputError
from pipeline.models.scene_input import fixed_scaling, parse_bands, scaling_between
from pipeline.models.spec import Scaling
from pipeline.reading.regions import RegionReader, is_scene
from pipeline.reading.scene_window import SceneOptions
from pipeline.runtime.progress import say
from pipeline.training.config import TrainConfig

_WINDOWS = 32
_MOST_PX = 65_536  # of one window


def sample_scenes(config: TrainConfig, table: pa.Table) -> dict[str, Any]:
    """Fields of `ModelSpec` as JSON values; empty where the network is fed pictures, or scenes just like them.

    Raises InputError where no scene of the sample can be read, or wide values come without a scaling.
    """
    places = np.linspace(0, table.num_rows - 1, min(_WINDOWS, table.num_rows)).astype(int)
    rows = [row for row in table.take(pa.array(places)).to_pylist() if is_scene(row)]
    if not rows:
        if config.bands or config.scaling:
            raise InputError("--bands and --scaling are for raster scenes", where=config.source)
        return {}
    bands = parse_bands(config.bands)
    physical = (config.scaling or "").startswith("metadata")
    scenes = SceneOptions(bands, None, physical, config.resampling)
    reader = RegionReader(replace(config.read_options, scenes=scenes))
    try:
        regions = list(reader.read(rows))
    finally:
        reader.close()
    read = [region.pixels for region in regions if region.pixels is not None]
    if not read:
        raise InputError("no training scene can be read", where=config.source, found=regions[0].error)
    ((count, dtype), _), *others = Counter((one.shape[2], one.values.dtype.name) for one in read).most_common()
    if others:
        say(f"training scenes differ: {count} bands of {dtype}, but also {others[0][0][0]} of {others[0][0][1]}")
    wide = wide_type(dtype)
    if not wide and not config.scaling and not bands and count == 3:
        return {}
    if wide and not config.scaling:
        raise InputError(
            "scenes are wider than bytes: how are their values scaled?",
            where=config.source,
            found=f"{count} bands of {dtype}",
            todo="--scaling percentile:2,98, fixed:LOW,HIGH, metadata or none",
        )
    values = _values([one for one in read if one.shape[2] == count])
    scaling = _scaling(config.scaling, count, values)
    scaled = values / 255 if scaling is None else values * np.array(scaling.scales) + np.array(scaling.offsets)
    if scaling is not None and scaling.clips:
        scaled = scaled.clip(0, 1)
    mean, std = scaled.mean(axis=0), np.maximum(scaled.std(axis=0), 1e-6)
    found: dict[str, Any] = {"bands": count, "mean": mean.tolist(), "std": std.tolist(), "band_names": list(bands)}
    if scaling is not None:
        found["scaling"] = vars(scaling)
    if wide:
        found["dtype"] = "wide"
    found["fill"] = values.mean(axis=0).tolist()
    scaled_by = "" if scaling is None else f", {scaling.kind}"
    say(f"fed with {count} bands of {dtype}{scaled_by}; mean {_short(mean)}, spread {_short(std)}")
    return found


def _values(pictures: list[Any]) -> np.ndarray:
    """N x B float64: valid pixels of every picture, evenly spaced."""
    parts = []
    for picture in pictures:
        pixels = picture.values.reshape(-1, picture.shape[2])
        if picture.valid is not None:
            pixels = pixels[picture.valid.ravel()]
        parts.append(pixels[:: max(1, len(pixels) // _MOST_PX)].astype(np.float64))
    values = np.concatenate(parts)
    if not len(values):
        raise InputError("no training scene has a valid pixel in the sample")
    return values


def _scaling(text: str | None, bands: int, values: np.ndarray) -> Scaling | None:
    if text is None:
        return None
    scaling = fixed_scaling(text, bands)
    if scaling is None:
        low, high = (float(number) for number in text.partition(":")[2].split(","))
        lows, highs = np.percentile(values, [low, high], axis=0)
        scaling = scaling_between("percentile", lows.tolist(), highs.tolist())
    return scaling


def _short(numbers: np.ndarray) -> str:
    return ", ".join(f"{number:.3g}" for number in numbers)
