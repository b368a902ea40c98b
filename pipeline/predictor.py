"""Pixels -> class map, confidence and counts, for pictures of any size; knows nothing of Ray.

The same picture gives the same mask whatever else is in the call: a forward sees pictures of one shape only and always
a full batch (the last one is padded), because the shape of a batch chooses the algorithms and so a network's last bits.
What the network sees of a large picture is cut into tiles of one shape that overlap; only the inner part of each is
kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.checkpoint import ModelSpec
from pipeline.errors import InputError
from pipeline.models.fold import fold_batch_norm
from pipeline.tiling import Cut, cut_side

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GRID_PX = 32  # the deepest stride of any network here: tiles that start on it see the same strided grid as the whole
BAND_PX = 32768  # post-processing goes in bands of about as many pixels: K planes of them stay in a core's cache


class DeviceError(RuntimeError):
    """The device is broken, not the picture: this process can predict nothing any more and should end."""


@dataclass(frozen=True)
class Prediction:
    """What is known of one picture of H x W pixels and K classes."""

    class_map: np.ndarray  # H x W of the label set's mask_dtype
    class_pixels: np.ndarray  # int64, K
    mean_confidence: float  # mean over pixels of the softmax of the winning class
    class_confidence: np.ndarray  # float64, K: the same per winning class, nan where a class does not occur
    low_confidence_share: float  # of the pixels: winning softmax below `low_confidence`


class Predictor:
    """A network ready to predict on one device.

    `batch_size` is None (1 on a CPU, where larger ones gain nothing, 8 on a GPU) or the pictures (tiles) per forward;
    one too large for memory is halved for the pictures of that shape.
    Pictures with a side over `tile_px` are tiled with at least `overlap_px` of overlap. `precision` is "auto" (float32
    without TF32: a mask must not depend on the device), "float32", "bfloat16" or "float16". `threads` sets torch's
    threads for the whole process: their number changes a network's last bits. Raises InputError for an option out of
    range.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        *,
        device: str = "auto",
        batch_size: int | None = None,
        tile_px: int = 1024,
        overlap_px: int = 128,
        precision: str = "auto",
        low_confidence: float = 0.5,
        threads: int | None = None,
    ) -> None:
        self.grid_px = math.lcm(GRID_PX, spec.size_multiple)
        if overlap_px < 0 or tile_px - overlap_px < 2 * self.grid_px:
            raise InputError(
                "tiles too small for their overlap",
                found=f"tile_px={tile_px}, overlap_px={overlap_px}",
                expected=f"tile_px - overlap_px >= {2 * self.grid_px}",
            )
        if precision not in ("auto", *PRECISIONS):
            raise InputError("precision out of range", found=precision, expected=f"auto, {', '.join(PRECISIONS)}")
        if batch_size is not None and batch_size < 1:
            raise InputError("batch size out of range", found=batch_size, expected="1 or more")
        if threads is not None:
            torch.set_num_threads(threads)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.spec = spec
        self.batch_size = batch_size or (8 if self.device.type == "cuda" else 1)
        self.tile_px, self.overlap_px = tile_px, overlap_px
        self.precision = "float32" if precision == "auto" else precision
        self.low_confidence = low_confidence
        std = torch.tensor(spec.std, dtype=torch.float32, device=self.device)
        mean = torch.tensor(spec.mean, dtype=torch.float32, device=self.device)
        self._factor = (1 / (spec.scale * std))[:, None, None]
        self._shift = (-mean / std)[:, None, None]
        side_px = math.ceil(128 / spec.size_multiple) * spec.size_multiple
        example = torch.rand(1, spec.bands, side_px, side_px, generator=torch.Generator().manual_seed(0))
        self.model = fold_batch_norm(model.to(self.device), example.to(self.device))
        self.model = self.model.to(memory_format=torch.channels_last)
        self._fits: dict[tuple[int, ...], int] = {}  # shape -> batch size, where the usual one was too large

    def predict(self, pictures: Sequence[np.ndarray]) -> list[Prediction | Exception]:
        """One answer per picture (H x W x B uint8, RGB order where B is 3; sizes may differ), in order.

        A picture that the network cannot take, or on which it raises, gets that exception as its answer and costs no
        other picture's. Raises DeviceError where the device itself has failed.
        """
        answers: list[Prediction | Exception | None] = [None] * len(pictures)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, picture in enumerate(pictures):
            if picture.ndim != 3 or picture.shape[2] != self.spec.bands or 0 in picture.shape:
                answers[i] = ValueError(
                    f"picture of shape {'x'.join(map(str, picture.shape))}; the network takes HxWx{self.spec.bands}"
                )
            else:
                by_shape.setdefault(picture.shape, []).append(i)
        for shape, members in by_shape.items():
            cuts = [cut_side(side, self.tile_px, self.overlap_px, self.grid_px) for side in shape[:2]]
            answered = [_Answer(pictures[i], self.spec) for i in members]
            self._run([_Tile(answer, row, column) for answer in answered for row in cuts[0] for column in cuts[1]])
            for i, answer in zip(members, answered, strict=True):
                answers[i] = answer.error or answer.prediction()
        return [answer for answer in answers if answer is not None]

    def _run(self, tiles: list[_Tile]) -> None:
        """Predict tiles of one shape into their answers, in batches that fit into memory."""
        shape = tiles[0].pixels.shape
        while tiles:
            size = self._fits.get(shape, self.batch_size)
            batch, rest = tiles[:size], tiles[size:]
            try:
                self._forward(batch, size)
            except Exception as error:
                if _is_broken(error):
                    raise DeviceError(f"{type(error).__name__}: {error}") from error
                if _is_out_of_memory(error) and size > 1:
                    self._fits[shape] = size // 2
                    if self.device.type == "cuda":
                        torch.cuda.empty_cache()
                    continue
                if len(batch) > 1:  # one of them is to blame: each for itself
                    for tile in batch:
                        self._run([tile])
                else:
                    batch[0].answer.error = error
            tiles = [tile for tile in rest if tile.answer.error is None]

    @torch.inference_mode()
    def _forward(self, batch: list[_Tile], padded_size: int) -> None:
        pixels = np.stack([tile.pixels for tile in batch])
        if self.spec.channel_order == "bgr":
            pixels = pixels[..., ::-1].copy()
        x = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)  # N x B x H x W, channels last in memory
        x = x.to(torch.float32).mul_(self._factor).add_(self._shift)
        height, width = x.shape[-2:]
        bottom, right = -height % self.spec.size_multiple, -width % self.spec.size_multiple
        if len(batch) < padded_size or bottom or right:  # with the mean colour, which is 0 here
            x = functional.pad(x, (0, right, 0, bottom, 0, 0, 0, padded_size - len(batch)))
            x = x.contiguous(memory_format=torch.channels_last)
        # a benchmark may pick another algorithm on the next run; these settings end with the forward, for a process
        # that also trains wants its own
        settings = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        autocast = torch.autocast(self.device.type, PRECISIONS[self.precision], enabled=self.precision != "float32")
        with settings, autocast:
            logits = self.model(x)
        expected = (padded_size, self.spec.label_set.num_classes, *x.shape[-2:])
        if tuple(logits.shape) != expected:
            raise ValueError(f"the network gave logits of shape {tuple(logits.shape)} instead of {expected}")
        # all of the batch before any answer is touched: a batch that fails half-way is run again
        found = [
            _winners(tile_logits[(slice(None), *tile.inner)]) for tile, tile_logits in zip(batch, logits, strict=False)
        ]
        for tile, (class_map, confidence) in zip(batch, found, strict=True):
            tile.answer.add(tile.outer, class_map, confidence, self.low_confidence)


class _Answer:
    """The prediction of one picture while its tiles come in."""

    def __init__(self, picture: np.ndarray, spec: ModelSpec) -> None:
        self.picture = picture
        self.error: Exception | None = None
        self.class_map = np.empty(picture.shape[:2], dtype=spec.label_set.mask_dtype)
        self.class_pixels = np.zeros(spec.label_set.num_classes, dtype=np.int64)
        self.confidence_sum = np.zeros(spec.label_set.num_classes, dtype=np.float64)
        self.low_pixels = 0

    def add(self, where: tuple[slice, slice], class_map: Tensor, confidence: Tensor, low_confidence: float) -> None:
        pixels, sums = _per_class(class_map, confidence, len(self.class_pixels))
        self.class_map[where] = class_map.cpu().numpy()
        self.class_pixels += pixels.cpu().numpy()
        self.confidence_sum += sums.cpu().numpy()
        self.low_pixels += int((confidence < low_confidence).sum())
        if not np.isfinite(self.confidence_sum).all():
            self.error = FloatingPointError("the network gave logits that are no numbers")

    def prediction(self) -> Prediction:
        occurs = self.class_pixels > 0
        means = np.full(len(occurs), np.nan)
        means[occurs] = self.confidence_sum[occurs] / self.class_pixels[occurs]
        size = self.class_map.size
        return Prediction(
            self.class_map,
            self.class_pixels,
            mean_confidence=float(self.confidence_sum.sum() / size),
            class_confidence=means,
            low_confidence_share=self.low_pixels / size,
        )


@dataclass
class _Tile:
    """One rectangle of a picture on its way through the network."""

    answer: _Answer
    row: Cut
    column: Cut

    @property
    def pixels(self) -> np.ndarray:
        return self.answer.picture[self.row.read, self.column.read]

    @property
    def outer(self) -> tuple[slice, slice]:
        """What is kept, in pixels of the picture."""
        return self.row.keep, self.column.keep

    @property
    def inner(self) -> tuple[slice, slice]:
        """What is kept, in pixels of the tile."""
        row, column = (
            slice(cut.keep.start - cut.read.start, cut.keep.stop - cut.read.start) for cut in (self.row, self.column)
        )
        return row, column


def _winners(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits K x H x W -> the winning class (H x W, uint8 or int32) and its softmax (H x W float32).

    A running maximum over the K planes, in bands of rows: argmax over K x H x W costs several times as much on a CPU.
    Of equal classes the first wins, as in argmax.
    """
    classes, height, width = logits.shape
    kind = torch.uint8 if classes <= 254 else torch.int32
    class_map = torch.empty(height, width, dtype=kind, device=logits.device)
    confidence = torch.empty(height, width, dtype=torch.float32, device=logits.device)
    rows = height if logits.is_cuda else max(1, BAND_PX // width)
    for top in range(0, height, rows):
        band = logits[:, top : top + rows].to(torch.float32, memory_format=torch.contiguous_format)
        best = band[0].clone()
        winner = torch.zeros(best.shape, dtype=kind, device=logits.device)
        for k in range(1, classes):
            # k rises, so the largest k that beat the best before it is the winner
            torch.maximum(winner, (band[k] > best).to(kind).mul_(k), out=winner)
            torch.maximum(best, band[k], out=best)
        class_map[top : top + rows] = winner
        confidence[top : top + rows] = (band - best).exp_().sum(0).reciprocal_()
    return class_map, confidence


def _per_class(class_map: Tensor, confidence: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Pixels (int64) and the sum of confidence (float64) of every class."""
    if class_map.is_cuda:  # a weighted bincount adds in any order there
        pixels = torch.bincount(class_map.flatten(), minlength=classes)
        sums = [(confidence * (class_map == k)).sum(dtype=torch.float64) for k in range(classes)]
        return pixels, torch.stack(sums)
    flat = class_map.flatten()
    return torch.bincount(flat, minlength=classes), torch.bincount(
        flat, weights=confidence.flatten().double(), minlength=classes
    )


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


def _is_broken(error: Exception) -> bool:
    """An error of the accelerator that is not about memory leaves the process's context unusable."""
    if _is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
