"""A forward pass for a GPU: bytes across the bus, everything else on the device, one small answer back.

A light network on a GPU is held up by the processor that launches its kernels, and by every question that waits for an
answer. So the whole of a batch is launched without waiting: copy, normalise, network, argmax, confidence and counts;
the next batch is launched before the last one is fetched (`most_ahead`), out of and into pinned memory; and a shape
that comes again is recorded once and replayed as one CUDA graph, the same kernels in the same order.

Tiles that are brought back to another size, and probabilities, go the plain way of `Forward`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.prediction.engines import MOST_SHAPES
from pipeline.prediction.forward import Forward, Pending
from pipeline.prediction.stitching import Tile, TileResult

_RECORDED_AFTER = 2  # batches of a shape: a collection of any sizes does not record for ever
_VALID, _COUNTED = 1, 2  # marks of a pixel: the network sees it; it is kept and has a prediction
_Shape = tuple[Any, ...]


@dataclass(frozen=True)
class _Outputs:
    """On the device, of a padded batch of N tiles."""

    class_map: Tensor  # N x H x W, the ignore value where a pixel is not counted
    figures: Tensor  # float64, N x (2 K + 2): pixels of each class, their confidence, low pixels, pixels of no number
    confidence: Tensor | None  # N x H x W uint8, times 255


@dataclass
class _Recording:
    """A CUDA graph with the memory it reads and writes."""

    graph: torch.cuda.CUDAGraph
    pixels: Tensor
    marks: Tensor | None
    outputs: _Outputs


@dataclass
class _Buffers:
    """Pinned memory of one batch on its way: what goes in and, once the device is done, what came out."""

    pixels: Tensor
    marks: Tensor
    busy: bool = False
    out: dict[str, Tensor] = field(default_factory=dict)


class DeviceForward(Forward):
    """`Forward` for tiles of one shape on a GPU. On a CPU (in tests) it does the same without graphs and pinning."""

    most_ahead = 2

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._seen: dict[tuple[_Shape, bool], int] = {}
        self._recorded: dict[tuple[_Shape, bool], _Recording | None] = {}  # None: it cannot be recorded
        self._buffers: dict[_Shape, list[_Buffers]] = {}
        self._pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

    @torch.inference_mode()
    def launch(self, batch: list[Tile], padded_size: int) -> Pending:
        if self.options.keep_probabilities or batch[0].enlarged is not None:
            return super().launch(batch, padded_size)
        buffers = self._take(batch[0].pixels, padded_size)
        try:
            pixels = buffers.pixels[: len(batch)]
            self.stacked(batch, out=pixels.numpy())
            marks = self._marks(batch, buffers.marks)
            if len(batch) < padded_size:
                buffers.pixels[len(batch) :] = pixels[0]  # any legal pixels: they are not counted
            outputs = self._run(buffers.pixels, marks)
            return self._fetch(batch, outputs, buffers)
        except BaseException:
            buffers.busy = False
            raise

    def release(self) -> bool:
        """Drop what was recorded: it holds memory of its own."""
        held = any(self._recorded.values())
        self._recorded = dict.fromkeys(self._recorded)
        return held

    def _take(self, pixels: np.ndarray, size: int) -> _Buffers:
        """Buffers that no batch uses, for tiles of this shape."""
        shape = (size, *pixels.shape)
        key = (*shape, pixels.dtype.str)
        mine = self._buffers.setdefault(key, [])
        if len(self._buffers) > MOST_SHAPES:  # those of other shapes are freed when their batch is done
            self._buffers = {key: mine}
        buffers = next((one for one in mine if not one.busy), None)
        if buffers is None:
            kind = torch.from_numpy(np.empty(0, pixels.dtype)).dtype
            buffers = _Buffers(self._pinned(shape, kind), self._pinned(shape[:3], torch.uint8))
            mine.append(buffers)
        buffers.busy = True
        return buffers

    def _marks(self, batch: list[Tile], marks: Tensor) -> Tensor | None:
        """N x H x W uint8, `_VALID` and `_COUNTED` of each pixel; None where all of them are both."""
        height, width = batch[0].pixels.shape[:2]
        whole = (slice(0, height), slice(0, width))
        full = len(batch) == len(marks) and all(tile.inner == whole for tile in batch)
        if full and all(tile.valid is None for tile in batch):
            return None
        marks[:] = _VALID
        for mark, tile in zip(marks, batch, strict=False):
            mark[tile.inner] = _VALID | _COUNTED
            if tile.valid is not None:
                mark *= torch.from_numpy(tile.valid)
        return marks

    def _run(self, pixels: Tensor, marks: Tensor | None) -> _Outputs:
        key = ((*pixels.shape, str(pixels.dtype)), marks is not None)
        if key not in self._recorded and self.device.type == "cuda":
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] > _RECORDED_AFTER and len(self._recorded) < MOST_SHAPES:
                self._recorded[key] = self._record(pixels, marks)
        recording = self._recorded.get(key)
        if recording is None:
            there = pixels.to(self.device, non_blocking=True)
            return self._outputs(there, None if marks is None else marks.to(self.device, non_blocking=True))
        recording.pixels.copy_(pixels, non_blocking=True)
        if marks is not None and recording.marks is not None:
            recording.marks.copy_(marks, non_blocking=True)
        recording.graph.replay()
        return recording.outputs

    def _record(self, pixels: Tensor, marks: Tensor | None) -> _Recording | None:
        """None where the network asks the device something on its way, which a graph cannot hold."""
        still = pixels.to(self.device)
        kept = None if marks is None else marks.to(self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._outputs(still, kept)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph, pool=self._pool):
                outputs = self._outputs(still, kept)
            return _Recording(graph, still, kept, outputs)
        except torch.OutOfMemoryError:
            return None
        except RuntimeError:
            torch.cuda.synchronize()
            return None

    def _outputs(self, pixels: Tensor, marks: Tensor | None) -> _Outputs:
        height, width = pixels.shape[1:3]
        classes, ignore = self.spec.label_set.num_classes, self.spec.label_set.ignore_value
        valid = None if marks is None else (marks & _VALID).bool()
        counted = None if marks is None else (marks & _COUNTED).bool()
        logits = self.logits(pixels, len(pixels), valid)[..., :height, :width].float()
        best = logits.amax(1)
        class_map = logits.argmax(1)  # the first of equal channels, as in `argmax.argmax`
        confidence = (logits - best[:, None]).exp_().sum(1).reciprocal_()
        kind = torch.uint8 if max(ignore, classes) <= 255 else torch.int32
        class_map = class_map.to(kind) if self.labels is None else self.labels[class_map]
        if counted is not None:
            class_map = class_map.masked_fill(~counted, ignore)
            confidence = confidence.masked_fill(~counted, 0)
        is_class = class_map < classes
        low = ((confidence < self.options.low_confidence) & is_class).sum((1, 2), dtype=torch.float64)
        wrong = confidence.isnan().sum((1, 2), dtype=torch.float64)
        pixels_of, sums_of = [], []
        for k in range(classes):  # a weighted bincount would add in any order
            here = class_map == k
            pixels_of.append(here.sum((1, 2), dtype=torch.float64))
            sums_of.append(torch.where(here, confidence, 0).sum((1, 2), dtype=torch.float64))
        figures = torch.stack([*pixels_of, *sums_of, low, wrong], dim=1)
        kept = (confidence * 255).round_().to(torch.uint8) if self.options.keep_confidence else None
        return _Outputs(class_map, figures, kept)

    def _fetch(self, batch: list[Tile], outputs: _Outputs, buffers: _Buffers) -> Pending:
        """Begin the way back; what is returned waits for its end."""
        found: dict[str, Tensor] = {}
        for name in ("class_map", "figures", "confidence"):
            there: Tensor | None = getattr(outputs, name)
            if there is not None:
                if name not in buffers.out:
                    buffers.out[name] = self._pinned(tuple(there.shape), there.dtype)
                found[name] = buffers.out[name].copy_(there, non_blocking=True)
        done = None
        if self.device.type == "cuda":
            done = torch.cuda.Event()
            done.record()

        def wait() -> list[TileResult]:
            try:
                if done is not None:
                    done.synchronize()
                return [self._of_tile(tile, i, found) for i, tile in enumerate(batch)]
            finally:
                buffers.busy = False

        return wait

    def _of_tile(self, tile: Tile, i: int, found: dict[str, Tensor]) -> TileResult:
        classes = self.spec.label_set.num_classes
        figures = found["figures"][i].numpy()
        confidence = found["confidence"][i].numpy()[tile.inner].copy() if "confidence" in found else None
        return TileResult(
            class_map=found["class_map"][i].numpy()[tile.inner].copy(),
            class_pixels=figures[:classes].astype(np.int64),
            confidence_sum=figures[classes : 2 * classes].copy(),
            low_pixels=int(figures[-2]),
            are_numbers=bool(np.isfinite(figures).all()) and figures[-1] == 0,
            confidence=confidence,
        )

    def _pinned(self, shape: _Shape, kind: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=kind, pin_memory=self.device.type == "cuda")


def forward_for(device: torch.device) -> Callable[..., Forward]:
    """The class that runs batches on this device."""
    return DeviceForward if device.type == "cuda" else Forward
