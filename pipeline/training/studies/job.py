"""The sweep job: every variant and seed of a study through the training function, by Ray Tune, into one table.

Each training is a run of its own under OUTPUT/trials, so a sweep that was stopped or killed resumes like any training,
and the same command on a complete one prints the table again.
"""

from __future__ import annotations

import dataclasses
import os
import time
from dataclasses import dataclass

from pipeline import storage
from pipeline.catalog.job import manifest_of
from pipeline.errors import InputError
from pipeline.runtime.cluster import connect, num_cores, num_gpus
from pipeline.runtime.options import INPUT, NETWORK, OUTPUT, SPEED, option, parse_values, validate
from pipeline.runtime.output_config import ClusterOutputConfig
from pipeline.runtime.progress import say
from pipeline.runtime.run import Run, open_run
from pipeline.training.job import TrainConfig, check_options
from pipeline.training.studies.comparison import Results, tables
from pipeline.training.studies.study import Study, Variant, load_study

TABLE = "table.md"


@dataclass
class SweepConfig(ClusterOutputConfig):
    """Train every variant of a study with every seed, and print a table with the paper's figures beside ours."""

    study: str = option(help="YAML file of the study, such as those of configs/ablations.", group=INPUT)
    source: str = option(
        help="Folder, prefix, glob or table of pictures, or a manifest, to train and validate on.", group=INPUT
    )
    output: str = option(help="Folder of the sweep; the trainings lie under OUTPUT/trials.", group=OUTPUT)
    backbone_weights: str | None = option(
        None, "Path or URI of the backbone's weights, for every variant; by default they are random.", group=NETWORK
    )
    seeds: int | None = option(None, "Only the first N of the study's seeds.", group=INPUT)
    max_steps: int | None = option(None, "Steps of each training, over what the study says.", group=INPUT)
    parallel: int | None = option(None, "Trainings at a time (default: one for each core or GPU).", group=SPEED, low=1)
    device: str = option("auto", "Where to train.", group=SPEED, choices=("auto", "cpu", "cuda"))


def sweep(config: SweepConfig) -> str:
    """Run the job; prints the table, returns the line that says where it lies. Raises InputError or PipelineError."""
    started_s = time.monotonic()
    study = load_study(config.study)
    if config.seeds is not None:
        if not 1 <= config.seeds <= len(study.seeds):
            raise InputError("--seeds out of range", found=config.seeds, expected=f"1 to {len(study.seeds)}")
        study = dataclasses.replace(study, seeds=study.seeds[: config.seeds])
    validate(config)
    for variant in study.variants:  # a wrong option of the last variant is met before the first is trained
        check_options(_training(config, study, variant, study.seeds[0], "OUTPUT", "SOURCE"))
    # every training at work reads with tasks of its own beside the worker that computes
    parallel = config.parallel or (os.cpu_count() or 1)
    connect([config.output], shared_filesystem=config.shared_filesystem, local_cpus=4 * parallel)
    decisive = {"study": dataclasses.asdict(study), "max_steps": config.max_steps}
    with open_run(
        config.output,
        "sweep",
        decisive,
        config,
        overwrite=config.overwrite,
        single_writer=config.single_writer,
    ) as run:
        if run.summary is None:
            manifest_of(run, config.source, whole_scenes=True)
            results = _train_all(config, study, run, parallel)
            text = tables(study, results)
            storage.write_bytes(run.at(TABLE), text.encode())
            run.success({"trainings": len(results), "wall_s": time.monotonic() - started_s})
        print(storage.read_bytes(run.at(TABLE)).decode(), flush=True)
        return f"{len(study.variants)} variants with {len(study.seeds)} seeds each; table in {run.at(TABLE)}"


def _training(
    config: SweepConfig, study: Study, variant: Variant, seed: int, output: str, source: str, threads: int | None = None
) -> TrainConfig:
    values = {**study.options(variant), "seed": seed, "source": source, "output": output, "device": config.device}
    if config.max_steps is not None:
        values["max_steps"] = config.max_steps
    if config.backbone_weights is not None:
        weights = config.backbone_weights
        values["backbone_weights"] = weights if weights == "imagenet" else storage.absolute(weights)
    return parse_values(
        TrainConfig,
        {
            **values,
            "cpus_per_worker": threads,
            "runner": "ray" if _on_cluster(config) else "processes",
            "shared_filesystem": config.shared_filesystem,
            "single_writer": config.single_writer,
        },
    )


def _on_cluster(config: SweepConfig) -> bool:
    """Whether trainings are placed by Ray; on one machine without GPUs each computes in its trial's own process."""
    return bool(os.environ.get("RAY_ADDRESS")) or config.device == "cuda" or num_gpus() > 0


def _train_all(config: SweepConfig, study: Study, run: Run, parallel: int) -> Results:
    """What every training of the study reached."""
    from pipeline.training.studies.trials import fit_all  # Ray is imported by who has joined it

    threads = max(1, num_cores() // parallel) if not os.environ.get("RAY_ADDRESS") else None
    trainings = {
        (variant.name, seed): _training(
            config, study, variant, seed, run.at("trials", variant.folder, f"seed-{seed}"), run.at("manifest"), threads
        )
        for seed in study.seeds
        for variant in study.variants
    }
    say(f"{len(trainings)} trainings of {study.title!r}, {parallel} at a time")
    found = fit_all({f"{name}, seed {seed}": one for (name, seed), one in trainings.items()}, run.at("_tune"), parallel)
    return {(name, seed): found[f"{name}, seed {seed}"] for name, seed in trainings}
