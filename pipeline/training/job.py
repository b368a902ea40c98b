"""The training job: manifest -> label scan -> Ray Train fed by Ray Data -> checkpoints `best` and `last`.

The same command on the same output resumes where the latest checkpoint stands; another one is refused.
"""

from __future__ import annotations

import os
import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.catalog.job import manifest_of
from pipeline.errors import InputError, Stopped
from pipeline.labels import LabelSet, load_label_set
from pipeline.reading.regions import ReadOptions
from pipeline.runtime.cluster import connect
from pipeline.runtime.progress import listed, say
from pipeline.runtime.run import Run, open_run
from pipeline.training.config import TrainConfig, check, decisive, model_name, model_options
from pipeline.training.monitor import start_monitor, watch
from pipeline.training.samples.plan import SamplePlan
from pipeline.training.samples.streams import train_stream, validation_stream
from pipeline.training.selection import select_rows

__all__ = ["TrainConfig", "check_options", "train"]

_AHEAD_BYTES = 1 << 30  # of samples, for each worker


def train(config: TrainConfig) -> str:
    """Run the job. Returns the line that says where the result lies. Raises InputError, PipelineError or Stopped."""
    crop, label_set, options = check_options(config)
    connect([config.output], shared_filesystem=config.shared_filesystem)
    started_s = time.monotonic()
    with open_run(
        config.output,
        "train",
        decisive(config, label_set, options),
        config,
        overwrite=config.overwrite,
        single_writer=config.single_writer,
    ) as run:
        if run.summary:
            return f"complete already: {_where(run, run.summary)}"
        manifest = manifest_of(run, config.source, labels=config.labels)
        table, validation = select_rows(manifest, config)
        read_options = ReadOptions(fetch_retry_s=config.fetch_retry_s)
        table, validation, class_pixels = _scan(run, table, validation, label_set, read_options)
        summary = _fit(run, config, label_set, options, crop, table, validation, class_pixels, read_options)
        run.success({**summary, "wall_s": time.monotonic() - started_s})
        return _where(run, summary)


def check_options(config: TrainConfig) -> tuple[tuple[int, int], LabelSet, dict[str, Any]]:
    """The crop (height, width) in px, the label set and the network's options.

    Raises InputError for a wrong option, model, weights file or crop: here, before anything is written.
    """
    from pipeline.models import build_model
    from pipeline.models.blocks import check_size

    crop = check(config)
    label_set = load_label_set(str(config.label_set))
    options = model_options(config)
    check_size(build_model(model_name(config), num_classes=label_set.num_classes, **options), crop)
    return crop, label_set, options


def _scan(
    run: Run, table: pa.Table, validation: pa.Table, label_set: LabelSet, options: ReadOptions
) -> tuple[pa.Table, pa.Table, list[int]]:
    """Read every label once, or what an earlier start of this run found; rows whose labels are unreadable fall out."""
    from pipeline.training.label_scan import scan_labels

    uri = run.at("label_scan.json")
    try:
        found = storage.read_json(uri)
    except FileNotFoundError:
        say(f"scanning the labels of {table.num_rows} training and {validation.num_rows} validation pictures")
        found = {
            "train": scan_labels(table, label_set, options).to_json(),
            "validation": scan_labels(validation, label_set, options).to_json(),
        }
    selected = []
    for name, rows in (("train", table), ("validation", validation)):
        lost = found[name]["unreadable_ids"]
        if lost:
            say(f"{len(lost)} label files of {name} cannot be read, left out: {listed(found[name]['unreadable'])}")
            rows = rows.filter(pc.invert(pc.is_in(rows["region_id"], pa.array(lost, pa.int64()))))
        if not rows.num_rows:
            raise InputError(f"no readable label file for {name}", found=listed(found[name]["unreadable"]))
        selected.append(rows)
    pixels = [int(count) for count in found["train"]["class_pixels"]]
    if not sum(pixels):
        raise InputError("every label pixel is void: there is nothing to learn", where=run.output)
    storage.write_json(uri, found)
    total = sum(pixels)
    shares = [f"{name} {100 * count / total:.2f} %" for name, count in zip(label_set.names, pixels, strict=True)]
    say(f"classes in the training labels: {', '.join(shares[:30])}{' ...' if len(shares) > 30 else ''}")
    return selected[0], selected[1], pixels


def _fit(
    run: Run,
    config: TrainConfig,
    label_set: LabelSet,
    options: dict[str, Any],
    crop: tuple[int, int],
    table: pa.Table,
    validation: pa.Table,
    class_pixels: list[int],
    read_options: ReadOptions,
) -> dict[str, Any]:
    """Ray Train from the latest checkpoint to the last step. Returns the summary."""
    import ray
    import ray.data
    import ray.train
    import ray.train.torch

    from pipeline.models import portable, preprocessing
    from pipeline.models.spec import ModelSpec
    from pipeline.training.label_scan import class_weights
    from pipeline.training.loop import train_loop
    from pipeline.training.samples.augmentation import Augmentation
    from pipeline.training.task import POSITION, Task

    steps = -(-config.epochs * table.num_rows // config.batch_size)
    plan = SamplePlan(
        num_rows=table.num_rows,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        total_steps=min(steps, config.max_steps or steps),
        seed=config.seed,
    )
    on_gpu, cpus = _resources(config)
    monitor = start_monitor()
    spec = ModelSpec(
        *portable(model_name(config), options),
        label_set,
        **{k: v for k, v in preprocessing(model_name(config), options).items() if k != "input_size"},
        fingerprint=run.record["result_fingerprint"],
    )
    task = Task(
        output=run.output,
        model=model_name(config),
        options=options,
        spec=spec,
        plan=plan,
        class_weights=class_weights(class_pixels, config.class_weights),
        loss=config.loss,
        auxiliary_weight=config.auxiliary_weight,
        learning_rate=config.learning_rate,
        backbone_rate=config.backbone_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        schedule=config.schedule,
        power=config.power,
        ema_decay=config.ema_decay,
        validate_every=config.validate_every,
        checkpoint_minutes=config.checkpoint_minutes,
        precision=config.precision,
        threads=cpus,
        monitor=monitor,
    )
    augmentation = Augmentation(
        crop=crop, scale=(config.scale_min, config.scale_max), jitter=config.jitter, flip=config.flip
    )
    position = run.at(POSITION)

    def first_step() -> int:
        try:
            return int(storage.read_json(position)["step"])
        except FileNotFoundError:
            return 0

    # Ray Train's default gives a worker group one minute to start; spot machines take several
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1800")
    fs, path = storage.arrow_filesystem(run.at("_train"))
    fs.create_dir(path, recursive=True)
    resources = {"CPU": 1.0 if config.cpus_per_worker is None else float(cpus)}
    trainer = ray.train.torch.TorchTrainer(
        train_loop,
        train_loop_config={"task": task},
        datasets={
            "train": train_stream(ray.put(table), plan, augmentation, label_set, read_options, first_step),
            "validation": validation_stream(validation, plan.num_workers, label_set, read_options),
        },
        dataset_config=ray.train.DataConfig(execution_options=_reading_ahead(plan, crop)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=plan.num_workers,
            use_gpu=on_gpu,
            resources_per_worker={**resources, **({"GPU": 1.0} if on_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name="run",
            storage_path=path,
            storage_filesystem=fs,
            failure_config=ray.train.FailureConfig(max_failures=2),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]  # v2's, at run time
        ),
    )
    say(
        f"training {config.model} on {plan.num_rows} pictures, {plan.total_steps} steps of {plan.batch_size} "
        f"({plan.num_workers} worker{'s' if plan.num_workers > 1 else ''}, "
        f"{'GPU' if on_gpu else f'{cpus} CPU thread' + 's' * (cpus > 1)} each), {validation.num_rows} to validate with"
    )
    news = watch(trainer.fit, monitor)
    if news.get("stopped") and news["step"] < plan.total_steps:
        raise Stopped(f"stopped on request at step {news['step']}; resume with the same command")
    history = storage.read_json(run.at("history.json"))
    best = max(history, key=lambda record: record["miou"])
    return {"steps": plan.total_steps, "best_miou": best["miou"], "best_epoch": best["epoch"], "last": history[-1]}


def _reading_ahead(plan: SamplePlan, crop: tuple[int, int]) -> Any:
    """Ray Data's options: keep the order, and read ahead some batches, not as far as the object store allows."""
    from ray.data import ExecutionOptions, ExecutionResources

    ahead_bytes = max(_AHEAD_BYTES * plan.num_workers, 16 * plan.batch_size * crop[0] * crop[1] * 4)
    limits = ExecutionResources.for_limits(object_store_memory=ahead_bytes)
    return ExecutionOptions(preserve_order=True, resource_limits=limits)


def _resources(config: TrainConfig) -> tuple[bool, int]:
    """(GPU per worker?, CPU threads per worker). Raises InputError where the cluster cannot hold the workers."""
    import ray

    have = ray.cluster_resources()
    gpus = int(have.get("GPU", 0))
    on_gpu = config.device == "cuda" or (config.device == "auto" and gpus > 0)
    local = "RAY_ADDRESS" not in os.environ
    if on_gpu and gpus < config.num_workers and local:
        raise InputError("not enough GPUs", found=gpus, expected=f"{config.num_workers}, one for each worker")
    cpus = config.cpus_per_worker or 1
    if local:
        if config.num_workers * cpus >= have.get("CPU", 0):
            raise InputError(
                "no CPU is left to read pictures with",
                found=f"{config.num_workers} workers of {cpus} CPU",
                expected=f"less than the {have.get('CPU', 0):g} logical CPUs of this Ray",
            )
        if config.cpus_per_worker is None and not on_gpu:
            # reserving one CPU and computing on all of them: reading needs little, and yields
            cpus = max(1, len(os.sched_getaffinity(0)) // config.num_workers)
    return on_gpu, cpus


def _where(run: Run, summary: dict[str, Any]) -> str:
    return (
        f"best mIoU {summary['best_miou']:.4f} after epoch {summary['best_epoch']:.1f}; "
        f"checkpoints in {run.at('best')} and {run.at('last')}"
    )
