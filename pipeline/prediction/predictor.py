"""Pixels -> class map, confidence and counts, for pictures of any size; knows nothing of Ray.

The same picture gives the same mask whatever else is in the call: a forward sees pictures of one shape only and always
a full batch (the last one is padded), because the shape of a batch chooses the algorithms and so a network's last bits.
What the network sees of a large picture is cut into tiles of one shape that overlap; only the inner part of each is
kept. A network that wants pictures of one size (`ModelSpec.input_size`) sees each picture whole, resized to it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from pipeline.models.limits import UNLIMITED, InputLimits, Range
from pipeline.models.spec import ModelSpec
from pipeline.prediction.device_forward import forward_for
from pipeline.prediction.engines import Network, require_engine, run_by
from pipeline.prediction.folding import fold_batch_norm
from pipeline.prediction.forward import PRECISIONS, ForwardOptions, Pending
from pipeline.prediction.packing import pack_convolutions
from pipeline.prediction.stitching import Prediction, Stitcher, Tile, TileResult
from pipeline.prediction.tiling import Cut, cut_fixed, cut_side
from pipeline.prediction.views import Views
from pipeline.reading.pixels import Pixels
from pipeline.runtime.process import keep_freed_memory

TILE_PX = 1024
BATCHES_AT_ONCE = 8  # on a GPU
GRID_PX = 32  # the deepest stride of any network here: tiles that start on it see the same strided grid as the whole


class DeviceError(RuntimeError):
    """The device has failed, not the picture: this process cannot predict any more and should end."""


class Predictor:
    """A network ready to predict on one device.

    `batch_size` is the pictures (tiles) in a forward pass: None is 1 on a CPU, where more gain nothing, and 8 on a GPU.
    A batch too large for memory is halved for the pictures of that shape. Pictures with a side over `tile_px` are
    tiled, with at least `overlap_px` of overlap; None is 1024, and windows of scenes, which have halos, whole. A
    network with `limits` of its own (an exported program) is fed within them: batches and pictures are padded to its
    least, tiled at its largest.

    `precision` is "auto" (float32 without TF32: a mask must not depend on the device), "float32", "bfloat16" or
    "float16". `threads` sets torch's threads for the whole process; their number changes a network's last bits. `flip`
    and `scales` average over mirrored and zoomed views (`views`). `keep_confidence` keeps the confidence of every
    pixel, `keep_probabilities` the softmax of every class. `engine` is what runs the network (`engines.ENGINES`).
    Raises InputError for an option out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        *,
        device: str = "auto",
        batch_size: int | None = None,
        tile_px: int | None = None,
        overlap_px: int = 128,
        precision: str = "auto",
        low_confidence: float = 0.5,
        threads: int | None = None,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        keep_confidence: bool = False,
        keep_probabilities: bool = False,
        engine: str = "eager",
    ) -> None:
        self.grid_px = math.lcm(GRID_PX, spec.size_multiple)
        self.windows_whole, tile_px = tile_px is None, tile_px or TILE_PX
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
        require_engine(engine, device, precision)
        if device == "cpu":
            keep_freed_memory()
        self.device = torch.device(device)
        self.spec = spec
        self.limits: InputLimits = getattr(model, "limits", UNLIMITED)
        self.batch_size = self.limits.batch.clamp(batch_size or (8 if self.device.type == "cuda" else 1))
        self.tile_px, self.overlap_px = tile_px, overlap_px
        self.precision = "float32" if precision == "auto" else precision
        network = model.to(self.device)
        examples = self._examples() if self.limits is UNLIMITED else []  # a traced program has no modules to fold
        if examples:
            network = fold_batch_norm(network, examples[0][:1])
        network = network.to(memory_format=getattr(model, "memory_format", torch.channels_last))
        if examples and (device, engine, self.precision) == ("cpu", "eager", "float32"):
            network = pack_convolutions(network, examples[0][:1])
        self.model: Network = run_by(engine, network, examples)
        if flip or tuple(scales) != (1.0,):
            if self.limits is not UNLIMITED and tuple(scales) != (1.0,):
                raise InputError("zoomed views do not go with a network that takes certain sizes only")
            self.model = Views(self.model, flip=flip, scales=scales, multiple=spec.size_multiple)
        self.keep_confidence, self.keep_probabilities = keep_confidence, keep_probabilities
        options = ForwardOptions(self.precision, low_confidence, keep_confidence, keep_probabilities)
        self._forward = forward_for(self.device)(self.model, spec, self.device, options, self.limits)
        self._fits: dict[tuple[int, ...], int] = {}  # shape -> batch size, where the usual one was too large

    def _examples(self) -> list[Tensor]:
        """Inputs of small sizes, even, odd and square, that a network takes which takes any."""
        random, multiple = torch.Generator().manual_seed(0), self.spec.size_multiple
        examples = []
        for size in ((128, 128), (192, 224), (97, 131)):
            sides = [math.ceil(side_px / multiple) * multiple for side_px in size]
            examples.append(torch.rand(self.batch_size, self.spec.bands, *sides, generator=random).to(self.device))
        return examples

    @property
    def pictures_at_once(self) -> int:
        """How many pictures a call should be given: on a GPU several batches, launched while others are fetched."""
        return self.batch_size * (BATCHES_AT_ONCE if self._forward.most_ahead > 1 else 1)

    def batch_size_of(self, picture: Pixels | np.ndarray) -> int:
        """Tiles per forward for pictures of this shape: less than `batch_size` where that did not fit into memory."""
        tile = self._tiles(Stitcher(as_pixels(picture), self.spec))[0]
        return self._fits.get(tile.pixels.shape, self.batch_size)

    def predict(self, pictures: Sequence[Pixels | np.ndarray]) -> list[Prediction | Exception]:
        """One prediction per picture (H x W x B, RGB order where B is 3; sizes may differ), in order.

        Of `Pixels` it is the core that is predicted, and what is not valid has no prediction. A core without a valid
        pixel is answered without the network. A picture that the network cannot take, or on which it raises, gets that
        exception in place of a prediction; the others are predicted. Raises DeviceError where the device has failed.
        """
        predictions: list[Prediction | Exception | None] = [None] * len(pictures)
        by_shape: dict[tuple[int | str, ...], list[int]] = {}
        given = [as_pixels(picture) for picture in pictures]
        for i, picture in enumerate(given):
            if len(picture.shape) != 3 or picture.shape[2] != self.spec.bands or 0 in picture.shape:
                predictions[i] = ValueError(
                    f"picture of shape {'x'.join(map(str, picture.shape))}; the network takes HxWx{self.spec.bands}"
                )
            else:
                shape = (*self.spec.input_size, picture.shape[2]) if self.spec.input_size else picture.shape
                by_shape.setdefault((*shape, picture.values.dtype.str), []).append(i)
        for members in by_shape.values():
            stitchers = [Stitcher(given[i], self.spec, self.keep_confidence, self.keep_probabilities) for i in members]
            self._run([tile for stitcher in stitchers for tile in self._tiles(stitcher)])
            for i, stitcher in zip(members, stitchers, strict=True):
                predictions[i] = stitcher.error or stitcher.prediction()
        return [prediction for prediction in predictions if prediction is not None]

    def _tiles(self, stitcher: Stitcher) -> list[Tile]:
        height, width = stitcher.picture.shape[:2]
        if self.spec.input_size is not None:
            row, column = (Cut(slice(0, side), slice(0, side)) for side in (height, width))
            return [Tile(stitcher, row, column, self.spec.input_size)]
        whole = self.windows_whole and stitcher.picture.core is not None
        tile_px = max(height, width) if whole else self.tile_px
        rows, columns = self._cuts(height, tile_px, self.limits.height), self._cuts(width, tile_px, self.limits.width)
        tiles = [Tile(stitcher, row, column) for row in rows for column in columns]
        return [tile for tile in tiles if all(part.start < part.stop for part in tile.kept)]  # not the halo's own

    def _cuts(self, side_px: int, tile_px: int, limit: Range) -> list[Cut]:
        if limit.high is not None and limit.high < max(tile_px, limit.low + 1):
            return cut_fixed(side_px, limit.high - limit.high % self.spec.size_multiple, self.overlap_px)
        return cut_side(side_px, tile_px, self.overlap_px, self.grid_px)

    def _run(self, tiles: list[Tile]) -> None:
        """Predict tiles of one shape for their pictures, in batches that fit into memory."""
        tiles = [tile for tile in tiles if not self._answered(tile)]
        if not tiles:
            return
        shape = tiles[0].pixels.shape
        under_way: deque[tuple[list[Tile], Pending]] = deque()
        while tiles or under_way:
            size = self._fits.get(shape, self.batch_size)
            batch: list[Tile] = []
            try:
                if tiles and len(under_way) < self._forward.most_ahead:
                    batch, tiles = tiles[:size], tiles[size:]
                    under_way.append((batch, self._forward.launch(batch, size)))
                else:
                    batch, pending = under_way.popleft()
                    for tile, found in zip(batch, pending(), strict=True):
                        tile.stitcher.add(tile.outer, found)
            except Exception as error:
                self._mend(error, batch, shape, size)
            tiles = [tile for tile in tiles if tile.stitcher.error is None]

    def _answered(self, tile: Tile) -> bool:
        """Answer a tile without a valid pixel: there is nothing that the network could see."""
        known = tile.kept_valid
        if known is None or known.any():
            return False
        options, labels = self._forward.options, self.spec.label_set
        tile.stitcher.add(tile.outer, TileResult.nothing(known.shape, labels, options.keep_probabilities))
        return True

    def _mend(self, error: Exception, batch: list[Tile], shape: tuple[int, ...], size: int) -> None:
        """A batch has failed: run it again in smaller ones, or each tile for itself, to find the one to blame."""
        if _is_broken(error):
            raise DeviceError(f"{type(error).__name__}: {error}") from error
        if _is_out_of_memory(error) and (self._forward.release() or size > self.limits.batch.low):
            if size == self._fits.get(shape, self.batch_size) and size > self.limits.batch.low:
                self._fits[shape] = self.limits.batch.clamp(size // 2)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._run(batch)
        elif len(batch) > 1:
            for tile in batch:
                self._run([tile])
        else:
            batch[0].stitcher.error = error


def as_pixels(picture: Pixels | np.ndarray) -> Pixels:
    """A picture all of whose pixels are valid and predicted, where it is an array."""
    return picture if isinstance(picture, Pixels) else Pixels(picture)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)


def _is_broken(error: Exception) -> bool:
    """An error of the accelerator that is not about memory leaves the process's context unusable."""
    if _is_out_of_memory(error):
        return False
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
