"""The evaluate job: predictions beside truth -> confusion matrices -> metrics -> the page a person reads.

The matrix of the whole set is the sum of its pictures' matrices, and every figure follows from it by the definitions in
`metrics`. The pictures' rows stay in `OUTPUT/pictures/`, so a night can be taken apart without decoding a label again.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq

from pipeline import storage
from pipeline.catalog.job import manifest_of
from pipeline.catalog.manifest import Manifest
from pipeline.errors import InputError
from pipeline.evaluate.accumulator import Accumulator
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.label_index import describe_truth, joins_by_path
from pipeline.evaluate.predictions import Predictions
from pipeline.evaluate.results import STATUS_TEXT, Results, headline, notes, table
from pipeline.evaluate.scoring import STOP, Scoring
from pipeline.labels import LabelSet, load_label_set, unknown_value
from pipeline.runtime import cluster
from pipeline.runtime.progress import Progress
from pipeline.runtime.run import Run, open_run

RESULT_VERSION = 1  # counts up whenever the code changes what comes out


def evaluate(config: EvaluateConfig) -> str:
    """Run the job; returns the summary, whose last line says where the report lies."""
    started_s = time.monotonic()
    predictions = Predictions.open(config.predictions)
    label_set = _label_set(config, predictions)
    result = {
        "predictions": predictions.fingerprint,
        "label_set": label_set.to_json(),
        "split": config.split,
        "max_pixels": config.max_pixels,
        "result_version": RESULT_VERSION,
    }
    with open_run(
        config.output, "evaluate", result, config, overwrite=config.overwrite, single_writer=config.single_writer
    ) as run:
        manifest = manifest_of(run, config.labels, summary=describe_truth, whole_scenes=True)
        if run.summary is not None:
            return f"complete: {headline(run.summary)}\nreport in {run.at('report.html')}"
        scoring = _scoring(config, run, predictions, label_set, manifest)
        accumulator, num_labels = _score(config, run, predictions, scoring, manifest)
        _refuse_nothing(accumulator, config, predictions, manifest)
        run.lease.check()
        results = Results(
            accumulator, label_set, predictions, num_labels, config.split, storage.absolute(config.labels)
        )
        results.write_tables(run)
        results.write_report(run, config.read_options, time.monotonic() - started_s)
        run.success(results.summary | {"wall_s": round(time.monotonic() - started_s, 1)})
        loud = "".join(f"note: {note}\n" for note in notes(results.metrics))
        return f"{table(results.metrics)}\n{loud}{headline(results.summary)}\nreport in {run.at('report.html')}"


def _label_set(config: EvaluateConfig, predictions: Predictions) -> LabelSet:
    own = LabelSet.from_json(json.loads(predictions.metadata["label_set"]), where=config.predictions)
    if config.label_set is None:
        return own
    given = load_label_set(config.label_set)
    if given.num_classes != own.num_classes:
        raise InputError(
            "the label set does not fit the predictions",
            where=config.label_set,
            found=f"{given.num_classes} classes",
            expected=f"{own.num_classes}, as in {own.name}",
        )
    return given


def _scoring(
    config: EvaluateConfig, run: Run, predictions: Predictions, label_set: LabelSet, manifest: Manifest
) -> Scoring:
    """How the two sides are joined. The split is the predictions', or else that of the truth."""
    scoring = Scoring(
        run.output, label_set, predictions.extra, joins_by_path(manifest), None, False, config.read_options
    )
    if config.split is None:
        return scoring
    splits = predictions.splits()
    if config.split in splits:
        return replace(scoring, split=config.split)
    if config.split in manifest.splits and not set(splits) - {""}:
        return replace(scoring, labelled_only=True)
    known = splits if set(splits) - {""} else manifest.splits
    raise InputError(
        f"no prediction is of split {config.split!r}",
        where=config.predictions,
        found=", ".join(f"{name or '(none)'}: {rows}" for name, rows in sorted(known.items())) or "no splits",
    )


def _score(
    config: EvaluateConfig, run: Run, predictions: Predictions, scoring: Scoring, manifest: Manifest
) -> tuple[Accumulator, int]:
    """Score every unit. Returns the sums over them all and the number of labels.

    Raises InputError for a label value outside the label set, once no unit can write any more.
    """
    storage.remove(run.at(STOP))
    split = run.record["result"]["split"] if scoring.labelled_only else None
    if config.runner == "ray" or (config.runner == "auto" and os.environ.get("RAY_ADDRESS")):
        from pipeline.evaluate.ray_runner import score_on_ray

        cluster.connect([config.output], shared_filesystem=config.shared_filesystem)
        num_labels, scored = score_on_ray(predictions, scoring, manifest, split)
    else:
        from pipeline.evaluate.process_runner import score_in_processes

        cluster.stop_on_sigterm()
        num_labels, scored = score_in_processes(predictions, scoring, manifest, split)
    accumulator = Accumulator(scoring.label_set.num_classes)
    progress = Progress("evaluate", predictions.num_rows)
    unknown: list[dict[str, Any]] = []
    for unit in scored:
        run.lease.check()
        if "unknown" in unit:
            if not unknown:
                storage.write_bytes(run.at(STOP), b"")
            unknown.append(unit["unknown"])
        elif "accumulator" in unit:
            accumulator.merge(Accumulator.from_json(unit["accumulator"]))
            progress.advance(sum(piece.stop - piece.start for piece in predictions.units[unit["unit"]]))
    progress.close()
    if unknown:
        first = min(unknown, key=lambda found: found["uri"])
        raise unknown_value(scoring.label_set, first["value"], first["pixels"], first["are_colors"], first["uri"])
    return accumulator, num_labels


def _refuse_nothing(
    accumulator: Accumulator, config: EvaluateConfig, predictions: Predictions, manifest: Manifest
) -> None:
    """Raises InputError where not one picture could be scored: an empty result would look like one."""
    if accumulator.statuses["ok"] or accumulator.statuses["not_predicted"]:
        return
    status, count = accumulator.statuses.most_common(1)[0] if accumulator.statuses else ("label_missing", 0)
    if status == "label_missing":
        by = "path without suffix" if joins_by_path(manifest) else "region key (path below the collection's root)"
        raise InputError(
            "no label belongs to any prediction",
            where=config.labels,
            found=f"{_example_of_truth(manifest)!r} and {manifest.num_rows - 1} more",
            expected=f"{predictions.example()!r} and such, compared by {by}",
            todo="give the folder that the pictures' paths are relative to, or a manifest with labels",
        )
    path, _, text = next(problem for problem in accumulator.problems if problem[1] == status)
    todo = None
    if status == "size_mismatch":
        todo = "give labels of the size of the pictures, or segment pictures of the size of the labels"
    raise InputError(
        f"no picture could be scored: all {count} are {STATUS_TEXT[status]}", where=config.labels, found=text, todo=todo
    )


def _example_of_truth(manifest: Manifest) -> str:
    fs, path = storage.arrow_filesystem(manifest.part_uris()[0])
    with pq.ParquetFile(path, filesystem=fs) as file:
        return str(next(file.iter_batches(batch_size=1, columns=["path"]))["path"][0])
