"""Augmentation: a picture and its truth are moved together, and a sample is the same every time.

A training sample leaves here as uint8 pixels and class ids of one fixed size, so that Ray ships the smallest thing;
normalisation happens on the training device. Geometry and colour come from torchvision.transforms.v2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional


@dataclass(frozen=True)
class Augmentation:
    """What a training sample goes through, in this order.

    `crop` is (height, width) of the result in px. `scale` is the range of the random zoom, drawn evenly on a log axis
    (DeepLab's 0.5 to 2); `aspect` is the largest extra stretch of the width, 1 = none. `jitter` is the strength of
    brightness, contrast and saturation changes (hue moves by a tenth of it); it needs 3 bands of bytes and is left out
    for others. Where the window leaves the picture, pixels are `fill` and the truth is the label set's ignore value,
    so a picture smaller than the crop is padded, never stretched.
    """

    crop: tuple[int, int]
    scale: tuple[float, float] = (0.5, 2.0)
    aspect: float = 1.0
    flip: bool = True
    jitter: float = 0.0
    fill: int | tuple[float, ...] = 124  # or one for each band

    def __call__(
        self, pixels: np.ndarray, truth: np.ndarray, *, ignore_value: int, seed: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """One random view of H x W x C uint8 `pixels` and H x W `truth`: crop x C uint8 and crop, dtypes kept.

        The same `seed` gives the same view on every worker.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mix(seed))
            picture = tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))
            # torchvision interpolates no uint16; class ids stay exact in float32, which it uses inside
            mask = tv_tensors.Mask(torch.from_numpy(truth.astype(np.int32, copy=False))[None])
            picture, mask = self._window(picture, mask, ignore_value)
            if self.flip and torch.rand(()) < 0.5:
                picture, mask = functional.horizontal_flip(picture), functional.horizontal_flip(mask)
            if self.jitter > 0 and picture.shape[0] == 3 and picture.dtype == torch.uint8:
                picture = v2.ColorJitter(self.jitter, self.jitter, self.jitter, self.jitter / 10)(picture)
        return (
            np.ascontiguousarray(picture.numpy().transpose(1, 2, 0)),
            np.ascontiguousarray(mask[0].numpy().astype(truth.dtype)),
        )

    def fills(self, bands: int) -> list[float]:
        """What stands where there is no picture, band by band."""
        return list(self.fill) if isinstance(self.fill, tuple) else [self.fill] * bands

    def reach(self) -> tuple[int, int]:
        """Height and width in px of the largest part of a picture that a view shows."""
        height, width = self.crop
        return math.ceil(height / self.scale[0]), math.ceil(width * self.aspect / self.scale[0])

    def _window(
        self, picture: tv_tensors.Image, mask: tv_tensors.Mask, ignore_value: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Zoom and crop in one resampling: only the part of the picture that the crop will show is resized."""
        height, width = picture.shape[-2:]
        zoom = _log_uniform(*self.scale)
        stretch = _log_uniform(1 / self.aspect, self.aspect)
        top, rows, y, out_rows = _place(height, self.crop[0], zoom)
        left, columns, x, out_columns = _place(width, self.crop[1], zoom * stretch)
        size = [out_rows, out_columns]
        shown = functional.crop(picture, top, left, rows, columns)
        shown = functional.resize(shown, size, functional.InterpolationMode.BILINEAR, antialias=True)
        truth = functional.crop(mask, top, left, rows, columns)
        truth = functional.resize(truth, size, functional.InterpolationMode.NEAREST)
        padding = [x, y, self.crop[1] - x - out_columns, self.crop[0] - y - out_rows]
        return (
            functional.pad(shown, padding, fill=self.fills(picture.shape[0])),
            functional.pad(truth, padding, fill=ignore_value),
        )


def _place(length: int, crop: int, zoom: float) -> tuple[int, int, int, int]:
    """One axis of the window: (start, length) in the picture, (start, length) in the crop, all px.

    The window is `crop / zoom` px of the picture; whichever of the two is longer, the other lies inside it at random.
    """
    window = max(1, round(crop / zoom))
    slack = length - window
    offset = int(torch.randint(0, abs(slack) + 1, ()))
    if slack >= 0:
        return offset, window, 0, crop
    shown = min(crop, max(1, round(length * crop / window)))
    return 0, length, min(round(offset * crop / window), crop - shown), shown


def _log_uniform(low: float, high: float) -> float:
    return float(low * (high / low) ** float(torch.rand(())))


def _mix(seed: tuple[int, ...]) -> int:
    """63 well-mixed bits from several integers (NumPy's SeedSequence), for torch's generator."""
    high, low = np.random.SeedSequence([part & 0xFFFFFFFFFFFFFFFF for part in seed]).generate_state(2)
    return (int(high) << 32 | int(low)) & 0x7FFFFFFFFFFFFFFF
