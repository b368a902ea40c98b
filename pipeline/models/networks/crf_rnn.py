"""`crf_rnn`: FCN-8s and behind it a mean-field CRF as a layer, so that its classes follow the picture's edges.

The same as `fcn8s` with `crf=True`, an option of every model: the layer works behind any network.

Paper: Zheng et al., "Conditional Random Fields as Recurrent Neural Networks" (2015), section 4. New in it: the
iterations of mean-field inference in a fully connected CRF (Kraehenbuehl and Koltun 2011) written as layers, so that
the weights of its two kernels and the compatibility of classes are learnt with the network. Each iteration is

    Q = softmax(U - compatibility * (a * (appearance kernel o Q) + b * (smoothness kernel o Q)))

where U are the network's logits, the appearance kernel compares place and colour, the smoothness kernel place alone.

    N x B x H x W
      network     logits K at H x W                              (fcn8s: see fcn.py)
      mean field  averages /4, 5 iterations, messages from 7 x 7; what they change -> K at H x W

Departures:
- Messages come from a window of 7 x 7 around a pixel instead of the whole picture through a permutohedral lattice (as
  in Teichmann and Cipolla 2018, "Convolutional CRFs").
- They run on maps averaged to 1/4 of the picture's height and width (`stride`), so the window spans 28 px; what they
  change is brought up bilinearly and added to the logits, whose own detail stays.
- Colour is compared in standard deviations of the normalised input, since the layer sees no pixels.
- Five iterations in training and prediction alike (the paper: five, and ten).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.models.blocks import resize


class MeanField(nn.Module):
    """Logits N x K x H x W and the network's input N x B x H x W -> logits N x K x H x W.

    `window` is the side of the neighbourhood in cells of `stride` x `stride` pixels. The kernels' widths are those of
    the windowed CRF: `place` and `near` in cells (appearance and smoothness), `colour` in standard deviations of the
    input. Raises InputError for an option out of range.
    """

    _appearance: Tensor
    _smoothness: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        iterations: int = 5,
        window: int = 7,
        stride: int = 4,
        place: float = 3.0,
        colour: float = 0.25,
        near: float = 1.0,
    ) -> None:
        super().__init__()
        if iterations < 1 or stride < 1 or window < 3 or window % 2 == 0 or min(place, colour, near) <= 0:
            raise InputError(
                "mean field out of range",
                found=f"iterations={iterations}, window={window}, stride={stride}",
                expected="1 or more iterations, an odd window of 3 or more, a stride of 1 or more",
            )
        self.iterations, self.window, self.stride = iterations, window, stride
        self.colour = colour
        offset = torch.arange(window) - window // 2
        square = (offset[:, None] ** 2 + offset[None, :] ** 2).flatten().float()  # window^2 distances, squared
        elsewhere = (square > 0).float()  # a pixel sends itself nothing
        self.register_buffer("_appearance", elsewhere * torch.exp(-square / (2 * place**2)), persistent=False)
        self.register_buffer("_smoothness", elsewhere * torch.exp(-square / (2 * near**2)), persistent=False)
        self.appearance_weight = nn.Parameter(torch.full((num_classes,), 1.0))
        self.smoothness_weight = nn.Parameter(torch.full((num_classes,), 0.5))
        # Potts: other classes nearby speak against a class; up to a constant that is what speaks for it nearby
        self.compatibility = nn.Parameter(-torch.eye(num_classes))

    def forward(self, logits: Tensor, x: Tensor) -> Tensor:
        unary = functional.avg_pool2d(logits.float(), self.stride, ceil_mode=True)  # N x K x h x w
        appearance, smoothness = self._kernels(functional.avg_pool2d(x.float(), self.stride, ceil_mode=True))
        refined = unary
        for _ in range(self.iterations):
            around = self._windows(refined.softmax(dim=1))  # N x K x window^2 x h x w
            message = self.appearance_weight[:, None, None] * (around * appearance).sum(2)
            message = message + self.smoothness_weight[:, None, None] * (around * smoothness).sum(2)
            refined = unary - torch.einsum("kl,nlhw->nkhw", self.compatibility, message)
        return logits + resize(refined - unary, logits).to(logits.dtype)

    def _kernels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both kernels, N x 1 x window^2 x h x w, each summing to 1 over the neighbours within the picture."""
        inside = self._windows(torch.ones_like(x[:, :1]))
        difference = self._windows(x) - x[:, :, None]
        alike = torch.exp(-difference.square().sum(1, keepdim=True) / (2 * self.colour**2))
        kernels = []
        for place, weight in ((self._appearance, inside * alike), (self._smoothness, inside)):
            kernel = weight * place[:, None, None]
            kernels.append(kernel / kernel.sum(2, keepdim=True).clamp_min(1e-6))
        return kernels[0], kernels[1]

    def _windows(self, x: Tensor) -> Tensor:
        """N x C x h x w -> N x C x window^2 x h x w: the neighbourhood of each cell, 0 beyond the picture."""
        around = functional.unfold(x, self.window, padding=self.window // 2)
        return around.view(x.shape[0], x.shape[1], self.window**2, *x.shape[-2:])


class WithCRF(nn.Module):
    """Any network and a mean field behind it: N x B x H x W -> logits N x K x H x W; auxiliary logits pass by.

    Raises InputError for an exported program, which brings sizes and memory layouts of its own.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        super().__init__()
        if hasattr(network, "limits"):
            raise InputError("crf=True does not go with an exported program", todo="export the network with its CRF")
        self.network = network
        self.crf = MeanField(num_classes)
        self.smallest_px = int(getattr(network, "smallest_px", 1))
        self.memory_format: torch.memory_format = getattr(network, "memory_format", torch.channels_last)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        logits = self.network(x)
        if isinstance(logits, tuple):
            return self.crf(logits[0], x), *logits[1:]
        return self.crf(logits, x)
