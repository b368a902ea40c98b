"""What every network must do: a subclass of `Network` says how to build it small, and the same cases run on it."""

from __future__ import annotations

import platform
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.models import build_model
from pipeline.prediction.folding import fold_batch_norm
from pipeline.prediction.packing import MOST_BYTES, pack_convolutions
from pipeline.training.optimization.losses import cross_entropy_dice, with_auxiliary

TESTED: dict[str, type[Network]] = {}  # name in the table -> the subclass


class Network:
    """The cases of one network; `name` and `options` build it, small where the network is heavy.

    What is particular to its structure stands as tests of the subclass.
    """

    name: str
    options: dict[str, Any] = {}
    overfit_steps = 60
    norms_left = 0  # batch norms that follow no single convolution, so folding leaves them
    overfit_zoom = 1  # enlarges the batch's shapes, where the scores' grid is too coarse for them

    def __init_subclass__(cls) -> None:
        if hasattr(cls, "name"):  # not what a family shares
            TESTED[cls.name] = cls

    def build(self, num_classes: int = 21, in_channels: int = 3, **options: Any) -> nn.Module:
        torch.manual_seed(0)
        return build_model(self.name, num_classes=num_classes, in_channels=in_channels, **{**self.options, **options})

    @pytest.mark.parametrize(("bands", "classes"), [(1, 2), (3, 21), (5, 2)])
    def test_logits_have_the_size_of_the_input(self, bands, classes):
        network = self.build(classes, bands).eval()
        with torch.no_grad():
            assert network(torch.rand(2, bands, 97, 131)).shape == (2, classes, 97, 131)

    def test_a_gradient_reaches_every_parameter(self):
        network = self.build(3).train()
        torch.manual_seed(1)
        logits = network(torch.rand(2, 3, 65, 97))
        every = logits if isinstance(logits, tuple) else (logits,)
        assert all(one.shape == (2, 3, 65, 97) for one in every)
        sum(one.square().mean() for one in every).backward()
        without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        assert not without, f"no gradient reaches {without}"

    def test_one_batch_can_be_overfitted(self):
        network = self.build(3).train()
        target = torch.zeros(2, 64, 96, dtype=torch.long)
        target[0, 16:40, 24:72] = 1
        target[1, :, 60:] = 2
        target = target.repeat_interleave(self.overfit_zoom, 1).repeat_interleave(self.overfit_zoom, 2)
        torch.manual_seed(1)
        x = torch.eye(3)[target].permute(0, 3, 1, 2)
        x = x + 0.1 * torch.randn(x.shape)
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
        for _ in range(self.overfit_steps):
            logits = network(x)
            miou = mean_iou(logits[0] if isinstance(logits, tuple) else logits, target)
            if miou > 0.95:
                return
            optimizer.zero_grad()
            with_auxiliary(cross_entropy_dice, logits, target, weight=0.4).backward()
            optimizer.step()
        pytest.fail(f"mIoU {miou:.3f} after {self.overfit_steps} steps")

    def test_it_trains_in_bfloat16(self):
        network = self.build(2).train()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(torch.rand(2, 3, 65, 97))
        assert logits.dtype == torch.bfloat16
        logits.float().square().mean().backward()
        assert all(p.grad.isfinite().all() for p in network.parameters())

    def test_a_saved_network_gives_the_same_logits(self):
        first, second = self.build(2).eval(), self.build(2).eval()
        with torch.no_grad():
            for parameter in second.parameters():
                parameter.zero_()
            second.load_state_dict(first.state_dict())
            x = torch.rand(1, 3, 65, 97)
            assert torch.equal(first(x), second(x))

    def test_folding_batch_norm_changes_no_logit_by_much(self):
        network = self.build(4).train()
        with torch.no_grad():
            network(torch.rand(4, 3, 65, 97))  # running statistics that are no identity
            network.eval()
            folded = fold_batch_norm(network, torch.rand(1, 3, 64, 64))
            x = torch.rand(1, 3, 65, 97)
            torch.testing.assert_close(folded(x), network(x), rtol=1e-3, atol=1e-3)
        before, left = (sum(isinstance(m, nn.BatchNorm2d) for m in n.modules()) for n in (network, folded))
        assert before > left == self.norms_left

    def test_packing_convolutions_changes_no_logit_by_much(self):
        network = self.build(4).eval()
        packed = pack_convolutions(network, torch.rand(1, 3, 64, 64))
        x = torch.rand(2, 3, 65, 97)
        with torch.no_grad():
            torch.testing.assert_close(packed(x), network(x), rtol=1e-3, atol=1e-3)
        convolutions = {name: module for name, module in packed.named_modules() if type(module) is nn.Conv2d}
        left = [name for name, module in convolutions.items() if module.weight.nbytes <= MOST_BYTES]
        assert not left or platform.machine() not in ("x86_64", "AMD64"), left

    def test_it_can_be_exported(self):
        network = self.build(2).eval()
        x = torch.rand(1, 3, 64, 96)
        program = torch.export.export(network, (x,))
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x), network(x))

    def test_it_compiles_to_one_graph(self):
        network = self.build(2).eval()
        x = torch.rand(1, 3, 64, 96)
        torch.compiler.reset()
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), network(x))

    def test_a_picture_too_small_is_named(self):
        network = self.build(2).eval()
        smallest_px = getattr(network, "smallest_px", 1)
        with torch.no_grad():
            assert network(torch.rand(1, 3, smallest_px, smallest_px)).shape[-2:] == (smallest_px, smallest_px)
            if smallest_px > 1:
                with pytest.raises(InputError, match=f"too small.*expected {smallest_px} px or more a side"):
                    network(torch.rand(1, 3, smallest_px, smallest_px - 1))


class AuxiliaryHeads:
    """The cases of a network that has `aux_heads` further heads with `aux_head=True`."""

    aux_heads: int

    def test_auxiliary_heads_speak_in_training_only(self):
        network = self.build(3, aux_head=True)
        x = torch.rand(2, 3, 65, 97)
        every = network.train()(x)
        assert [one.shape for one in every] == [(2, 3, 65, 97)] * (1 + self.aux_heads)
        for i in range(1, len(every)):
            assert not torch.equal(every[0], every[i])
        sum(one.square().mean() for one in every).backward()
        without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        assert not without, f"no gradient reaches {without}"
        with torch.no_grad():
            assert network.eval()(x).shape == (2, 3, 65, 97)


def count_parameters(model: str, num_classes: int = 21, **options: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(model, num_classes=num_classes, **options).parameters())


def mean_iou(logits: torch.Tensor, target: torch.Tensor) -> float:
    predicted = logits.detach().argmax(1)
    ious = [
        ((predicted == k) & (target == k)).sum() / ((predicted == k) | (target == k)).sum() for k in target.unique()
    ]
    return float(torch.stack(ious).mean())
