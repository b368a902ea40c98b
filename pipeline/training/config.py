"""The options of a training run: what they are, what they may be, and which of them decide what is trained."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline import storage
from pipeline.errors import InputError, nearest
from pipeline.labels import LABEL_SETS, LabelSet
from pipeline.models import parse_model, portable, weights_sha256
from pipeline.reading.regions import ReadOptions
from pipeline.training.label_scan import CLASS_WEIGHTS
from pipeline.training.optimization.schedules import SCHEDULES

RUNNERS = ("auto", "ray", "local")
RESULT_VERSION = 1  # raised when the same options begin to train another network
LOSS_NAMES = ("cross_entropy_dice", "cross_entropy", "dice", "focal", "ohem_cross_entropy")  # losses.LOSSES, unimported
_DOWNLOADED = ("imagenet", "default")  # weights by name, not by file
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
    "runner",
    "allow_absent_classes",
)


@dataclass
class TrainConfig:
    """Train a segmentation network on labelled pictures.

    Args:
        source: collection (folder, prefix or glob) or manifest
        output: folder of this run
        labels: folder of label files, where the collection does not have them beside the pictures
        model: network of this package, torchvision:NAME, smp:NAME?encoder_name=... or hf:PATH (starts from its weights)
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
        schedule: of the learning rate: poly, cosine or constant
        power: of the schedule; default its own (poly: 0.9)
        loss: cross_entropy_dice, cross_entropy, dice, focal or ohem_cross_entropy
        auxiliary_weight: of the loss of each auxiliary head, where the network has any
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
        runner: ray, local (one worker in the job's own process, without Ray), or auto: Ray where there is a cluster
            (RAY_ADDRESS) or more than one worker
        allow_absent_classes: train although a class has not one pixel in the training labels
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
    schedule: str = "poly"
    power: float | None = None
    loss: str = "cross_entropy_dice"
    auxiliary_weight: float = 0.4
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
    runner: str = "auto"
    allow_absent_classes: bool = False
    cpus_per_worker: int | None = None
    fetch_retry_s: float = 60.0
    overwrite: bool = False
    shared_filesystem: bool = False
    single_writer: bool = False

    @property
    def read_options(self) -> ReadOptions:
        return ReadOptions(fetch_retry_s=self.fetch_retry_s)


def check(config: TrainConfig) -> tuple[int, int]:
    """The crop (height, width) in px. Raises InputError for options out of range."""
    if not config.label_set:
        names = ", ".join(sorted(LABEL_SETS))
        raise InputError("--label-set is missing", expected=f"one of {names}, or a YAML file of the classes")
    if config.model.startswith("export:"):
        raise InputError("an exported program cannot be trained", where=config.model, todo="train its source")
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
    ranges: dict[str, tuple[float, float]] = {
        "learning_rate": (0, 10),
        "backbone_rate": (0, 10),
        "weight_decay": (0, 1),
        "power": (0, 10),
        "auxiliary_weight": (0, 10),
        "ema_decay": (0, 0.99999),
        "holdout": (0, 0.9),
        "jitter": (0, 1),
        "scale_min": (0.05, 20),
        "scale_max": (config.scale_min, 20),
    }
    for name, (low_value, high) in ranges.items():
        found, flag = getattr(config, name), name.replace("_", "-")
        if found is not None and not low_value <= found <= high:
            raise InputError(f"--{flag} out of range", found=found, expected=f"{low_value} to {high}")
    choices: dict[str, tuple[str, ...]] = {
        "precision": ("auto", "float32", "bfloat16"),
        "device": ("auto", "cpu", "cuda"),
        "runner": RUNNERS,
        "loss": LOSS_NAMES,
        "schedule": tuple(SCHEDULES),
        "class_weights": CLASS_WEIGHTS,
    }
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


def model_name(config: TrainConfig) -> str:
    """The network without options; a folder's path is absolute, since workers run in folders of their own."""
    name, _ = parse_model(config.model)
    provider, _, folder = name.partition(":")
    return f"hf:{storage.absolute(folder)}" if provider == "hf" else name


def model_options(config: TrainConfig) -> dict[str, Any]:
    """The options to build the network with, those of the model string among them; paths are absolute."""
    _, options = parse_model(config.model, config.model_options)
    if config.backbone_weights:
        options["backbone_weights"] = config.backbone_weights
    for name in ("weights", "backbone_weights"):
        if options.get(name) not in (None, *_DOWNLOADED):
            options[name] = storage.absolute(options[name])
    return options


def decisive(config: TrainConfig, label_set: LabelSet, options: dict[str, Any]) -> dict[str, Any]:
    """Everything that can change the trained network; files by their content."""
    parts = {name: value for name, value in asdict(config).items() if name not in _BESIDE_THE_RESULT}
    weights = options.get("backbone_weights")
    if weights not in (None, *_DOWNLOADED):
        weights = hashlib.sha256(storage.read_bytes(weights)).hexdigest()
    content = weights_sha256(model_name(config), options)
    if content is not None:
        parts["model"], parts["model_options"] = portable(model_name(config), options)
        parts["model_weights"] = content
    return {**parts, "label_set": label_set.to_json(), "backbone_weights": weights, "result_version": RESULT_VERSION}
