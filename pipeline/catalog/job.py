"""The manifest job, and the manifest that every other job works off: the one it was given, or its own under OUTPUT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline import storage
from pipeline.catalog.manifest import Manifest, open_manifest
from pipeline.catalog.manifest_writer import build_manifest
from pipeline.catalog.scene_config import SceneConfig
from pipeline.catalog.subset import Subset
from pipeline.errors import InputError
from pipeline.runtime.options import INPUT, OUTPUT, option
from pipeline.runtime.output_config import OutputConfig
from pipeline.runtime.progress import say
from pipeline.runtime.run import Run, open_run


@dataclass
class ManifestConfig(OutputConfig, SceneConfig):
    """List a collection of pictures into a manifest: a folder of Parquet parts that every job takes as its source."""

    source: str = option(
        help="Folder or prefix (names with a picture, raster or video suffix), glob (every file), table of pictures, or"
        " manifest.json of an S3 Inventory.",
        group=INPUT,
    )
    output: str = option(help="Folder or prefix that receives the manifest.", group=OUTPUT)
    labels: str | None = option(None, "Folder of label files, where they do not lie beside the pictures.", group=INPUT)
    prefix: str | None = option(
        None, "Of an S3 Inventory, only the keys below this prefix; paths are relative to it.", group=INPUT
    )
    split: str | None = option(None, "Keep only the pictures of this split.", group=INPUT)


def make_manifest(config: ManifestConfig) -> str:
    """The manifest job; returns the line that says where the result lies."""
    result = {"source": storage.absolute(config.source), "labels": config.labels, "split": config.split}
    if config.prefix is not None:
        result["prefix"] = config.prefix
    result |= config.scene_choices
    with open_run(
        config.output, "manifest", result, config, overwrite=config.overwrite, single_writer=config.single_writer
    ) as run:
        if run.summary is not None:
            summary = run.summary.get("summary") or run.summary["told"]  # version 0.1's word
            return f"complete: {summary} in {run.output}; --overwrite lists again"
        manifest = build_manifest(
            config.source,
            run.output,
            labels=config.labels,
            split=config.split,
            prefix=config.prefix,
            scenes=config,
        )
        run.set_manifest({"content": manifest.fingerprint, "split": None})
        run.success({"rows": manifest.num_rows, "summary": manifest.summary()})
        return f"{manifest.summary()} in {run.output}"


def manifest_of(
    run: Run,
    source: str,
    *,
    subset: Subset | None = None,
    labels: str | None = None,
    keep_at: str | None = None,
    scenes: SceneConfig | None = None,
    whole_scenes: bool = False,
    summary: Callable[[Manifest], str] = Manifest.summary,
) -> Manifest:
    """The manifest a run works off: the one that `source` is, or the one of the collection, kept under OUTPUT/manifest
    (or at `keep_at`, for a dry run).

    A resumed run reads that and never lists again. A larger `subset` than the run's reopens a complete one. Raises
    InputError where the run was made from other content, or from a part that is not within `subset`.
    """
    subset = subset or Subset()
    given = open_manifest(source)
    if given is None:
        refuse_other_source(run, source)
    grown = False
    if "manifest" in run.record:
        done = subset_of(run)
        subset.require_to_hold(done, run.output)
        grown = subset != done
        if grown:
            say(f"the output folder holds {done}; now doing {subset}")
    manifest = given or (None if run.fresh else open_manifest(run.at("manifest")))
    if manifest is None:
        manifest = build_manifest(
            source, keep_at or run.at("manifest"), labels=labels, scenes=scenes, whole_scenes=whole_scenes
        )
        say(f"{summary(manifest)}: {source}")
    run.set_manifest(
        {"content": manifest.fingerprint, "split": subset.split},
        reopen=grown,
        source=storage.absolute(source),
        portion=subset.to_json(),
    )
    return manifest


def subset_of(run: Run) -> Subset:
    """The part of its manifest that a run was made for."""
    return Subset.from_json(run.record.get("portion", {"split": run.record["manifest"].get("split")}))


def refuse_other_source(run: Run, source: str) -> None:
    """Raises InputError where a run was made from another collection."""
    before = run.record.get("source")
    if before not in (None, storage.absolute(source)):
        raise InputError(
            "output folder holds another run: source differs",
            where=run.output,
            found=before,
            expected=source,
            todo="give another --output, the same source as before, or --overwrite",
        )
