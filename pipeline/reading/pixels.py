"""What reading hands on: pixels of any type and number of bands, which of them are valid, and where they lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pixels:
    """`values` is H x W x B in the file's own type. `valid` is H x W bool, or None where all are: nodata, alpha 0 and
    what lies outside of the area of interest are not.

    `core` is the part (rows, columns) that is to be predicted; the halo around it only surrounds it. None = all.
    """

    values: np.ndarray
    valid: np.ndarray | None = None
    core: tuple[slice, slice] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def core_slices(self) -> tuple[slice, slice]:
        return self.core or (slice(0, self.values.shape[0]), slice(0, self.values.shape[1]))

    @property
    def core_size(self) -> tuple[int, int]:
        """Height and width of what is predicted."""
        rows, columns = self.core_slices
        return rows.stop - rows.start, columns.stop - columns.start

    @property
    def core_valid(self) -> np.ndarray | None:
        """H x W of the core, None where all of it is valid."""
        if self.valid is None:
            return None
        valid = self.valid[self.core_slices]
        return None if valid.all() else valid


@dataclass(frozen=True)
class Place:
    """Where the core of a window lies: crs (authority and code, else WKT) and its affine transform, where known."""

    crs: str | None
    transform: tuple[float, ...] | None
    georeference: str  # transform | gcps | none
