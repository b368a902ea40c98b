"""The options of a segment run: what they are, what they may be, and which of them decide what a mask holds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pipeline.catalog.scene_config import SceneConfig
from pipeline.catalog.subset import Subset
from pipeline.errors import InputError
from pipeline.labels import LabelSet
from pipeline.models.scene_input import fed_with, reading_of
from pipeline.models.spec import ModelSpec, read_spec
from pipeline.prediction.engines import ENGINES, require_engine
from pipeline.reading.read_config import ReadConfig
from pipeline.reading.regions import ReadOptions
from pipeline.runtime.options import FAILURES, INPUT, NETWORK, OUTPUT, SCENES, SPEED, option, validate
from pipeline.runtime.output_config import ClusterOutputConfig
from pipeline.tables.masks import MASK_FORMATS

TILE_PX = 1024
RESULT_VERSION = 1  # counts up whenever the code changes what a mask holds


@dataclass
class SegmentConfig(ClusterOutputConfig, SceneConfig, ReadConfig):
    """Segment every picture of a collection into Parquet masks and statistics, each exactly once. The same command on
    the same output resumes what was not committed."""

    source: str = option(help="Folder, prefix, glob or table of pictures, an S3 Inventory, or a manifest.", group=INPUT)
    checkpoint: str = option(help="Folder that jobs/train.py left, such as OUTPUT/best.", group=NETWORK)
    output: str = option(help="Folder or prefix that receives predictions/, statistics/ and labels.json.", group=OUTPUT)
    split: str | None = option(None, "Only the pictures of this split.", group=INPUT)
    sample: float | None = option(
        None,
        "Only this share of them, such as 0.01; drawn by key, so it is the same pictures in every run.",
        group=INPUT,
    )
    limit: int | None = option(None, "Only the first N of them.", group=INPUT)
    max_failure_rate: float = option(
        0.05,
        "Stop when a larger share of the regions fails (checked from 200 on and at the end; 1 = never).",
        group=FAILURES,
        low=0,
        high=1,
    )
    incremental: bool = option(
        False,
        "List again; do what is new or changed, keep the rows of unchanged pictures, drop those of gone ones.",
        group=INPUT,
    )
    retry_failed: bool = option(False, "Do failed regions again, also of a complete run.", group=FAILURES)
    rows_per_file: int | None = option(
        None, "Rows of one Parquet file (default: 128 MiB or 5 minutes of work).", group=OUTPUT, low=1
    )
    dry_run: bool = option(False, "Print what would be done and how long it would take; write nothing.", group=OUTPUT)
    price_per_hour: float | None = option(
        None, "Price of the whole cluster in any currency, printed for a million pictures.", group=SPEED, low=0
    )
    batch_size: int | None = option(
        None,
        "Pictures (tiles) in a forward pass (default: found by runs of over 2000, else 1 on CPUs, 8 on GPUs).",
        group=SPEED,
    )
    bands: str | None = option(
        None,
        "Bands of a scene by name or number, in the network's order: 4,3,2 (default: the checkpoint's, else all).",
        group=SCENES,
    )
    scaling: str | None = option(
        None,
        "How values of a scene are brought to what the network learnt: fixed:LOW,HIGH, metadata or none (default: the"
        " checkpoint's).",
        group=SCENES,
    )
    tile_px: int | None = option(
        None,
        "Pictures with a longer side are predicted in tiles of this side (default: 1024; windows of scenes whole).",
        group=NETWORK,
    )
    overlap_px: int = option(128, "How much tiles overlap, in px.", group=NETWORK)
    low_confidence: float = option(0.5, "Pixels below this confidence count as of low confidence.", group=OUTPUT)
    mask_format: str = option(
        "raw",
        "How masks are stored: raw is smallest and fastest, rle is COCO's, none keeps the statistics alone.",
        group=OUTPUT,
        choices=(*MASK_FORMATS, "none"),
    )
    confidence: bool = option(False, "Keep the confidence of every pixel too, a byte each.", group=OUTPUT)
    probabilities: bool = option(
        False, "Keep the softmax of each of K classes for every pixel too: K bytes a pixel.", group=OUTPUT
    )
    flip: bool = option(False, "Average over each picture and its mirror image.", group=NETWORK)
    scales: str = option("1", "Average over these zooms of each picture, such as 0.75,1,1.25.", group=NETWORK)
    precision: str = option(
        "auto", "Number format of the forward pass.", group=SPEED, choices=("auto", "float32", "bfloat16", "float16")
    )
    engine: str = option(
        "eager",
        "What runs the network: compiled (needs g++; for pictures of few sizes) and onnx are faster, on CPUs.",
        group=SPEED,
        choices=ENGINES,
    )
    device: str = option("auto", "Where to predict.", group=SPEED, choices=("auto", "cpu", "cuda"))
    num_predictors: int | None = option(None, "Predictors (default: one for each GPU, or for each core).", group=SPEED)
    threads: int | None = option(
        None,
        "Threads of a predictor on a CPU (default: found by runs of over 2000, else 1; heavy networks gain from more).",
        group=SPEED,
        low=1,
    )
    runner: str = option(
        "auto",
        "On Ray, or in processes of this machine alone. auto is ray where there is a cluster (RAY_ADDRESS) or a GPU.",
        group=SPEED,
        choices=("auto", "processes", "ray"),
    )
    predict_deadline_s: float = option(
        60.0, "Seconds that a forward pass may take, and 10 more for each megapixel in it.", group=FAILURES, low=0
    )

    def __post_init__(self) -> None:
        validate(self)
        _ = self.subset, self.view_scales, self.window_options  # raise for what is out of range
        if self.incremental and self.overwrite:
            raise InputError("--incremental keeps what --overwrite removes", todo="give one of them")
        require_engine(self.engine, self.device, self.precision)

    @property
    def subset(self) -> Subset:
        return Subset(self.split, self.sample, self.limit)

    def fed(self, spec: ModelSpec) -> ModelSpec:
        """The checkpoint's description as this run feeds it: with the bands and the scaling that were asked for."""
        return fed_with(spec, self.bands, self.scaling)

    @property
    def read_options(self) -> ReadOptions:
        """As the network that the checkpoint describes wants its scenes."""
        scenes = reading_of(self.fed(read_spec(self.checkpoint)), self.resampling)
        return replace(super().read_options, scenes=scenes)

    @property
    def view_scales(self) -> list[float]:
        """The factors of `scales`. Raises InputError for what is none."""
        try:
            factors = [float(part) for part in str(self.scales).strip("()[] ").split(",")]
        except ValueError:
            factors = []
        if not factors or not all(0.25 <= factor <= 4 for factor in factors):
            raise InputError(
                "--scales is out of range", found=self.scales, expected="factors of 0.25 to 4: 0.75,1,1.25"
            )
        return factors


def decisive(config: SegmentConfig, label_set: LabelSet, weights: str) -> dict[str, Any]:
    """Everything that can change a row, `weights` being the fingerprint of the network's.

    Batch size, precision, engine and threads are not among them: a run remembers what it began with and resumes with
    that.
    """
    return {
        "weights": weights,
        "label_set": label_set.to_json(),
        "tile_px": config.tile_px or TILE_PX,
        "overlap_px": config.overlap_px,
        "low_confidence": config.low_confidence,
        "max_pixels": config.max_pixels,
        "mask_format": config.mask_format,
        "confidence": config.confidence,
        "flip": config.flip,
        "scales": config.view_scales,
        "result_version": RESULT_VERSION,
        **({"probabilities": True} if config.probabilities else {}),  # runs from before it was there resume
        **({"bands": config.bands} if config.bands else {}),
        **({"scaling": config.scaling} if config.scaling else {}),
        **config.scene_choices,
    }
