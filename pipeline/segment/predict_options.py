"""How a run predicts, chosen once and kept with the run: resumed with the same, its masks are identical."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pipeline.models.scene_input import fed_with
from pipeline.prediction.engines import require_engine
from pipeline.reading.regions import ReadOptions
from pipeline.segment.config import SegmentConfig

if TYPE_CHECKING:
    from pipeline.prediction.predictor import Predictor


@dataclass(frozen=True)
class PredictOptions:
    """How an actor predicts. All but the deadlines is kept in `_run.json`: the same values give identical masks."""

    device: str = "auto"
    precision: str = "auto"
    engine: str = "eager"
    batch_size: int | None = None
    tile_px: int | None = None
    overlap_px: int = 128
    low_confidence: float = 0.5
    threads: int | None = None
    flip: bool = False
    scales: Sequence[float] = (1.0,)
    keep_confidence: bool = False
    keep_probabilities: bool = False
    scaling: str | None = None  # of scenes, where it is not the checkpoint's
    deadline_s: float = 60.0  # of one forward pass, and more for each megapixel in it
    deadline_s_per_megapixel: float = 10.0

    def predictor(self, checkpoint: str) -> Predictor:
        """The network of a checkpoint, ready to predict like this."""
        from pipeline.models.checkpoint import load_checkpoint
        from pipeline.prediction.predictor import Predictor

        options = dict(vars(self))
        for name in ("deadline_s", "deadline_s_per_megapixel", "scaling"):
            del options[name]
        model, spec = load_checkpoint(checkpoint)
        return Predictor(model, fed_with(spec, None, self.scaling), **options)


def predict_options(config: SegmentConfig, num_gpus: int) -> dict[str, Any]:
    """What a run predicts with, to be kept: resumed with the same, its masks are identical.

    The batch size is the one asked for, or a first one; long runs look for a better one (`runners`).
    """
    device = config.device if config.device != "auto" else ("cuda" if num_gpus else "cpu")
    require_engine(config.engine, device, config.precision)
    return {
        "device": device,
        "precision": config.precision,
        "engine": config.engine,
        "batch_size": config.batch_size or (8 if device == "cuda" else 1),
        "tile_px": config.tile_px,
        "overlap_px": config.overlap_px,
        "low_confidence": config.low_confidence,
        "flip": config.flip,
        "scales": config.view_scales,
        "scaling": config.scaling,
        "keep_confidence": config.confidence,
        "keep_probabilities": config.probabilities,
        # n predictors of one thread beat one of n with a light network by two fifths; with a heavy one it loses as much
        "threads": config.threads or 1 if device == "cpu" else None,
    }


def num_predictors(config: SegmentConfig, device: str, threads: int | None, num_gpus: int, num_cores: int) -> int:
    """As asked for, or one a GPU, or as many as the cores have threads for."""
    return config.num_predictors or max(1, num_gpus if device == "cuda" else num_cores // (threads or 1))


def read_options(config: SegmentConfig, num_predictors: int, num_cores: int) -> ReadOptions:
    """How a predictor that also reads does that: its share of the cores may decode, where decoding needs them."""
    return replace(config.read_options, decoders=max(1, num_cores // num_predictors))
