"""The options of a segment run: what they are, what they may be, and which of them decide what a mask holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.catalog.subset import Subset
from pipeline.errors import InputError, nearest
from pipeline.labels import LabelSet
from pipeline.prediction.engines import require_engine
from pipeline.reading.regions import ReadOptions
from pipeline.tables.masks import MASK_FORMATS

RESULT_VERSION = 1  # counts up whenever the code changes what a mask holds


@dataclass
class SegmentConfig:
    """Segment every picture of a collection into Parquet masks and statistics, each exactly once.

    The same command on the same output resumes what was not committed.

    Args:
        source: a manifest, or a collection: a folder, prefix, glob or table of pictures
        checkpoint: a folder that jobs/train.py left, such as OUTPUT/best
        output: the folder or prefix that receives predictions/, statistics/ and labels.json
        split: only the pictures of this split
        sample: only this share of them, such as 0.01; drawn by key, so it is the same pictures in every run
        limit: only the first so many of them
        max_failure_rate: stop when a larger share of the regions fails (looked at after 200 and at the end; 1 = never)
        incremental: list again; do what is new or changed, keep the rows of unchanged pictures, drop those of gone ones
        retry_failed: do the regions again that failed, also of a complete run
        rows_per_file: rows of one Parquet file (default: 128 MiB or 5 minutes of work)
        overwrite: remove the run that the output folder holds
        dry_run: say what would be done, how much and how long it would take; write nothing
        price_per_hour: of the whole cluster, in any currency; turned into money for a million pictures
        batch_size: pictures (tiles) per forward (default: found by runs of over 2000, else 1 on CPUs, 8 on GPUs)
        tile_px: pictures with a longer side are predicted in tiles of this side
        overlap_px: how much tiles overlap
        low_confidence: pixels below this count as of low confidence
        mask_format: raw (smallest and fastest), png, rle (COCO's), or none for the statistics alone
        confidence: keep the confidence of every pixel too, a byte each
        probabilities: keep the softmax of each of K classes for every pixel too: K bytes a pixel, in memory and (before
            compression) on disk
        flip: see each picture mirrored too, and average (test-time augmentation)
        scales: see each picture zoomed by each of these, such as 0.75,1,1.25, and average
        precision: auto, float32, bfloat16 or float16
        engine: eager, compiled (needs g++; for pictures of few sizes) or onnx; the faster two run on CPUs
        device: auto, cpu or cuda
        num_predictors: predictor actors (default: one a GPU, or one a physical core)
        threads: of a predictor on a CPU (default: found by runs of over 2000, else 1; heavy networks gain from more)
        runner: ray, processes (of this machine alone), or auto: Ray where there is a cluster (RAY_ADDRESS) or a GPU
        max_pixels: larger pictures are not decoded (too_large)
        fetch_deadline_s: of one attempt to fetch a picture
        fetch_retry_s: how long fetching a picture is retried
        decode_deadline_s: of decoding a picture
        predict_deadline_s: of one forward pass; 10 s more for each megapixel in it
        shared_filesystem: every node of the cluster sees the same local paths
        single_writer: no other run writes there, on a store that cannot put-if-absent
    """

    source: str
    checkpoint: str
    output: str
    split: str | None = None
    sample: float | None = None
    limit: int | None = None
    max_failure_rate: float = 0.05
    incremental: bool = False
    retry_failed: bool = False
    rows_per_file: int | None = None
    overwrite: bool = False
    dry_run: bool = False
    price_per_hour: float | None = None
    batch_size: int | None = None
    tile_px: int = 1024
    overlap_px: int = 128
    low_confidence: float = 0.5
    mask_format: str = "raw"
    confidence: bool = False
    probabilities: bool = False
    flip: bool = False
    scales: str = "1"
    precision: str = "auto"
    engine: str = "eager"
    device: str = "auto"
    num_predictors: int | None = None
    threads: int | None = None
    runner: str = "auto"
    max_pixels: int = 100_000_000
    fetch_deadline_s: float = 60.0
    fetch_retry_s: float = 60.0
    decode_deadline_s: float = 30.0
    predict_deadline_s: float = 60.0
    shared_filesystem: bool = False
    single_writer: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_failure_rate <= 1:
            raise InputError("--max-failure-rate is out of range", found=self.max_failure_rate, expected="0 to 1")
        _ = self.subset  # raises for what is out of range
        if self.rows_per_file is not None and self.rows_per_file < 1:
            raise InputError("--rows-per-file is out of range", found=self.rows_per_file, expected="1 or more")
        if self.price_per_hour is not None and self.price_per_hour < 0:
            raise InputError("--price-per-hour is out of range", found=self.price_per_hour, expected="0 or more")
        if self.incremental and self.overwrite:
            raise InputError("--incremental keeps what --overwrite removes", todo="give one of them")
        if self.mask_format not in (*MASK_FORMATS, "none"):
            known = (*MASK_FORMATS, "none")
            hint = nearest(self.mask_format, known) or None
            raise InputError(f"--mask-format: no {self.mask_format!r}", expected=", ".join(known), todo=hint)
        _ = self.view_scales  # raises for what is out of range
        if self.threads is not None and self.threads < 1:
            raise InputError("--threads is out of range", found=self.threads, expected="1 or more")
        if self.runner not in ("auto", "processes", "ray"):
            raise InputError("unknown runner", found=self.runner, expected="auto, processes or ray")
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError("unknown device", found=self.device, expected="auto, cpu or cuda")
        require_engine(self.engine, self.device, self.precision)

    @property
    def subset(self) -> Subset:
        return Subset(self.split, self.sample, self.limit)

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

    @property
    def read_options(self) -> ReadOptions:
        return ReadOptions(self.fetch_deadline_s, self.fetch_retry_s, self.decode_deadline_s, self.max_pixels)


def decisive(config: SegmentConfig, label_set: LabelSet, weights: str) -> dict[str, Any]:
    """Everything that can change a row, `weights` being the fingerprint of the network's.

    Batch size, precision, engine and threads are not among them: a run remembers what it began with and resumes with
    that.
    """
    return {
        "weights": weights,
        "label_set": label_set.to_json(),
        "tile_px": config.tile_px,
        "overlap_px": config.overlap_px,
        "low_confidence": config.low_confidence,
        "max_pixels": config.max_pixels,
        "mask_format": config.mask_format,
        "confidence": config.confidence,
        "flip": config.flip,
        "scales": config.view_scales,
        "result_version": RESULT_VERSION,
        **({"probabilities": True} if config.probabilities else {}),  # runs from before it was there resume
    }
