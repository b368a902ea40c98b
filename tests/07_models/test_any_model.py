"""Networks whose code is elsewhere train and are saved like ours, and a model string says which one is meant."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import InputError
from pipeline.labels import load_label_set
from pipeline.models import build_model, parse_model, portable
from pipeline.models.checkpoint import load_checkpoint, save_checkpoint
from pipeline.models.spec import ModelSpec
from pipeline.training.optimization.losses import cross_entropy_dice
from pipeline.training.optimization.parameter_groups import parameter_groups

SMP = "smp:Unet?encoder_name=resnet18&decoder_channels=[32,16,16,8,8]"


# ---- every one of them is a network like ours ------------------------------------------------------------------------


@pytest.fixture(params=["smp", "hf"])
def trainable(request: pytest.FixtureRequest) -> str:
    return SMP if request.param == "smp" else f"hf:{request.getfixturevalue('segformer')}"


def test_they_train_on_any_size_bands_and_classes(trainable: str) -> None:
    torch.manual_seed(0)
    network = build_model(trainable, num_classes=3, in_channels=5)
    with torch.no_grad():
        assert network.eval()(torch.rand(1, 5, 97, 131)).shape == (1, 3, 97, 131)
    network.train()
    cross_entropy_dice(network(torch.rand(2, 5, 64, 64)), torch.randint(0, 3, (2, 64, 64))).backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    rates = {group["base_rate"] for group in parameter_groups(network, 1.0, 0.3, 0.01)}
    assert rates == {1.0, 0.3}, "the backbone is not known as one"


def test_a_checkpoint_of_them_needs_nothing_else(trainable: str, segformer: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    if trainable.startswith("hf:"):
        shutil.copytree(segformer, source)
        trainable = f"hf:{source}"
    network = build_model(trainable, num_classes=2).eval()
    spec = ModelSpec(*portable(trainable, {"encoder_weights": "imagenet"}), load_label_set("roads"))
    save_checkpoint(str(tmp_path / "checkpoint"), network, spec)
    shutil.rmtree(source, ignore_errors=True)
    loaded, found = load_checkpoint(str(tmp_path / "checkpoint"))
    assert found == spec and str(tmp_path) not in (tmp_path / "checkpoint" / "model.json").read_text()
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))


# ---- model strings ---------------------------------------------------------------------------------------------------


def test_a_query_is_options_in_yaml() -> None:
    name, options = parse_model("smp:Unet?encoder_name=resnet18&encoder_depth=4&decoder_channels=[8,4]", {"a": 1})
    assert name == "smp:Unet"
    assert options == {"encoder_name": "resnet18", "encoder_depth": 4, "decoder_channels": [8, 4], "a": 1}
    assert parse_model("lightweight?output_stride=8", {"output_stride": 16}) == ("lightweight", {"output_stride": 16})
    assert build_model("lightweight?feature_enhancement=false", num_classes=2) is not None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("smp:Unett", "no network 'Unett'.*DeepLabV3.*did you mean 'Unet'"),
        ("smp:Unet?encoder_name=resnet19", "no encoder 'resnet19'.*did you mean 'resnet18'"),
        ("smp:Unet?encoder_nam=resnet18", "no option 'encoder_nam'.*did you mean 'encoder_name'"),
        ("smp:Unet?encoder_depth=9", "smp:Unet cannot be built.*depth"),
        ("smp:Unet?aux_params={}", "no option 'aux_params'"),
        ("smp:Unet?encoder_name", "wrong query; found encoder_name"),
        ("smp:Unet?decoder_channels=[1", "wrong query.*value in YAML"),
        ("lightweight?output_stride=4", "output_stride out of range"),
        ("smpp:Unet", "no model 'smpp:Unet'.*smp:NAME, hf:NAME, export:NAME"),
    ],
)
def test_bad_model_strings_are_named(model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model(model, num_classes=2)


@pytest.mark.parametrize(
    ("model", "library", "extra"),
    [("smp:Unet", "segmentation_models_pytorch", "smp"), ("hf:somewhere", "transformers", "huggingface")],
)
def test_a_missing_library_is_named(model: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"{library} is not installed.*pip install 'ray-segmentation\[{extra}\]'"):
        build_model(model, num_classes=2)
