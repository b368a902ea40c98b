"""`--incremental`: the rows of pictures that did not change are carried from the run's manifest to a new one.

A row is carried where key, version and size are those of the new manifest. Rows of pictures that changed, or are in
the manifest no more, go. Files whose rows all stay as they are (a bucket that only grew at its end) are not touched;
of the others, those rows are written anew, with the new manifest's `region_id` and travelling columns.

Killed anywhere, a run is found in one of these states:

1. *Prepared*: `OUTPUT/_increment/` holds the new manifest (that of a collection), the rewritten files and, last,
   `plan.json`. Nothing else has changed; the next run throws it away.
2. *Switched*: one put of `_run.json` names the new manifest and says `increment`. The next run rolls forward.
3. *Rolled forward*: each old file goes before the one comes that replaces it, so no reader sees a row twice; then the
   manifest; then `increment` is taken out of `_run.json`. Every step can be done again.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import storage
from pipeline.catalog import schema
from pipeline.catalog.job import manifest_of, refuse_other_source, subset_of
from pipeline.catalog.manifest import SUMMARY, Manifest, open_manifest
from pipeline.catalog.manifest_writer import build_manifest
from pipeline.catalog.scene_config import SceneConfig
from pipeline.catalog.subset import Subset
from pipeline.errors import PipelineError
from pipeline.runtime.progress import say
from pipeline.runtime.run import Run, fingerprint
from pipeline.storage import folders
from pipeline.tables.carrier import PREPARED, Carried, Carrier, KeyIndex
from pipeline.tables.prediction_table import committed_files, is_ok

_PLAN = "plan.json"
_BYTES_HERE = 256 * 2**20  # predictions up to this size are carried by the driver itself
_AT_ONCE = 8


def take_increment(
    run: Run,
    source: str,
    subset: Subset,
    results: Callable[[Manifest, str], pa.Schema],
    connect: Callable[[], None],
    scenes: SceneConfig | None = None,
) -> Manifest:
    """List again and carry what did not change; the manifest to work off then.

    `results(manifest, fingerprint)` gives the schema of the rows, `connect()` joins Ray where it is needed.
    Raises InputError, with the run left as it was, where the source is another or no picture is left.
    """
    given = open_manifest(source)
    if given is None:
        refuse_other_source(run, source)
    subset.require_to_hold(subset_of(run), run.output)
    try:
        manifest = given or build_manifest(source, run.at(PREPARED, "manifest"), scenes=scenes)
        if manifest.fingerprint == run.record["manifest"]["content"]:
            say("nothing has changed since the last listing")
            folders.remove_tree(run.at(PREPARED))
            return manifest_of(run, source, subset=subset)
        ids = subset.ids(manifest)
        parts = {"content": manifest.fingerprint, "split": subset.split}
        carrier = Carrier(
            run.output, KeyIndex(manifest, ids), list(manifest.units()), results(manifest, fingerprint(parts))
        )
        files = list(_carry_all(carrier, committed_files(run.output), connect))
    except Exception:
        folders.remove_tree(run.at(PREPARED))
        raise
    _report(files, int(ids.size))
    moves = [[file.old, file.new] for file in files if file.old != file.new]
    listed = None if given else [*manifest.parts, SUMMARY]
    storage.write_json(run.at(PREPARED, _PLAN), {"files": moves, "manifest": listed})
    run.lease.check()
    run.set_manifest(
        parts,
        replace=True,
        reopen=True,
        source=storage.absolute(source),
        portion=subset.to_json(),
        increment=True,
    )
    recover(run)
    return given or manifest_of(run, source, subset=subset)


def carried_ids(run: Run, manifest: Manifest, ids: np.ndarray, *, retry_failed: bool) -> np.ndarray:
    """bool[num_rows]: the regions of a new manifest that a run's rows would be carried for; nothing is written."""
    columns = schema.predictions_schema(manifest.travelling)
    carrier = Carrier(run.output, KeyIndex(manifest, ids), list(manifest.units()), columns)
    carried = np.zeros(manifest.num_rows, bool)
    for name in committed_files(run.output):
        if is_ok(name) or not retry_failed:
            found = carrier.compare(storage.join(run.output, name))[1]
            carried[found[found >= 0]] = True
    return carried


def recover(run: Run) -> None:
    """Finish the switch that a killed run had begun, or throw away what it had only prepared."""
    if run.record.get("increment"):
        plan = storage.read_json(run.at(PREPARED, _PLAN))
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            list(threads.map(lambda pair: _replace(run, *pair), plan["files"]))
        _replace_manifest(run, plan["manifest"])
        run.lease.check()
        run.remember(increment=None)
    if PREPARED in folders.list_names(run.output):
        folders.remove_tree(run.at(PREPARED))


def _replace(run: Run, old: str, new: str | None) -> None:
    run.lease.check()
    storage.remove(run.at(old))
    if new is None:
        return
    target = run.at(posixpath.dirname(old), new)
    try:
        storage.move(run.at(PREPARED, new), target)
    except FileNotFoundError:
        if not storage.exists(target):
            raise PipelineError(f"a carried file is lost: {target}; --overwrite does the run again") from None


def _replace_manifest(run: Run, names: list[str] | None) -> None:
    """The new manifest's files into OUTPUT/manifest, its summary last."""
    staged, kept = run.at(PREPARED, "manifest"), run.at("manifest")
    if names is None:
        folders.remove_tree(kept)
    elif storage.exists(storage.join(staged, SUMMARY)):
        storage.remove(storage.join(kept, SUMMARY))
        for name in folders.list_names(staged):
            if name != SUMMARY:
                storage.move(storage.join(staged, name), storage.join(kept, name))
        for name in folders.list_names(kept):
            if name not in names:
                storage.remove(storage.join(kept, name))
        storage.move(storage.join(staged, SUMMARY), storage.join(kept, SUMMARY))


def _carry_all(carrier: Carrier, files: list[str], connect: Callable[[], None]) -> Iterator[Carried]:
    """All files, on the cluster where they are many."""
    size_bytes = sum(storage.info(storage.join(carrier.output, file)).size_bytes for file in files)
    if size_bytes <= _BYTES_HERE:
        yield from map(carrier.carry, files)
        return
    connect()
    import ray
    import ray.data

    shared = ray.put(carrier)
    data: Any = ray.data.from_items([{"file": file} for file in files], override_num_blocks=min(len(files), 10_000))
    data = data.map_batches(
        _carry_here,  # type: ignore[arg-type]  # Ray's own types leave keyword arguments out
        fn_kwargs={"carrier": shared},
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=1,
    )
    for row in data.iter_rows():
        yield Carried(**json.loads(row["carried"]))


def _carry_here(batch: pa.Table, carrier: Any) -> dict[str, list[str]]:
    import ray

    carrier = ray.get(carrier) if isinstance(carrier, ray.ObjectRef) else carrier
    return {"carried": [json.dumps(vars(carrier.carry(file))) for file in batch["file"].to_pylist()]}


def _report(files: Iterable[Carried], wanted: int) -> None:
    files = list(files)
    carried, changed, vanished = (
        sum(getattr(file, name) for file in files) for name in ("carried", "changed", "vanished")
    )
    stay = sum(file.new == file.old for file in files)
    say(
        f"increment: {carried} rows carried, {changed} changed and {vanished} gone since the last listing;"
        f" {wanted - carried} of {wanted} regions to do ({stay} of {len(files)} files stay as they are)"
    )
