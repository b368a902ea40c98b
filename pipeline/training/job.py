"""The training job: manifest -> label scan -> the loop, on Ray or in this process -> checkpoints `best` and `last`.

The same command on the same output resumes where the latest checkpoint stands; another one is refused.
"""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.catalog.job import manifest_of
from pipeline.errors import Stopped
from pipeline.labels import LabelSet, load_label_set
from pipeline.runtime.cluster import connect, stop_on_sigterm, wait_passively
from pipeline.runtime.progress import listed, say
from pipeline.runtime.run import Run, open_run
from pipeline.training.config import TrainConfig, check, decisive, model_name, model_options
from pipeline.training.placement import process_resources, ray_resources, uses_ray
from pipeline.training.samples.plan import SamplePlan
from pipeline.training.selection import select_rows

__all__ = ["TrainConfig", "check_options", "train"]


def train(config: TrainConfig) -> str:
    """Run the job. Returns the line that says where the result lies. Raises InputError, PipelineError or Stopped."""
    started_s = time.monotonic()
    wait_passively()  # before torch is loaded, which the next line does
    crop, label_set, options = check_options(config)
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
        on_ray = uses_ray(config, run)
        if on_ray:
            connect([config.output], shared_filesystem=config.shared_filesystem)
        else:
            stop_on_sigterm()
        manifest = manifest_of(run, config.source, labels=config.labels, scenes=config)
        table, validation = select_rows(manifest, config)
        table, validation, class_pixels = _scan(run, config, table, validation, label_set, on_ray)
        scene_input = _scene_input(run, config, table)
        summary = _fit(run, config, label_set, options, crop, table, validation, class_pixels, on_ray, scene_input)
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
    run: Run, config: TrainConfig, table: pa.Table, validation: pa.Table, label_set: LabelSet, on_ray: bool
) -> tuple[pa.Table, pa.Table, list[int]]:
    """Read every label once, or what an earlier start of this run found; rows whose labels are unreadable fall out."""
    from pipeline.training.label_scan import LabelScan, require_every_class, require_labels, scan_labels

    uri = run.at("label_scan.json")
    rows = {"train": table, "validation": validation}
    try:
        scans = {name: LabelScan.from_json(text) for name, text in storage.read_json(uri).items()}
    except FileNotFoundError:
        say(f"scanning the labels of {table.num_rows} training and {validation.num_rows} validation pictures")
        scans = {name: scan_labels(part, label_set, config.read_options, on_ray=on_ray) for name, part in rows.items()}
    for name, scan in scans.items():
        require_labels(scan, {"train": "training"}.get(name, name), config.source)
        if scan.unreadable_ids:
            say(f"{len(scan.unreadable_ids)} label files of {name} cannot be read, left out: {listed(scan.unreadable)}")
            lost = pc.is_in(rows[name]["region_id"], pa.array(scan.unreadable_ids, pa.int64()))
            rows[name] = rows[name].filter(pc.invert(lost))
    if not config.allow_absent_classes:
        require_every_class(scans["train"], label_set, config.source)
    storage.write_json(uri, {name: scan.to_json() for name, scan in scans.items()})
    pixels = scans["train"].class_pixels
    total = sum(pixels)
    shares = [f"{name} {100 * count / total:.2f} %" for name, count in zip(label_set.names, pixels, strict=True)]
    say(f"classes in the training labels: {', '.join(shares[:30])}{' ...' if len(shares) > 30 else ''}")
    return rows["train"], rows["validation"], pixels


def _scene_input(run: Run, config: TrainConfig, table: pa.Table) -> dict[str, Any]:
    """What the network is fed with, where that is scenes: found once, and kept."""
    from pipeline.training.scene_sample import sample_scenes

    uri = run.at("scene_input.json")
    try:
        return dict(storage.read_json(uri))
    except FileNotFoundError:
        found = sample_scenes(config, table)
        if found:
            storage.write_json(uri, found)
        return found


def _fit(
    run: Run,
    config: TrainConfig,
    label_set: LabelSet,
    options: dict[str, Any],
    crop: tuple[int, int],
    table: pa.Table,
    validation: pa.Table,
    class_pixels: list[int],
    on_ray: bool,
    scene_input: dict[str, Any],
) -> dict[str, Any]:
    """From the saved state to the last step. Returns the summary."""
    from pipeline.models import portable, preprocessing
    from pipeline.models.spec import ModelSpec
    from pipeline.training.label_scan import class_weights
    from pipeline.training.samples.augmentation import Augmentation
    from pipeline.training.samples.loader import SampleLoader
    from pipeline.training.task import Task, TrainingData

    steps = -(-config.epochs * table.num_rows // config.batch_size)
    plan = SamplePlan(
        num_rows=table.num_rows,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        total_steps=min(steps, config.max_steps or steps),
        seed=config.seed,
    )
    on_gpu, threads = ray_resources(config) if on_ray else process_resources(config)
    fill: Any = scene_input.pop("fill", None)
    spec = ModelSpec(
        *portable(model_name(config), options),
        label_set,
        **{k: v for k, v in preprocessing(model_name(config), options).items() if k != "input_size"},
        fingerprint=run.record["result_fingerprint"],
    )
    if scene_input:
        spec = ModelSpec.from_json({**spec.to_json(), **scene_input, "channel_order": "rgb"})
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
        threads=threads,
    )
    augmentation = Augmentation(
        crop=crop,
        scale=(config.scale_min, config.scale_max),
        jitter=config.jitter,
        flip=config.flip,
        fill=Augmentation.fill if fill is None else tuple(fill),
    )
    dtype = "uint8" if spec.dtype == "uint8" else "float32"
    loader = SampleLoader(plan, augmentation, label_set, config.read_options, spec.bands, dtype)
    data = TrainingData(table, validation, loader)
    say(
        f"training {config.model} on {plan.num_rows} pictures, {plan.total_steps} steps of {plan.batch_size} "
        f"({plan.num_workers} worker{'s' if plan.num_workers > 1 else ''}{' on Ray' if on_ray else ''}, "
        f"{'GPU' if on_gpu else f'{threads} CPU thread' + 's' * (threads > 1)} each), "
        f"{validation.num_rows} to validate with"
    )
    if on_ray:
        from pipeline.training.ray_worker import train_on_ray

        status = train_on_ray(task, data, on_gpu=on_gpu, cpus=config.cpus_per_worker)
    else:
        from pipeline.training.process_worker import train_in_process

        status = train_in_process(task, data, "cuda" if on_gpu else "cpu")
    if status.get("stopped") and status["step"] < plan.total_steps:
        raise Stopped(f"stopped on request at step {status['step']}; resume with the same command")
    history = storage.read_json(run.at("history.json"))
    best = max(history, key=lambda record: -1.0 if record["miou"] is None else record["miou"])
    return {"steps": plan.total_steps, "best_miou": best["miou"], "best_epoch": best["epoch"], "last": history[-1]}


def _where(run: Run, summary: dict[str, Any]) -> str:
    best = "none" if summary["best_miou"] is None else f"{summary['best_miou']:.4f}"
    return (
        f"best mIoU {best} after epoch {summary['best_epoch']:.1f}; "
        f"checkpoints in {run.at('best')} and {run.at('last')}"
    )
