"""A batch of tiles through the network: pixels in, what was found of each tile's inner part out.

`Forward` runs anywhere and is the definition. `device_forward` does the same for a GPU, all on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.models.limits import UNLIMITED, InputLimits, Range
from pipeline.models.normalization import Normalization
from pipeline.models.spec import ModelSpec
from pipeline.prediction.argmax import argmax, channel_classes, per_class, probabilities
from pipeline.prediction.engines import Network
from pipeline.prediction.stitching import Tile, TileResult

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Pending = Callable[[], list[TileResult]]  # waits for a launched batch; one result for each tile


@dataclass(frozen=True)
class ForwardOptions:
    """What of a prediction is kept, and in which numbers the network runs."""

    precision: str = "float32"
    low_confidence: float = 0.5
    keep_confidence: bool = False
    keep_probabilities: bool = False


class Forward:
    """One forward pass over tiles of one shape, always of a full batch (see `predictor`)."""

    most_ahead = 1  # batches launched before the first is waited for

    def __init__(
        self,
        network: Network,
        spec: ModelSpec,
        device: torch.device,
        options: ForwardOptions,
        limits: InputLimits = UNLIMITED,
    ) -> None:
        self.network, self.spec, self.device, self.options, self.limits = network, spec, device, options, limits
        self._normalize = Normalization(spec, device)
        self.labels = channel_classes(spec).to(device) if spec.class_map is not None else None

    @torch.inference_mode()
    def launch(self, batch: list[Tile], padded_size: int) -> Pending:
        """Run a batch, padded to `padded_size` tiles. Raises whatever the network or the device raises."""
        pixels, valid = torch.from_numpy(self.stacked(batch)), self._valid(batch)
        logits = self.logits(pixels.to(self.device), padded_size, None if valid is None else valid.to(self.device))
        # all of the batch before any picture is touched: a batch that fails half-way is run again
        found = [self._result(tile, tile_logits) for tile, tile_logits in zip(batch, logits, strict=False)]
        return lambda: found

    def release(self) -> bool:
        """Give back memory that is only kept for speed; whether there was any."""
        return False

    def stacked(self, batch: list[Tile], out: np.ndarray | None = None) -> np.ndarray:
        """N x H x W x B, in the network's order of channels; into `out` where that is given."""
        backwards = self.spec.channel_order == "bgr"
        return np.stack([tile.pixels[..., ::-1] if backwards else tile.pixels for tile in batch], out=out)

    def _valid(self, batch: list[Tile]) -> Tensor | None:
        """N x H x W bool, None where all of it is valid."""
        if all(tile.valid is None for tile in batch):
            return None
        size = batch[0].pixels.shape[:2]
        return torch.from_numpy(np.stack([np.ones(size, bool) if t.valid is None else t.valid for t in batch]))

    def logits(self, pixels: Tensor, padded_size: int, valid: Tensor | None = None) -> Tensor:
        """N x H x W x B on the device -> logits `padded_size` x K x H' x W' (H', W' are H, W or more)."""
        x = self._normalize(pixels, valid)
        bottom, right = self._padding(x.shape[-2], self.limits.height), self._padding(x.shape[-1], self.limits.width)
        if len(x) < padded_size or bottom or right:  # with the mean colour, which is 0 here
            x = functional.pad(x, (0, right, 0, bottom, 0, 0, 0, padded_size - len(x)))
            x = x.contiguous(memory_format=torch.channels_last)
        # a benchmark may pick another algorithm on the next run; these settings end with the forward, for a process
        # that also trains wants its own
        settings = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        narrow = self.options.precision != "float32"
        with settings, torch.autocast(self.device.type, PRECISIONS[self.options.precision], enabled=narrow):
            logits = self.network(x)
        expected = (padded_size, self.spec.num_channels, *x.shape[-2:])
        if tuple(logits.shape) != expected:
            raise ValueError(f"the network gave logits of shape {tuple(logits.shape)} instead of {expected}")
        return logits

    def _result(self, tile: Tile, logits: Tensor) -> TileResult:
        options, classes = self.options, self.spec.label_set.num_classes
        inner, height, width = tile.inner, *tile.pixels.shape[:2]
        if tile.enlarged is None:
            logits = logits[(slice(None), *inner)]
        else:
            logits = logits[:, :height, :width]
        planes = probabilities(logits, classes, self.labels, tile.enlarged) if options.keep_probabilities else None
        class_map, confidence = argmax(logits, tile.enlarged)
        if tile.enlarged is not None:
            class_map, confidence = class_map[inner], confidence[inner]
            planes = None if planes is None else planes[(slice(None), *inner)]
        if self.labels is not None:
            class_map = self.labels[class_map.int()]
        if (known := tile.kept_valid) is not None:
            lost = ~torch.from_numpy(known).to(self.device)
            class_map = class_map.masked_fill(lost, self.spec.label_set.ignore_value)
            confidence = confidence.masked_fill(lost, 0)
            planes = None if planes is None else planes.masked_fill(lost, 0)
        pixels, sums = per_class(class_map, confidence, classes)
        low, wrong = confidence < options.low_confidence, not bool(sums.isfinite().all())
        if self.labels is not None or known is not None:
            low &= class_map < classes
            wrong |= bool(confidence.isnan().any())
        kept_confidence = (confidence * 255).round_().to(torch.uint8) if options.keep_confidence else None
        return TileResult(
            class_map=class_map.cpu().numpy(),
            class_pixels=pixels.cpu().numpy(),
            confidence_sum=sums.cpu().numpy(),
            low_pixels=int(low.sum()),
            are_numbers=not wrong,
            confidence=None if kept_confidence is None else kept_confidence.cpu().numpy(),
            probabilities=None if planes is None else planes.cpu().numpy(),
        )

    def _padding(self, side_px: int, limit: Range) -> int:
        """How much is added to a side so that the network takes it."""
        return max(limit.low - side_px, -side_px % self.spec.size_multiple)
