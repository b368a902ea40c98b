"""The options of a training run: what they are, what they may be, and which of them decide what is trained."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipeline import storage
from pipeline.catalog.scene_config import SceneConfig
from pipeline.errors import InputError
from pipeline.labels import LABEL_SETS, LabelSet
from pipeline.models import parse_model, portable, weights_sha256
from pipeline.models.scene_input import fixed_scaling, parse_bands
from pipeline.reading.read_config import ReadConfig
from pipeline.reading.regions import ReadOptions
from pipeline.reading.scene_window import SceneOptions
from pipeline.runtime.options import FAILURES, INPUT, NETWORK, OUTPUT, SCENES, SPEED, option, validate
from pipeline.runtime.output_config import ClusterOutputConfig
from pipeline.training.label_scan import CLASS_WEIGHTS
from pipeline.training.optimization.schedules import SCHEDULES

SCHEDULE, LOSS, AUGMENTATION = "schedule", "loss", "samples"  # groups of options
RUNNERS = ("auto", "processes", "ray")
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
    "fetch_deadline_s",
    "decode_deadline_s",
    "cpus_per_worker",
    "device",
    "overwrite",
    "shared_filesystem",
    "single_writer",
    "runner",
    "allow_absent_classes",
)


@dataclass
class TrainConfig(ClusterOutputConfig, SceneConfig, ReadConfig):
    """Train a segmentation network on labelled pictures. The same command on the same output resumes."""

    source: str = option(help="Folder, prefix, glob or table of pictures, an S3 Inventory, or a manifest.", group=INPUT)
    output: str = option(help="Folder or prefix of this run: checkpoints, history, TensorBoard files.", group=OUTPUT)
    labels: str | None = option(None, "Folder of label files, where they do not lie beside the pictures.", group=INPUT)
    model: str = option(
        "lightweight",
        "A name of docs/networks.md, torchvision:NAME, smp:NAME?encoder_name=... or hf:FOLDER (from its weights).",
        group=NETWORK,
    )
    model_options: dict[str, Any] = option(help="Further options of the network.", group=NETWORK, factory=dict)
    backbone_weights: str | None = option(
        None,
        "Path or URI of the backbone's weights; imagenet downloads them; by default they are random.",
        group=NETWORK,
    )
    label_set: str | None = option(
        None, f"Classes of the labels: {', '.join(sorted(LABEL_SETS))}, or a YAML file (required).", group=INPUT
    )
    split: str | None = option(
        None, "Split to train on (default: train where the source has one, else all of it).", group=INPUT
    )
    validation_split: str = option(
        "val", "Split to validate on; where there is none, --holdout pictures are held out.", group=INPUT
    )
    bands: str | None = option(
        None, "Bands of scenes to learn from, by name or number: 4,3,2 (default: all).", group=SCENES
    )
    scaling: str | None = option(
        None,
        "How values of scenes are brought to 0..1: percentile:2,98 (of a sample of the training scenes), fixed:LOW,HIGH"
        ", metadata or none; needed where they are wider than bytes.",
        group=SCENES,
    )
    holdout: float = option(
        0.1, "Share of the pictures held out for validation where no split is.", group=INPUT, low=0, high=0.9
    )
    epochs: int = option(30, "Passes over the training pictures.", group=SCHEDULE, low=1)
    max_steps: int | None = option(None, "Stop after this many steps, whatever --epochs says.", group=SCHEDULE, low=1)
    batch_size: int = option(8, "Pictures in a step, over all workers.", group=SCHEDULE, low=1)
    num_workers: int = option(1, "Training workers, one GPU each where there are GPUs.", group=SPEED, low=1)
    crop: str = option("288,384", "HEIGHT,WIDTH of a training sample in px.", group=AUGMENTATION)
    seed: int = option(0, "Seed of everything random.", group=SCHEDULE)
    learning_rate: float = option(
        1e-3, "Learning rate of the first step after the warm-up.", group=SCHEDULE, low=0, high=10
    )
    backbone_rate: float = option(0.3, "Factor of the learning rate for the backbone.", group=SCHEDULE, low=0, high=10)
    weight_decay: float = option(0.01, "Weight decay of AdamW.", group=SCHEDULE, low=0, high=1)
    warmup_steps: int = option(50, "Steps of linear warm-up.", group=SCHEDULE)
    schedule: str = option("poly", "Learning rate over the run.", group=SCHEDULE, choices=tuple(SCHEDULES))
    power: float | None = option(
        None, "Power of the schedule (default: its own; 0.9 for poly).", group=SCHEDULE, low=0, high=10
    )
    loss: str = option("cross_entropy_dice", "Loss to minimise.", group=LOSS, choices=LOSS_NAMES)
    auxiliary_weight: float = option(
        0.4, "Weight of the loss of each auxiliary head, where the network has any.", group=LOSS, low=0, high=10
    )
    class_weights: str = option(
        "log", "Class weights from the classes' shares of the pixels.", group=LOSS, choices=CLASS_WEIGHTS
    )
    ema_decay: float = option(
        0.99, "Decay of the averaged weights, which are what is saved.", group=SCHEDULE, low=0, high=0.99999
    )
    scale_min: float = option(0.5, "Smallest random zoom.", group=AUGMENTATION, low=0.05, high=20)
    scale_max: float = option(2.0, "Largest random zoom.", group=AUGMENTATION, low=0.05, high=20)
    jitter: float = option(0.3, "Strength of the random changes of colour.", group=AUGMENTATION, low=0, high=1)
    flip: bool = option(True, "Mirror half of the samples.", group=AUGMENTATION)
    validate_every: int = option(1, "Epochs between validations.", group=SCHEDULE, low=1)
    checkpoint_minutes: float = option(3.0, "Minutes between checkpoints within an epoch.", group=OUTPUT, low=0)
    precision: str = option(
        "auto",
        "Number format of the forward pass; auto is bfloat16 where the device has it.",
        group=SPEED,
        choices=("auto", "float32", "bfloat16"),
    )
    device: str = option("auto", "Where to train.", group=SPEED, choices=("auto", "cpu", "cuda"))
    runner: str = option(
        "auto",
        "On Ray, or in processes of this machine alone (one worker). auto is ray where RAY_ADDRESS names a cluster or"
        " there are several workers.",
        group=SPEED,
        choices=RUNNERS,
    )
    allow_absent_classes: bool = option(
        False, "Train although a class has not one pixel in the training labels.", group=FAILURES
    )
    cpus_per_worker: int | None = option(
        None,
        "CPUs and threads of a worker (default: 1; on one machine without a GPU, all of its cores).",
        group=SPEED,
        low=1,
    )

    @property
    def read_options(self) -> ReadOptions:
        """Scenes with the bands that are asked for."""
        physical = (self.scaling or "").startswith("metadata")
        scenes = SceneOptions(parse_bands(self.bands), None, physical, self.resampling)
        return replace(super().read_options, scenes=scenes)


def check(config: TrainConfig) -> tuple[int, int]:
    """The crop (height, width) in px. Raises InputError for options out of range."""
    if not config.label_set:
        names = ", ".join(sorted(LABEL_SETS))
        raise InputError("--label-set is missing", expected=f"one of {names}, or a YAML file of the classes")
    if config.model.startswith("export:"):
        raise InputError("an exported program cannot be trained", where=config.model, todo="train its source")
    validate(config)
    _ = config.window_options, parse_bands(config.bands)  # raise for what is out of range
    if config.scaling is not None:
        fixed_scaling(config.scaling, len(parse_bands(config.bands)) or config.scaling.count(";") + 1)
    if config.batch_size % config.num_workers:
        raise InputError(
            "--batch-size is shared by all workers",
            found=f"{config.batch_size} over {config.num_workers} workers",
            expected=f"a multiple of {config.num_workers}",
        )
    if config.scale_max < config.scale_min:
        raise InputError(
            "--scale-max is out of range",
            found=config.scale_max,
            expected=f"--scale-min {config.scale_min:g} or more",
        )
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
    for name in ("window_px", "halo_px", "area_of_interest", "assets", "resampling", "bands", "scaling"):
        if parts[name] == getattr(TrainConfig, name):
            del parts[name]  # likewise
    if parts["max_pixels"] == ReadConfig.max_pixels:
        del parts["max_pixels"]  # runs from before it was an option resume
    weights = options.get("backbone_weights")
    if weights not in (None, *_DOWNLOADED):
        weights = hashlib.sha256(storage.read_bytes(weights)).hexdigest()
    content = weights_sha256(model_name(config), options)
    if content is not None:
        parts["model"], parts["model_options"] = portable(model_name(config), options)
        parts["model_weights"] = content
    return {**parts, "label_set": label_set.to_json(), "backbone_weights": weights, "result_version": RESULT_VERSION}
