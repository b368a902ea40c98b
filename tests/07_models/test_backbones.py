"""Backbones: strides, dilation, weights from a file, any number of bands."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

from pipeline.errors import InputError
from pipeline.models import build_model
from pipeline.models.backbones import MobileNetV2, ResNet, widen_first_convolution


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("network", [MobileNetV2, ResNet])
def test_the_backbone_keeps_its_strides_up_to_the_output_stride(network, output_stride):
    with torch.device("meta"):
        backbone = network(output_stride=output_stride).eval()
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


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_weights_of_a_resnet_reach_the_backbone(tmp_path, name):
    """The backbone and the file's own classifier give what torchvision's network gives."""
    torch.manual_seed(3)
    network = models.get_model(name).eval()
    torch.save(network.state_dict(), tmp_path / "resnet.pth")
    backbone = ResNet(name, weights=str(tmp_path / "resnet.pth")).eval()
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(network.fc(backbone(x)[-1].mean(dim=(2, 3))), network(x))


@pytest.fixture(scope="module")
def vgg16_states():
    """State dicts of torchvision's VGG16 without and with batch norm; fc6 is one number, so the files stay small."""
    states = {}
    for name in ("vgg16", "vgg16_bn"):
        with torch.device("meta"):
            shapes = {key: value.shape for key, value in models.get_model(name).state_dict().items()}
        generator = torch.Generator().manual_seed(4)
        states[name] = {
            key: torch.full((1,), 0.01).expand(shape)
            if key.startswith("classifier")
            else torch.rand(shape, generator=generator) / 10
            for key, shape in shapes.items()
        }
        states[name]["classifier.0.bias"] = torch.rand(4096, generator=generator)
    return states


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_vgg16_fills_an_fcn_with_its_head(tmp_path, vgg16_states, name):
    state = vgg16_states[name]
    torch.save(state, tmp_path / "vgg.pth")
    network = build_model("fcn8s", num_classes=2, in_channels=4, backbone_weights=str(tmp_path / "vgg.pth"))
    convolutions = [m for m in network.encoder.stages.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.encoder.stages.modules() if isinstance(m, nn.BatchNorm2d)]
    kernels = [key for key, value in state.items() if key.endswith("weight") and value.ndim == 4]
    assert torch.equal(convolutions[0].weight[:, :3], state[kernels[0]])
    for convolution, kernel in zip(convolutions[1:], kernels[1:], strict=True):
        assert torch.equal(convolution.weight, state[kernel])
    assert torch.equal(network.encoder.fully_connected[0].bias, state["classifier.0.bias"])
    assert torch.equal(network.encoder.fully_connected[3].weight, torch.full((4096, 4096, 1, 1), 0.01))
    if name == "vgg16_bn":
        assert torch.equal(norms[-1].running_mean, state["features.41.running_mean"])
    else:  # the norms are the identity: what the plain network gave
        x = torch.rand(1, 4, 32, 32) / 100
        plain = build_model(
            "fpn_fcn", num_classes=2, in_channels=4, backbone="vgg16", batch_norm=False,
            backbone_weights=str(tmp_path / "vgg.pth"),
        )  # fmt: skip
        with torch.no_grad():
            found, expected = network.eval().encoder(x)[4], plain.eval().encoder(x)[4]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_weights_that_do_not_fit_a_vgg_are_named(tmp_path, vgg16_states):
    path = str(tmp_path / "vgg.pth")
    torch.save(vgg16_states["vgg16_bn"], path)
    with pytest.raises(InputError, match="with batch norm for a network without it.*vgg.pth.*option batch_norm"):
        build_model("attention_fcn", num_classes=2, batch_norm=False, backbone_weights=path)
    with pytest.raises(InputError, match="weights of VGG fit width 1 only; found width 0.25"):
        build_model("attention_fcn", num_classes=2, width="slim", backbone_weights=path)
    with pytest.raises(InputError, match="weights of another network"):
        build_model("fpn_fcn", num_classes=2, backbone_weights=path)  # VGG19


@pytest.mark.parametrize("model", ["pspnet", "deeplabv3plus", "multilevel_deeplab"])
def test_a_network_dilates_and_widens_the_resnet_it_loads(tmp_path, model):
    torch.manual_seed(3)
    state = models.resnet50().state_dict()
    torch.save(state, tmp_path / "resnet.pth")
    options = {"backbone": "resnet50", "backbone_weights": str(tmp_path / "resnet.pth")}
    network = build_model(model, num_classes=4, in_channels=5, **options)
    found = network.encoder.state_dict()
    assert torch.equal(found["stages.0.0.weight"][:, :3], state["conv1.weight"])
    assert torch.equal(found["stages.4.2.conv3.weight"], state["layer4.2.conv3.weight"])


def test_backbone_weights_of_a_torchvision_model(tmp_path):
    torch.manual_seed(3)
    state = models.mobilenet_v3_large().state_dict()
    torch.save(state, tmp_path / "v3.pth")
    network = build_model(
        "torchvision:lraspp_mobilenet_v3_large", num_classes=4, backbone_weights=str(tmp_path / "v3.pth")
    )
    assert torch.equal(network.network.backbone["4"].block[0][0].weight, state["features.4.block.0.0.weight"])
