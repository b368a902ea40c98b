"""Which rows of a manifest are trained on and which are validated with: by split, or by a hash of their keys."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.catalog.manifest import Manifest, region_key
from pipeline.errors import InputError
from pipeline.runtime.progress import listed, say
from pipeline.training.config import TrainConfig
from pipeline.training.samples.plan import COLUMNS, SCENE_COLUMNS


def select_rows(manifest: Manifest, config: TrainConfig) -> tuple[pa.Table, pa.Table]:
    """The labelled rows to train on and to validate with, by split or by a hash of their keys.

    Raises InputError where a split does not exist or no picture has a label file.
    """
    split = config.split or ("train" if "train" in manifest.splits else None)
    manifest.require_split(split)
    columns = [*COLUMNS, *(name for name in SCENE_COLUMNS if name in manifest.columns)]
    table = manifest.table([*columns, "split"], split=split)
    labelled = table.filter(pc.is_valid(table["label_uri"]))
    if not labelled.num_rows:
        raise InputError(
            "no label file matches a picture",
            where=config.source,
            found=f"{table.num_rows} pictures{f' of split {split!r}' if split else ''}",
            expected="label files beside the pictures with the same name, or a folder of them given by --labels",
        )
    if labelled.num_rows < table.num_rows:
        lacking = table.filter(pc.is_null(table["label_uri"]))["path"].to_pylist()
        say(f"{len(lacking)} of {table.num_rows} pictures have no label file and are left out: {listed(lacking)}")
    validation = manifest.table([*columns, "split"], split=config.validation_split)
    validation = validation.filter(pc.is_valid(validation["label_uri"]))
    if config.validation_split == split or not validation.num_rows:
        labelled, validation = hold_out(labelled, config.holdout)
        say(
            f"no labelled pictures of split {config.validation_split!r}: {validation.num_rows} of "
            f"{labelled.num_rows + validation.num_rows} are held out for validation, the same ones every time"
        )
    return labelled.select(columns), validation.select(columns)


def hold_out(table: pa.Table, share: float) -> tuple[pa.Table, pa.Table]:
    """(rest, held out): a row is held out by its `region_key` alone, so growing a collection moves no row.

    Windows of a scene go together, for neighbours see the same ground. At least one row on either side; a single row is
    on both.
    """
    if table.num_rows == 1:
        return table, table
    rows = table.select([n for n in ("path", "region_key", "window") if n in table.column_names]).to_pylist()
    whole = [region_key(row["path"]) if row.get("window") else row["region_key"] for row in rows]
    if len(set(whole)) == 1 and len(whole) > 1:
        raise InputError(
            "one scene alone cannot be held out from itself",
            where=rows[0].get("path"),
            todo="name a scene to validate with by a folder or column `val`",
        )
    hashes = [int(key[:8], 16) / 2**32 for key in whole]
    held = [value < share for value in hashes]
    if not any(held):
        held = [value == min(hashes) for value in hashes]
    if all(held):
        held = [value != max(hashes) for value in hashes]
    mask = pa.array(held)
    return table.filter(pc.invert(mask)), table.filter(mask)
