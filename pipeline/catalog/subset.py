"""The rows of a manifest that a run does: one split, a sample of it, the first N regions of that.

A sample is drawn by region key: the same pictures in every run and as the collection grows, and a larger share holds
every picture of a smaller one. So an output folder can grow: from a sample or the first few to more, and to everything.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.catalog.manifest import Manifest, key_words
from pipeline.errors import InputError

_BITS = 53  # of a key that a share is compared with: what a float holds exactly


@dataclass(frozen=True)
class Subset:
    """`sample` is a share (0 to 1) of the split's regions; `limit` the first of what remains, in region order."""

    split: str | None = None
    sample: float | None = None
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.sample is not None and not 0 < self.sample <= 1:
            raise InputError("--sample is out of range", found=self.sample, expected="a share, over 0 to 1")
        if self.limit is not None and self.limit < 1:
            raise InputError("--limit is out of range", found=self.limit, expected="1 or more")

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Subset:
        return cls(**value)

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return " ".join(f"--{name} {value}" for name, value in self.to_json().items()) or "the whole collection"

    def ids(self, manifest: Manifest) -> np.ndarray:
        """The `region_id`s, int64, ascending: 8 bytes a region. Raises InputError where there is none."""
        manifest.require_split(self.split)
        found: list[np.ndarray] = []
        room = manifest.num_rows if self.limit is None else self.limit
        columns = ["region_id"] + ["split"] * (self.split is not None) + ["region_key"] * (self.sample is not None)
        for table in manifest.read_parts(columns):
            if self.split is not None:
                table = table.filter(pc.equal(table["split"], self.split))
            ids = table["region_id"].to_numpy()
            if self.sample is not None:
                ids = ids[_is_drawn(key_words(table["region_key"]), self.sample)]
            found.append(ids[:room])
            room -= len(found[-1])
            if not room:
                break
        ids = np.concatenate(found) if found else np.zeros(0, np.int64)
        if not ids.size:
            raise InputError(
                "the sample holds no picture",
                where=manifest.source,
                found=f"{self} of {manifest.num_rows} pictures",
                todo="give a larger --sample",
            )
        return ids

    def require_to_hold(self, before: Subset, where: str) -> None:
        """Raises InputError where this leaves out regions that a run of `before` has done."""
        more = self.sample is None or self.sample >= (before.sample or 1.0)
        if self.limit is not None:  # the first of a larger sample are not the first of a smaller one
            more = self.sample == before.sample and before.limit is not None and self.limit >= before.limit
        if self.split != before.split or not more:
            raise InputError(
                "output folder holds another run: it did a larger or another part of the collection",
                where=where,
                found=str(before),
                expected=str(self),
                todo="give another --output, the same or a larger part, or --overwrite",
            )


def _is_drawn(words: np.ndarray, share: float) -> np.ndarray:
    """bool[n]: whether the first bits of each key, as a number of 0 to 1, lie below the share."""
    return (words[:, 0] >> np.uint64(64 - _BITS)) < share * 2.0**_BITS
