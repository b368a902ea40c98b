"""Whether the scenes of a collection fit the network, judged on their headers before anything is read."""

from __future__ import annotations

from pipeline.catalog.manifest import Manifest
from pipeline.decode.raster_header import RasterHeader, misfit
from pipeline.errors import InputError
from pipeline.models.spec import ModelSpec
from pipeline.runtime.progress import say


def require_fit(manifest: Manifest, spec: ModelSpec) -> None:
    """Raises InputError where no scene of the manifest fits the network; says it where some do not.

    Those become rows with the reason. Names of bands are not in the summary: a scene that lacks one is found later.
    """
    kinds: dict[str, int] = manifest.scenes.get("kinds") or {}
    reasons = {kind: reason for kind in kinds if (reason := _misfit(kind, spec)) is not None}
    lost = sum(kinds[kind] for kind in reasons)
    if not lost:
        return
    commonest = max(reasons, key=lambda kind: kinds[kind])
    if lost == sum(kinds.values()) and manifest.kinds.get("raster") == manifest.num_rows:
        raise InputError(f"no scene fits the network: {reasons[commonest]}", where=manifest.source)
    say(f"{lost} of {sum(kinds.values())} scenes do not fit the network and fail with that: {reasons[commonest]}")


def _misfit(kind: str, spec: ModelSpec) -> str | None:
    """Of scenes of so many bands of a type ("4 uint16")."""
    bands, dtype = kind.split()
    header = RasterHeader(1, 1, int(bands), dtype, (None,) * int(bands), None, None, (1, 1), None, "none", (), ())
    numbers = all(name.isdigit() for name in spec.band_names)
    return misfit(header, spec.band_names if numbers else tuple(map(str, range(1, spec.bands + 1))), *spec.takes)
