"""How a network is fed from raster scenes: which bands, and how their values are scaled. Free of torch.

Both stand in the checkpoint, where training or importing has put them; a run may say others.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.errors import InputError
from pipeline.models.spec import ModelSpec, Scaling
from pipeline.reading.scene_window import SceneOptions

SCALINGS = "fixed:LOW,HIGH (or LOW,HIGH;LOW,HIGH;... band by band), percentile:LOW,HIGH, metadata or none"


def parse_bands(text: str | None) -> tuple[str, ...]:
    """Names or numbers (from 1) of bands, in the order of the network's. Raises InputError for one that is twice."""
    bands = tuple(part.strip() for part in (text or "").strip("()[] ").split(",") if part.strip())
    twice = [band for band in bands if bands.count(band) > 1]
    if twice:
        raise InputError("--bands names a band twice", found=text, expected="each band once: 4,3,2 or red,green,blue")
    if any(band.isdigit() and int(band) < 1 for band in bands):
        raise InputError("--bands counts from 1", found=text)
    return bands


def fixed_scaling(text: str, bands: int) -> Scaling | None:
    """The scaling that `text` says by itself, for so many bands; None for percentiles, which a sample must give.

    Raises InputError for what is none.
    """
    kind, _, numbers = text.partition(":")
    if kind in ("metadata", "none") and not numbers:
        return Scaling(kind, (1.0,) * bands, (0.0,) * bands)
    try:
        ranges = [tuple(float(number) for number in part.split(",")) for part in numbers.split(";")]
        lows, highs = zip(*ranges, strict=True)
    except ValueError:
        raise _no_scaling(text) from None
    if kind not in ("fixed", "percentile") or any(low >= high for low, high in ranges):
        raise _no_scaling(text)
    if kind == "percentile":
        if len(ranges) > 1 or lows[0] < 0 or highs[0] > 100:
            raise _no_scaling(text)
        return None
    if len(ranges) not in (1, bands):
        raise InputError("--scaling does not fit the bands", found=f"{len(ranges)} ranges", expected=f"1 or {bands}")
    ranges = ranges * bands if len(ranges) == 1 else ranges
    return scaling_between("fixed", [low for low, _ in ranges], [high for _, high in ranges])


def scaling_between(kind: str, lows: list[float], highs: list[float]) -> Scaling:
    """The scaling that brings low..high of each band to 0..1."""
    widths = [max(high - low, 1e-12) for low, high in zip(lows, highs, strict=True)]
    scales = tuple(1 / width for width in widths)
    return Scaling(kind, scales, tuple(-low / width for low, width in zip(lows, widths, strict=True)))


def fed_with(spec: ModelSpec, bands: str | None, scaling: str | None) -> ModelSpec:
    """A checkpoint's description with other bands or another scaling, where they are given.

    Raises InputError for bands that are not as many as the network takes, and for percentiles: those are of the
    training scenes, and stand in the checkpoint.
    """
    names = parse_bands(bands)
    if names and len(names) != spec.bands:
        raise InputError("--bands does not fit the network", found=bands, expected=f"{spec.bands} bands")
    if names:
        spec = replace(spec, band_names=names)
    if scaling:
        found = fixed_scaling(scaling, spec.bands)
        if found is None:
            raise InputError(
                "--scaling percentile is for training, which takes it from the training scenes",
                found=scaling,
                todo="--scaling fixed:LOW,HIGH with the network's own range",
            )
        spec = replace(spec, scaling=found, dtype="any")
    return spec


def reading_of(spec: ModelSpec, resampling: str) -> SceneOptions:
    """How scenes are read for this network."""
    physical = spec.scaling is not None and spec.scaling.kind == "metadata"
    return SceneOptions(spec.band_names, spec.takes, physical, resampling)


def _no_scaling(text: str) -> InputError:
    return InputError("--scaling has a wrong value", found=text, expected=SCALINGS)
