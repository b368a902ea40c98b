"""Convolutions packed for oneDNN: what they gave before, of any geometry, with nothing of the network changed."""

from __future__ import annotations

import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pipeline.labels import LabelSet
from pipeline.models import build_model
from pipeline.models.spec import ModelSpec
from pipeline.prediction.packing import PackedConv2d, pack_convolutions
from pipeline.prediction.predictor import Predictor

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available(),
    reason="convolutions are packed on x86 processors alone",
)


def packed_in(model: nn.Module) -> int:
    return sum(isinstance(module, PackedConv2d) for module in model.modules())


@settings(max_examples=60, deadline=None)
@given(
    channels=st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 4)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 3),
    padding=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    dilation=st.integers(1, 3),
    bias=st.booleans(),
    size=st.tuples(st.integers(1, 3), st.integers(13, 40), st.integers(13, 40)),
)
def test_a_packed_convolution_gives_the_same(channels, kernel, stride, padding, dilation, bias, size) -> None:
    """Also for sizes and batches other than the example's."""
    into, out, groups = channels
    convolution = nn.Conv2d(into * groups, out * groups, kernel, stride, padding, dilation, groups, bias).eval()
    packed = pack_convolutions(nn.Sequential(convolution), torch.rand(1, into * groups, 16, 16))
    assert packed_in(packed) == 1
    x = torch.rand(size[0], into * groups, *size[1:])
    for given_x in (x, x.contiguous(memory_format=torch.channels_last)):
        with torch.inference_mode():
            torch.testing.assert_close(packed(given_x), convolution(given_x), rtol=1e-4, atol=1e-5)


def test_a_network_is_packed_whole_and_left_as_it_was() -> None:
    model = build_model("lightweight", num_classes=5).eval()
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    packed = pack_convolutions(model, torch.rand(1, 3, 64, 64))
    assert packed_in(packed) == convolutions and packed_in(model) == 0
    shared = {id(parameter) for parameter in model.parameters()}
    assert all(id(parameter) in shared for parameter in packed.parameters())


class OfItsOwnKind(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def watched() -> nn.Conv2d:
    convolution = nn.Conv2d(3, 4, 3)
    convolution.register_forward_hook(lambda module, inputs, output: output * 2)
    return convolution


@pytest.mark.parametrize(
    "make",
    [
        lambda: OfItsOwnKind(3, 4, 3),
        watched,
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        lambda: nn.Conv2d(3, 4, 3, padding="same"),
        lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
        lambda: nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)),
    ],
    ids=["subclass", "hook", "reflect", "same", "parametrized", "spectral"],
)
def test_what_is_more_than_a_convolution_runs_as_it_is(make) -> None:
    model = nn.Sequential(make()).eval()
    x = torch.rand(1, 3, 20, 24)
    packed = pack_convolutions(model, x)
    assert packed_in(packed) == 0
    torch.testing.assert_close(packed(x), model(x))


def test_no_answer_depends_on_what_was_seen_before() -> None:
    """Packed again for each shape and number of threads, and back: bit by bit the same."""
    packed = pack_convolutions(build_model("lightweight", num_classes=5).eval(), torch.rand(1, 3, 64, 64))
    torch.manual_seed(0)
    first, other = torch.rand(1, 3, 96, 128), torch.rand(2, 3, 64, 80)
    threads = torch.get_num_threads()
    with torch.inference_mode():
        expected = packed(first)
        packed(other)
        torch.set_num_threads(2 if threads == 1 else 1)
        packed(first)
        torch.set_num_threads(threads)
        assert torch.equal(packed(first), expected)


@pytest.mark.parametrize(("precision", "is_packed"), [("float32", True), ("bfloat16", False)])
def test_a_predictor_packs_in_float32(precision: str, is_packed: bool) -> None:
    spec = ModelSpec("net", {}, LabelSet("two", ("a", "b"), ((0, 0, 0), (1, 1, 1))))
    network = nn.Sequential(nn.Conv2d(3, 2, 1))
    predictor = Predictor(network, spec, device="cpu", precision=precision)
    assert bool(packed_in(predictor.model)) is is_packed  # type: ignore[arg-type]
