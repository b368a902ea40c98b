"""A picture to the one size that a network wants, and its logits back to the picture's size.

Between them a class map would lose its borders, so it is the logits that are brought back; and band by band, because K
planes of a large picture fit into no memory.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def resize_pixels(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """H x W x B uint8 -> h x w x B uint8, bilinear with antialiasing, as Pillow and torchvision resize pictures."""
    if pixels.shape[:2] == size:
        return pixels
    x = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None]  # a copy: what was fetched is often read-only
    resized = functional.interpolate(x, size=size, mode="bilinear", antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).numpy()


def resized_rows(logits: Tensor, rows: range, size: tuple[int, int]) -> Tensor:
    """Rows of K x h x w logits brought bilinearly to K x H x W, `size` being (H, W): K x len(rows) x W float32.

    The same as those rows of `functional.interpolate(..., mode="bilinear")`, up to rounding.
    """
    height = logits.shape[1]
    position = torch.arange(rows.start, rows.stop, dtype=torch.float64, device=logits.device)
    position = ((position + 0.5) * (height / size[0]) - 0.5).clamp(min=0)
    above = position.floor().long().clamp(max=height - 1)
    below = (above + 1).clamp(max=height - 1)
    weight = (position - above).to(torch.float32)[:, None]
    band = torch.lerp(logits[:, above].float(), logits[:, below].float(), weight)
    wide = functional.interpolate(band[None], size=(len(rows), size[1]), mode="bilinear", align_corners=False)
    return wide[0]
