"""The export job: predictions -> a file a scene, each written whole, then marked; a resumed run skips what is marked.

A scene that cannot be exported is counted and named in `failed.json`, and stops nothing.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any

from pipeline import storage
from pipeline.errors import InputError, PipelineError, nearest
from pipeline.export.cog import stac_collection, write_cog
from pipeline.export.config import ExportConfig
from pipeline.export.pictures import coco_of, merge_coco, write_png
from pipeline.export.scene import Piece, open_scene, scenes_of
from pipeline.export.vectors import write_vectors
from pipeline.labels import LabelSet
from pipeline.runtime import cluster
from pipeline.runtime.process import end_with_parent
from pipeline.runtime.progress import Progress
from pipeline.runtime.run import Run, open_run
from pipeline.storage import folders
from pipeline.tables.prediction_table import predictions_metadata

RESULT_VERSION = 1
MARKS = "_export"
_NEEDS = {"cog": ("rasterio", "pystac"), "geoparquet": ("rasterio", "geopandas"), "geojson": ("rasterio", "geopandas")}
_LIBRARIES = ("rasterio", "shapely", "pyproj", "pyogrio", "geopandas", "pystac")
_AHEAD = 2


def export(config: ExportConfig) -> str:
    """Run the job; returns the line that says where the result lies."""
    metadata = predictions_metadata(config.predictions)
    label_set = LabelSet.from_json(json.loads(metadata["label_set"]), where=config.predictions)
    _require(config, label_set)
    names = ("format", "classes", "min_area_m2", "simplify_m", "crs", "grey", "max_pixels")
    result = {name: getattr(config, name) for name in names} | {"result_version": RESULT_VERSION}
    result |= {name: metadata.get(name) for name in ("result_fingerprint", "manifest_fingerprint")}
    with open_run(
        config.output, "export", result, config, overwrite=config.overwrite, single_writer=config.single_writer
    ) as run:
        if run.summary is not None:
            return f"complete: {_describe(run.summary, config)} in {run.at(config.format)}"
        scenes = scenes_of(config.predictions)
        done = {name.removesuffix(".json") for name in folders.list_names(run.at(MARKS))}
        left = {path: pieces for path, pieces in scenes.items() if _mark(path) not in done}
        progress = Progress("export", len(scenes), len(scenes) - len(left), unit="scenes")
        for _ in _run(config, run, label_set, left):
            run.lease.check()
            progress.advance(1)
        progress.close()
        summary = _sum_up(config, run, label_set, list(scenes))
        run.success(summary)
        return f"{_describe(summary, config)} in {run.at(config.format)}"


def _require(config: ExportConfig, label_set: LabelSet) -> None:
    for library in _NEEDS.get(config.format, ()):
        if importlib.util.find_spec(library) is None:
            raise InputError(
                f"--format {config.format}: {library} is not installed",
                todo="install it with: pip install 'ray-segmentation[raster]'",
            )
    for name in config.class_names:
        if name not in label_set.names:
            raise InputError(
                f"--classes: no {name!r}", expected=", ".join(label_set.names), todo=nearest(name, label_set.names)
            )
    if config.crs is not None:
        import pyproj

        try:
            pyproj.CRS.from_user_input(config.crs)
        except pyproj.exceptions.CRSError as error:
            raise InputError("--crs is not known", found=config.crs, expected="such as EPSG:32618") from error


def export_scene(config: ExportConfig, output: str, path: str, pieces: list[Piece], label_set: LabelSet) -> None:
    """Write the files of one scene, then its mark. Raises what a store raises."""
    mark: dict[str, Any] = {"path": path}
    try:
        scene = open_scene(path, pieces, label_set)
        folder = storage.join(output, config.format)
        if not scene.predicted:
            mark["error"] = f"no window has a prediction: {scene.error}"
        elif config.format == "cog":
            mark["files"] = write_cog(scene, folder)
        elif config.format == "png":
            mark["files"] = write_png(scene, folder, config.grey, config.max_pixels)
        elif config.format == "coco":
            mark["coco"] = coco_of(scene, config.max_pixels)
        else:
            mark["files"] = write_vectors(scene, folder, config)
        if scene.predicted and scene.failed:
            mark["windows_missing"] = scene.failed
    except InputError as error:
        mark["error"] = str(error)
    except Exception as error:  # one bad scene never stops a job; a store that fails does, and the next start goes on
        own = isinstance(error, (ValueError, ArithmeticError, MemoryError, RuntimeError))
        if not own and type(error).__module__.split(".")[0] not in _LIBRARIES:
            raise
        mark["error"] = f"{type(error).__name__}: {error}"
    storage.write_json(storage.join(output, MARKS, f"{_mark(path)}.json"), mark)


def _sum_up(config: ExportConfig, run: Run, label_set: LabelSet, paths: list[str]) -> dict[str, Any]:
    marks = [storage.read_json(run.at(MARKS, f"{_mark(path)}.json")) for path in paths]
    failed = {mark["path"]: mark["error"] for mark in marks if "error" in mark}
    if failed and len(failed) == len(marks):
        path, reason = next(iter(failed.items()))
        raise PipelineError(f"none of {len(marks)} scenes could be exported, such as {path}: {reason}")
    if config.format == "coco":
        data = merge_coco([mark["coco"] for mark in marks if "coco" in mark], label_set)
        storage.write_bytes(run.at("coco", "predictions.json"), data)
    if config.format == "cog":
        items = [uri for mark in marks for uri in mark.get("files", ()) if uri.endswith(".json")]
        collection = stac_collection(label_set, run.at("cog"), items)
        if collection is not None:
            storage.write_json(run.at("cog", "collection.json"), collection)
    storage.write_json(run.at("failed.json"), failed)
    missing = sum(mark.get("windows_missing", 0) for mark in marks)
    return {"scenes": len(marks), "exported": len(marks) - len(failed), "failed": failed, "windows_missing": missing}


def _describe(summary: dict[str, Any], config: ExportConfig) -> str:
    text = f"{summary['exported']} of {summary['scenes']} scenes as {config.format}"
    if summary["failed"]:
        path, reason = next(iter(summary["failed"].items()))
        text += f", {len(summary['failed'])} not (failed.json; such as {path}: {reason})"
    if summary["windows_missing"]:
        text += f", {summary['windows_missing']} windows without a prediction"
    return text


def _mark(path: str) -> str:
    return hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


# ---- runners ---------------------------------------------------------------------------------------------------------


def _run(config: ExportConfig, run: Run, label_set: LabelSet, left: dict[str, list[Piece]]) -> Iterator[None]:
    """Export scenes, in processes of this machine or on Ray; yields as each ends."""
    tasks = [(config, run.output, path, pieces, label_set) for path, pieces in left.items()]
    if not tasks:
        return
    if config.runner == "ray" or (config.runner == "auto" and os.environ.get("RAY_ADDRESS")):
        cluster.connect([config.output], shared_filesystem=config.shared_filesystem)
        yield from _run_on_ray(tasks)
        return
    cluster.stop_on_sigterm()
    count = min(os.cpu_count() or 1, len(tasks))
    pool = ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), initializer=end_with_parent, initargs=(os.getpid(),)
    )
    waiting, under_way = iter(tasks), set[Future[None]]()
    try:
        while True:
            for task in waiting:
                under_way.add(pool.submit(export_scene, *task))
                if len(under_way) >= _AHEAD * count:
                    break
            if not under_way:
                return
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                yield
    except BaseException:  # stopped: what is under way is not waited for
        for process in list((pool._processes or {}).values()):
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _run_on_ray(tasks: list[Any]) -> Iterator[None]:
    import ray

    work = ray.remote(num_cpus=1, max_retries=3)(export_scene)
    waiting, under_way = iter(tasks), list[Any]()
    most = _AHEAD * cluster.num_cores()
    while True:
        for task in waiting:
            under_way.append(work.remote(*task))
            if len(under_way) >= most:
                break
        if not under_way:
            return
        done, under_way = ray.wait(under_way, num_returns=1)
        ray.get(done)
        yield
