"""One test for every network: a subclass of `Network` says how to build it small, and the same cases run on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline.errors import InputError
from pipeline.losses import cross_entropy_dice
from pipeline.models import MODELS, build_model
from pipeline.models.backbones import MobileNetV2, widen_first_convolution
from pipeline.models.fold import fold_batch_norm

TESTED: dict[str, type[Network]] = {}  # name in the table -> the class below


class Network:
    """The cases of one network; `name` and `options` build it."""

    name: str
    options: dict[str, Any] = {}
    size_mib: float | None = None  # float32 parameters at 21 classes, from the paper
    tolerance = 0.02  # of size_mib
    overfit_steps = 60

    def __init_subclass__(cls) -> None:
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
        network(torch.rand(2, 3, 65, 97)).square().mean().backward()
        without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        assert not without

    def test_one_batch_can_be_overfitted(self):
        network = self.build(3).train()
        target = torch.zeros(2, 64, 96, dtype=torch.long)
        target[0, 16:40, 24:72] = 1
        target[1, :, 60:] = 2
        torch.manual_seed(1)
        x = torch.eye(3)[target].permute(0, 3, 1, 2) + 0.1 * torch.randn(2, 3, 64, 96)
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
        for _ in range(self.overfit_steps):
            logits = network(x)
            if mean_iou(logits, target) > 0.95:
                return
            optimizer.zero_grad()
            cross_entropy_dice(logits, target).backward()
            optimizer.step()
        pytest.fail(f"mIoU {mean_iou(network(x), target):.3f} after {self.overfit_steps} steps")

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
        assert any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
        assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())

    def test_it_can_be_exported(self):
        network = self.build(2).eval()
        x = torch.rand(1, 3, 64, 96)
        program = torch.export.export(network, (x,))
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x), network(x))


class TestLightweight(Network):
    name = "lightweight"
    size_mib = 23.2


class TestTorchvision(Network):
    name = "torchvision:lraspp_mobilenet_v3_large"


@pytest.mark.parametrize("network", [n for n in TESTED.values() if n.size_mib is not None], ids=lambda n: n.name)
def test_size_is_the_papers(network):
    with torch.device("meta"):
        model = build_model(network.name, num_classes=21)
    found_mib = sum(p.numel() for p in model.parameters()) * 4 / 2**20
    assert found_mib == pytest.approx(network.size_mib, rel=network.tolerance)


def test_every_network_of_the_table_is_tested():
    assert set(MODELS) <= set(TESTED)


# ---- lightweight's structure -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_the_backbone_keeps_its_strides_up_to_the_output_stride(output_stride):
    backbone = MobileNetV2(output_stride=output_stride).eval()
    with torch.no_grad():
        features = backbone(torch.rand(1, 3, 128, 192))
    strides = [min(stride, output_stride) for stride in (2, 4, 8, 16, 32)]
    assert [f.shape[1:] for f in features] == [
        (c, 128 // s, 192 // s) for c, s in zip(backbone.channels, strides, strict=True)
    ]


def test_dilation_keeps_what_the_pretrained_weights_saw():
    """Every second pixel of the dilated network is the strided network's pixel (away from the borders)."""
    torch.manual_seed(0)
    strided = MobileNetV2(output_stride=32).eval()
    dilated = MobileNetV2(output_stride=8).eval()
    dilated.load_state_dict(strided.state_dict())
    x = torch.rand(1, 3, 576, 576)  # one deep pixel sees 491 of them
    with torch.no_grad():
        expected, found = strided(x)[-1], dilated(x)[-1][..., ::4, ::4]
    inner = (..., slice(8, 10), slice(8, 10))
    torch.testing.assert_close(found[inner], expected[inner], rtol=1e-3, atol=1e-4)


def test_the_ablation_without_feature_enhancement_is_smaller():
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in build_model("lightweight", num_classes=21, feature_enhancement=fe).parameters())
            for fe in (True, False)
        ]
    assert sizes[0] > sizes[1]


# ---- weights and bands -----------------------------------------------------------------------------------------------


def test_more_bands_keep_what_rgb_gave():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3))
    rgb = torch.rand(1, 3, 9, 9)
    expected = network(rgb)
    mean = network[0].weight.mean(dim=1)
    widen_first_convolution(network, 5)
    assert torch.equal(network(torch.cat([rgb, torch.zeros(1, 2, 9, 9)], dim=1)), expected)
    torch.testing.assert_close(network[0].weight[:, 4], mean)


@pytest.mark.parametrize("bands", [1, 2])
def test_fewer_bands_act_on_grey_as_rgb_did(bands):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3))
    grey = torch.rand(1, 1, 9, 9)
    expected = network(grey.expand(-1, 3, -1, -1))
    widen_first_convolution(network, bands)
    torch.testing.assert_close(network(grey.expand(-1, bands, -1, -1)), expected)


def test_imagenet_weights_reach_the_backbone_and_classify(data_dir, backbone_weights):
    """The real pictures beside the weights, by the backbone and the file's own classifier."""
    backbone = MobileNetV2(output_stride=32, last_conv=True, weights=str(backbone_weights)).eval()
    state = torch.load(backbone_weights, weights_only=True)
    names = (data_dir / "weights" / "imagenet_labels.txt").read_text().splitlines()[1:]
    expected = {
        "bird": "chickadee", "cat": "Egyptian cat", "dragonfly": "dragonfly",
        "hot_dog": "hotdog", "parrot": "macaw", "sunflower": "daisy",
    }  # fmt: skip
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for path in sorted((data_dir / "weights" / "check_images").iterdir()):
        picture = Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        x = (torch.from_numpy(np.array(picture)) / 255 - mean) / std
        with torch.no_grad():
            deep = backbone(x.permute(2, 0, 1)[None])[-1].mean(dim=(2, 3))[0]
        scores = state["classifier.1.weight"] @ deep + state["classifier.1.bias"]
        assert names[scores.argmax()].split(",")[0] == expected[path.stem]


def test_the_models_take_the_weights_by_option(backbone_weights):
    state = torch.load(backbone_weights, weights_only=True)
    network = build_model("lightweight", num_classes=4, in_channels=4, backbone_weights=str(backbone_weights))
    assert torch.equal(network.encoder.stages[0][0][0].weight[:, :3], state["features.0.0.weight"])
    assert torch.equal(network.encoder.stages[4][-1].conv[0][0].weight, state["features.17.conv.0.0.weight"])


def test_backbone_weights_of_a_torchvision_model(tmp_path):
    from torchvision import models

    torch.manual_seed(3)
    state = models.mobilenet_v3_large().state_dict()
    torch.save(state, tmp_path / "v3.pth")
    network = build_model(
        "torchvision:lraspp_mobilenet_v3_large", num_classes=4, backbone_weights=str(tmp_path / "v3.pth")
    )
    assert torch.equal(network.network.backbone["4"].block[0][0].weight, state["features.4.block.0.0.weight"])


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "lightwieght"}, "no model 'lightwieght'.*lightweight.*torchvision:NAME.*did you mean 'lightweight'"),
        ({"model": "torchvision:lraspp_mobilenet_v3"}, "did you mean 'lraspp_mobilenet_v3_large'"),
        ({"model": "smp:Unet"}, "no model 'smp:Unet'"),
        ({"model": "lightweight", "output_strid": 8}, "no option 'output_strid'.*did you mean 'output_stride'"),
        ({"model": "lightweight", "output_stride": 4}, "output_stride out of range; found 4; expected 8, 16 or 32"),
        ({"model": "lightweight", "rates": ()}, "rates out of range"),
        ({"model": "lightweight", "dropout": 1.0}, "dropout out of range"),
        ({"model": "lightweight", "num_classes": 0}, "at least one class"),
        ({"model": "lightweight", "backbone_weights": "nowhere.pth"}, "weights file does not exist: nowhere.pth"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        build_model(**{"num_classes": 2, **arguments})


def test_weights_of_another_network_are_named(tmp_path):
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"lacks \d+ of 314 keys.*features.0.0.weight"):
        build_model("lightweight", num_classes=2, backbone_weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_no_weights_is_named(tmp_path, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"no weights at all")
    with pytest.raises(InputError, match="cannot read weights file"):
        build_model("lightweight", num_classes=2, backbone_weights=str(path))


def mean_iou(logits: torch.Tensor, target: torch.Tensor) -> float:
    predicted = logits.detach().argmax(1)
    ious = [
        ((predicted == k) & (target == k)).sum() / ((predicted == k) | (target == k)).sum() for k in target.unique()
    ]
    return float(torch.stack(ious).mean())
