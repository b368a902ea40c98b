"""Engines: what runs a network changes no class map, on any size and any kind of network."""

from __future__ import annotations

import dataclasses
import importlib.util
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.export import Dim

from pipeline.errors import InputError
from pipeline.labels import LabelSet
from pipeline.models import build_model
from pipeline.models.spec import ModelSpec
from pipeline.prediction import engines
from pipeline.prediction.predictor import Prediction, Predictor
from pipeline.runtime.options import parse
from pipeline.segment.config import SegmentConfig

LABELS = LabelSet("three", ("a", "b", "c"), ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
SPEC = ModelSpec("small", {}, LABELS)
SIZES = [(40, 64), (65, 97), (40, 64), (33, 32)]


class Small(nn.Module):
    """Convolutions, a batch norm and a bilinear way back up."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.head(self.body(x))
        return nn.functional.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)


class Branching(Small):
    """Takes another way where the width is odd, as a program that was traced once does not."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.shape[-1] % 2 else x.flip(1))


def pictures(sizes: Sequence[tuple[int, int]] = SIZES) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def assert_close(network: nn.Module, engine: str, spec: ModelSpec = SPEC, **options: Any) -> Predictor:
    """The engine's predictions beside the eager ones."""
    expected = Predictor(network, spec, device="cpu", **options).predict(pictures())
    predictor = Predictor(network, spec, device="cpu", engine=engine, **options)
    for found, eager in zip(predictor.predict(pictures()), expected, strict=True):
        assert isinstance(found, Prediction) and isinstance(eager, Prediction), (found, eager)
        assert (found.class_map == eager.class_map).mean() > 0.999  # last bits may turn a tie
        assert found.mean_confidence == pytest.approx(eager.mean_confidence, rel=1e-4)
    return predictor


def exported(folder: Path, fixed: bool) -> str:
    sides = None if fixed else ({2: Dim("h", min=32, max=512), 3: Dim("w", min=32, max=512)},)
    program = torch.export.export(Small().eval(), (torch.rand(1, 3, 48, 64),), dynamic_shapes=sides)
    torch.export.save(program, folder / "net.pt2")
    return f"export:{folder / 'net.pt2'}"


@pytest.mark.parametrize("options", [{}, {"flip": True, "scales": (1.0, 0.75)}, {"tile_px": 96, "overlap_px": 32}])
def test_onnx_gives_the_same_masks(options: dict[str, Any]) -> None:
    assert_close(Small().eval(), "onnx", **options)


@pytest.mark.parametrize(
    "case", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("crf", "hf")), "any size", "fixed size"]
)
def test_onnx_runs_networks_from_anywhere(case: str, segformer: Path, tmp_path: Path) -> None:
    if case == "crf":
        network = build_model("torchvision:lraspp_mobilenet_v3_large", num_classes=3, crf=True)
    elif case == "hf":
        network = build_model(f"hf:{segformer}", num_classes=3)
    else:
        network = build_model(exported(tmp_path, fixed=case == "fixed size"), num_classes=3)
    assert_close(network.eval(), "onnx")


def test_a_network_that_looks_at_its_size_is_exported_for_each() -> None:
    assert_close(Branching().eval(), "onnx")


def test_beyond_so_many_sizes_a_network_runs_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each size that is prepared costs seconds: here one export for each, of which there are to be no more than two."""
    monkeypatch.setattr(engines, "MOST_SHAPES", 2)
    exports: list[tuple[int, ...]] = []
    export = engines._exported

    def counted(network: nn.Module, shape: tuple[int, ...], *, any_size: bool) -> engines.Network:
        exports.append(shape)
        return export(network, shape, any_size=any_size)

    monkeypatch.setattr(engines, "_exported", counted)
    predictor = assert_close(Branching().eval(), "onnx")
    predictor.predict(pictures())
    assert [shape[2:] for shape in exports[1:]] == [(40, 64), (65, 97)]  # the first was for any size


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_picture_gives_the_same_mask_in_any_company(threads: int) -> None:
    predictor = Predictor(Small().eval(), SPEC, device="cpu", engine="onnx", threads=threads, batch_size=2)
    together = predictor.predict(pictures())
    for picture, prediction in zip(pictures(), together, strict=True):
        (alone,) = predictor.predict([picture])
        assert isinstance(alone, Prediction) and isinstance(prediction, Prediction)
        for field in dataclasses.fields(Prediction):
            np.testing.assert_array_equal(getattr(alone, field.name), getattr(prediction, field.name))
    torch.set_num_threads(1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("case", ["small", "views", "crf", "hf", "fixed size"])
def test_compiled_gives_the_same_masks(case: str, segformer: Path, tmp_path: Path) -> None:
    network: nn.Module = Small()
    if case == "crf":
        network = build_model("torchvision:lraspp_mobilenet_v3_large", num_classes=3, crf=True)
    elif case == "hf":
        network = build_model(f"hf:{segformer}", num_classes=3)
    elif case == "fixed size":
        network = build_model(exported(tmp_path, fixed=True), num_classes=3)
    before = counters["inductor"]["mkldnn_conv_weight_pack_matcher_count"]
    assert_close(network.eval(), "compiled", **({"flip": True} if case == "views" else {}))
    if case == "small" and platform.machine() == "x86_64":
        packed = counters["inductor"]["mkldnn_conv_weight_pack_matcher_count"] - before
        assert packed >= 2, "the weights of its convolutions were inputs of the compiled code, not parts of it"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--engine", "onxx"], "--engine: no 'onxx'; expected eager, compiled, onnx; did you mean 'onnx'"),
        (["--engine", "onnx", "--device", "cuda"], "--engine onnx runs on CPUs only; found --device cuda"),
        (["--engine", "compiled", "--precision", "bfloat16"], "--engine compiled computes in float32 only"),
    ],
)
def test_what_does_not_go_is_one_line(flags: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(SegmentConfig, ["--source", "s", "--checkpoint", "c", "--output", "o", *flags])


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    with pytest.raises(InputError, match=r"onnxruntime is not installed; install it with: pip install 'ray-segm.*onnx"):
        SegmentConfig("s", "c", "o", engine="onnx")
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler.*apt-get install g\+\+"):
        SegmentConfig("s", "c", "o", engine="compiled")
