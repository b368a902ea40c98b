"""The training job: manifest -> label scan -> Ray Train fed by Ray Data -> checkpoints `best` and `last`.

The same command on the same output resumes where the latest checkpoint stands; another one is refused.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.cluster import connect
from pipeline.errors import InputError, PipelineError, Stopped, nearest
from pipeline.labels import LABEL_SETS, LabelSet, load_label_set
from pipeline.manifest import Manifest, open_or_build
from pipeline.progress import ProgressLine, start_board
from pipeline.regions import ReadOptions
from pipeline.run import Run, open_run

if TYPE_CHECKING:
    from pipeline.samples import SamplePlan

RESULT_VERSION = 1  # raised when the same options begin to train another network
LOSS_NAMES = ("cross_entropy_dice", "cross_entropy", "dice")
_AHEAD_BYTES = 1 << 30  # of samples, for each worker
STOP_WAIT_S = 100.0  # what a stopped run may take for its last checkpoint (`ray job stop` waits 120 s)
_BESIDE_THE_RESULT = (
    "source",
    "output",
    "labels",
    "label_set",  # its content counts
    "backbone_weights",  # likewise
    "checkpoint_minutes",
    "fetch_retry_s",
    "cpus_per_worker",
    "device",
    "overwrite",
    "shared_filesystem",
    "single_writer",
)


@dataclass
class TrainConfig:
    """Train a segmentation network on labelled pictures.

    Args:
        source: collection (folder, prefix or glob) or manifest
        output: folder of this run
        labels: folder of label files, where the collection does not have them beside the pictures
        model: network: lightweight, or torchvision:NAME
        model_options: further options of the network
        backbone_weights: path or URI of the backbone's weights; "imagenet" downloads them; default random
        label_set: name (camvid, cityscapes, roads, voc) or YAML file of the classes
        split: split to train on; default `train` where the manifest has one, else all
        validation_split: split to validate on; where there is none, a fixed share of the training pictures is held out
        holdout: that share
        epochs: passes over the training pictures
        max_steps: stop after as many steps, whatever `epochs` says
        batch_size: pictures a step, over all workers
        num_workers: training workers (one GPU each where the cluster has GPUs)
        crop: height,width of a training sample in px
        seed: of everything random
        learning_rate: of the first step after the warm-up
        backbone_rate: factor of it for the backbone
        weight_decay: AdamW's
        warmup_steps: steps of linear warm-up
        power: of the poly schedule
        loss: cross_entropy_dice, cross_entropy or dice
        class_weights: from the classes' shares of the pixels: log (ENet's), sqrt, inverse or none
        ema_decay: of the averaged weights, which are what is saved
        scale_min: smallest random zoom
        scale_max: largest random zoom
        jitter: strength of the random changes of colour
        flip: mirror half of the samples
        validate_every: epochs between validations
        checkpoint_minutes: minutes between checkpoints within an epoch
        precision: auto (bfloat16 where the device has it), float32 or bfloat16
        device: auto, cpu or cuda
        cpus_per_worker: CPUs (and threads) of a training worker; default 1, on a local Ray without GPU all of them
        fetch_retry_s: seconds for which a failing fetch is tried again
        overwrite: throw away another run in the output folder
        shared_filesystem: local paths are the same on every node
        single_writer: promise that no other run writes there, for a store that cannot keep two apart
    """

    source: str
    output: str
    labels: str | None = None
    model: str = "lightweight"
    model_options: dict[str, Any] = field(default_factory=dict)
    backbone_weights: str | None = None
    label_set: str | None = None
    split: str | None = None
    validation_split: str = "val"
    holdout: float = 0.1
    epochs: int = 30
    max_steps: int | None = None
    batch_size: int = 8
    num_workers: int = 1
    crop: str = "288,384"
    seed: int = 0
    learning_rate: float = 1e-3
    backbone_rate: float = 0.3
    weight_decay: float = 0.01
    warmup_steps: int = 50
    power: float = 0.9
    loss: str = "cross_entropy_dice"
    class_weights: str = "log"
    ema_decay: float = 0.99
    scale_min: float = 0.5
    scale_max: float = 2.0
    jitter: float = 0.3
    flip: bool = True
    validate_every: int = 1
    checkpoint_minutes: float = 3.0
    precision: str = "auto"
    device: str = "auto"
    cpus_per_worker: int | None = None
    fetch_retry_s: float = 60.0
    overwrite: bool = False
    shared_filesystem: bool = False
    single_writer: bool = False


def train(config: TrainConfig) -> str:
    """Run the job. Returns the line that says where the result lies. Raises InputError, PipelineError or Stopped."""
    crop = _check(config)
    label_set = load_label_set(str(config.label_set))
    options = dict(config.model_options)
    if config.backbone_weights:
        weights = config.backbone_weights
        options["backbone_weights"] = weights if weights == "imagenet" else storage.absolute(weights)
    _build_once(config, label_set, options)
    connect([config.output], shared_filesystem=config.shared_filesystem)
    started_s = time.monotonic()
    with open_run(
        config.output,
        "train",
        _result(config, label_set, options),
        config,
        overwrite=config.overwrite,
        single_writer=config.single_writer,
    ) as run:
        if run.summary:
            return f"complete already: {_where(run, run.summary)}"
        manifest = open_or_build(config.source, run.at("manifest"), labels=config.labels)
        run.set_manifest({"fingerprint": manifest.fingerprint})
        table, validation = select_rows(manifest, config)
        read_options = ReadOptions(fetch_retry_s=config.fetch_retry_s)
        table, validation, class_pixels = _scan(run, table, validation, label_set, read_options)
        summary = _fit(run, config, label_set, options, crop, table, validation, class_pixels, read_options)
        run.success({**summary, "wall_s": time.monotonic() - started_s})
        return _where(run, summary)


def select_rows(manifest: Manifest, config: TrainConfig) -> tuple[pa.Table, pa.Table]:
    """The labelled rows to train on and to validate with, by split or by a hash of their keys.

    Raises InputError where a split does not exist or no picture has a label file.
    """
    from pipeline.samples import COLUMNS

    split = config.split or ("train" if "train" in manifest.splits else None)
    manifest.require_split(split)
    table = manifest.table([*COLUMNS, "split"], split=split)
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
        _say(f"{len(lacking)} of {table.num_rows} pictures have no label file and are left out: {_list(lacking)}")
    validation = manifest.table([*COLUMNS, "split"], split=config.validation_split)
    validation = validation.filter(pc.is_valid(validation["label_uri"]))
    if config.validation_split == split or not validation.num_rows:
        labelled, validation = hold_out(labelled, config.holdout)
        _say(
            f"no labelled pictures of split {config.validation_split!r}: {validation.num_rows} of "
            f"{labelled.num_rows + validation.num_rows} are held out for validation, the same ones every time"
        )
    return labelled.select(COLUMNS), validation.select(COLUMNS)


def hold_out(table: pa.Table, share: float) -> tuple[pa.Table, pa.Table]:
    """(rest, held out): a row is held out by its `region_key` alone, so growing a collection moves no row.

    At least one row on either side; a single row is on both.
    """
    if table.num_rows == 1:
        return table, table
    hashes = [int(key[:8], 16) / 2**32 for key in table["region_key"].to_pylist()]
    held = [value < share for value in hashes]
    if not any(held):
        held[hashes.index(min(hashes))] = True
    if all(held):
        held[hashes.index(max(hashes))] = False
    mask = pa.array(held)
    return table.filter(pc.invert(mask)), table.filter(mask)


def _check(config: TrainConfig) -> tuple[int, int]:
    """The crop. Raises InputError for options out of range."""
    if not config.label_set:
        names = ", ".join(sorted(LABEL_SETS))
        raise InputError("--label-set is missing", expected=f"one of {names}, or a YAML file of the classes")
    for name, low in (("epochs", 1), ("batch_size", 1), ("num_workers", 1), ("validate_every", 1), ("max_steps", 1)):
        value = getattr(config, name)
        if value is not None and value < low:
            raise InputError(f"--{name.replace('_', '-')} out of range", found=value, expected=f"{low} or more")
    if config.batch_size % config.num_workers:
        raise InputError(
            "--batch-size is shared by all workers",
            found=f"{config.batch_size} over {config.num_workers} workers",
            expected=f"a multiple of {config.num_workers}",
        )
    ranges = {"learning_rate": (0, 10), "backbone_rate": (0, 10), "ema_decay": (0, 0.99999), "holdout": (0, 0.9)}
    ranges |= {"jitter": (0, 1), "scale_min": (0.05, 20), "scale_max": (config.scale_min, 20), "power": (0, 10)}
    for name, (low_value, high) in ranges.items():
        if not low_value <= getattr(config, name) <= high:
            found, flag = getattr(config, name), name.replace("_", "-")
            raise InputError(f"--{flag} out of range", found=found, expected=f"{low_value} to {high}")
    choices = {"precision": ("auto", "float32", "bfloat16"), "device": ("auto", "cpu", "cuda"), "loss": LOSS_NAMES}
    choices["class_weights"] = ("log", "sqrt", "inverse", "none")
    for name, known in choices.items():
        value = getattr(config, name)
        if value not in known:
            flag = f"--{name.replace('_', '-')}"
            raise InputError(f"{flag}: no {value!r}", expected=", ".join(known), todo=nearest(value, known) or None)
    try:
        height, width = (int(part) for part in config.crop.replace("x", ",").strip("()[] ").split(","))
    except ValueError:
        raise InputError("--crop has a wrong value", found=config.crop, expected="HEIGHT,WIDTH in px") from None
    if min(height, width) < 16:
        raise InputError("--crop out of range", found=config.crop, expected="16 px or more a side")
    return height, width


def _build_once(config: TrainConfig, label_set: LabelSet, options: dict[str, Any]) -> None:
    """Meet a wrong name, option or weights file here, before anything is written."""
    from pipeline.models import build_model

    build_model(config.model, num_classes=label_set.num_classes, **options)


def _result(config: TrainConfig, label_set: LabelSet, options: dict[str, Any]) -> dict[str, Any]:
    """Everything that can change the trained network; files by their content."""
    parts = {name: value for name, value in asdict(config).items() if name not in _BESIDE_THE_RESULT}
    weights = options.get("backbone_weights")
    if weights not in (None, "imagenet"):
        weights = hashlib.sha256(storage.read_bytes(weights)).hexdigest()
    return {**parts, "label_set": label_set.to_json(), "backbone_weights": weights, "result_version": RESULT_VERSION}


def _scan(
    run: Run, table: pa.Table, validation: pa.Table, label_set: LabelSet, options: ReadOptions
) -> tuple[pa.Table, pa.Table, list[int]]:
    """Read every label once, or what an earlier start of this run found; rows whose labels are unreadable fall out."""
    from pipeline.label_scan import scan_labels

    uri = run.at("label_scan.json")
    try:
        found = storage.read_json(uri)
    except FileNotFoundError:
        _say(f"scanning the labels of {table.num_rows} training and {validation.num_rows} validation pictures")
        found = {
            "train": scan_labels(table, label_set, options).to_json(),
            "validation": scan_labels(validation, label_set, options).to_json(),
        }
    selected = []
    for name, rows in (("train", table), ("validation", validation)):
        lost = found[name]["unreadable_ids"]
        if lost:
            _say(f"{len(lost)} label files of {name} cannot be read, left out: {_list(found[name]['unreadable'])}")
            rows = rows.filter(pc.invert(pc.is_in(rows["region_id"], pa.array(lost, pa.int64()))))
        if not rows.num_rows:
            raise InputError(f"no readable label file for {name}", found=_list(found[name]["unreadable"]))
        selected.append(rows)
    pixels = [int(count) for count in found["train"]["class_pixels"]]
    if not sum(pixels):
        raise InputError("every label pixel is void: there is nothing to learn", where=run.output)
    storage.write_json(uri, found)
    total = sum(pixels)
    shares = [f"{name} {100 * count / total:.2f} %" for name, count in zip(label_set.names, pixels, strict=True)]
    _say(f"classes in the training labels: {', '.join(shares[:30])}{' ...' if len(shares) > 30 else ''}")
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

    from pipeline.checkpoint import ModelSpec
    from pipeline.label_scan import class_weights
    from pipeline.models import structure_options
    from pipeline.samples import SamplePlan, train_stream, validation_stream
    from pipeline.train_loop import POSITION, Task, train_loop
    from pipeline.transforms import Augmentation

    steps = -(-config.epochs * table.num_rows // config.batch_size)
    plan = SamplePlan(
        num_rows=table.num_rows,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        total_steps=min(steps, config.max_steps or steps),
        seed=config.seed,
    )
    on_gpu, cpus = _resources(config)
    board = start_board()
    spec = ModelSpec(
        config.model,
        structure_options(options),
        label_set,
        fingerprint=run.record["result_fingerprint"],
    )
    task = Task(
        output=run.output,
        model=config.model,
        options=options,
        spec=spec,
        plan=plan,
        class_weights=class_weights(class_pixels, config.class_weights),
        loss=config.loss,
        learning_rate=config.learning_rate,
        backbone_rate=config.backbone_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        power=config.power,
        ema_decay=config.ema_decay,
        validate_every=config.validate_every,
        checkpoint_minutes=config.checkpoint_minutes,
        precision=config.precision,
        threads=cpus,
        board=board,
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
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    _say(
        f"training {config.model} on {plan.num_rows} pictures, {plan.total_steps} steps of {plan.batch_size} "
        f"({plan.num_workers} worker{'s' if plan.num_workers > 1 else ''}, "
        f"{'GPU' if on_gpu else f'{cpus} CPU thread' + 's' * (cpus > 1)} each), {validation.num_rows} to validate with"
    )
    news = _watch(trainer, board)
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


def _watch(trainer: Any, board: Any) -> dict[str, Any]:
    """Run `trainer` in a thread, print what the board says, pass a request to stop on. Returns the last news."""
    import ray

    failure: list[BaseException] = []
    done = threading.Event()  # not join: a join that a signal's exception interrupts takes the thread for ended

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            failure.append(error)
        finally:
            done.set()

    line = ProgressLine()
    news: dict[str, Any] = {}

    def look() -> None:
        nonlocal news
        news, notes = ray.get(board.take.remote())
        for note in notes:
            line.note(note)
        if news:
            line.show(news["text"])

    threading.Thread(target=fit, name="fit", daemon=True).start()
    try:
        while not done.wait(timeout=1.0):
            look()
        look()
    except (Stopped, KeyboardInterrupt):
        line.note("stopping: saving a checkpoint first")
        ray.get(board.stop.remote())
        saved = done.wait(timeout=STOP_WAIT_S)
        look()
        if failure or not saved:
            late = f"nothing was saved within {STOP_WAIT_S:.0f} s"
            why = f"{type(failure[0]).__name__}: {failure[0]}" if failure else late
            line.note(f"no checkpoint at the stop, an earlier one stands: {why}")
        step = f" at step {news['step']}" if news else ""
        raise Stopped(f"stopped on request{step}; resume with the same command") from None
    finally:
        line.end()
    if failure:
        raise failure[0]
    return news


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


def _list(names: list[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _say(text: str) -> None:
    import sys

    print(text, file=sys.stderr, flush=True)


__all__ = ["PipelineError", "TrainConfig", "hold_out", "select_rows", "train"]
