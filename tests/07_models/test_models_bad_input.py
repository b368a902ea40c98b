"""Bad input of a network: names, options and weights files that are none."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import InputError
from pipeline.models import build_model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "lightwieght"}, "no model 'lightwieght'.*lightweight.*torchvision:NAME.*did you mean 'lightweight'"),
        ({"model": "torchvision:lraspp_mobilenet_v3"}, "did you mean 'lraspp_mobilenet_v3_large'"),
        ({"model": "smpp:Unet"}, "no model 'smpp:Unet'.*did you mean 'smp'"),
        ({"model": "lightweight", "output_strid": 8}, "no option 'output_strid'.*did you mean 'output_stride'"),
        ({"model": "lightweight", "crf": "no"}, "option crf of model 'lightweight' is out of range; found no"),
        ({"model": "lightweight", "cfr": True}, "no option 'cfr'.*did you mean 'crf'"),
        ({"model": "lightweight", "output_stride": 4}, "output_stride out of range; found 4; expected 8, 16 or 32"),
        ({"model": "lightweight", "rates": ()}, "rates out of range"),
        ({"model": "multilevel_deeplab", "rates": (6, 12)}, "rates out of range.*expected three integers from 1 up"),
        ({"model": "multilevel_deeplab", "channels": 0}, "channels out of range; found 0; expected 1 or more"),
        ({"model": "multilevel_deeplab", "global_pooling": "deeper"}, "no global_pooling 'deeper'.*mean 'deep'"),
        ({"model": "multilevel_deeplab", "fusion": "sum"}, "no fusion 'sum'; expected add, concat, gated"),
        ({"model": "multilevel_deeplab", "backbone": "resnet11"}, "no backbone 'resnet11'.*did you mean 'resnet1"),
        ({"model": "deeplabv3plus", "rates": (0, 6)}, "rates out of range.*expected one or more integers from 1 up"),
        ({"model": "pspnet", "bins": ()}, "bins out of range"),
        ({"model": "bisenet", "backbone": "resnet19"}, "no backbone 'resnet19'.*did you mean 'resnet1"),
        ({"model": "espnetv2", "width": 0.75}, "width out of range; found 0.75; expected 0.5, 1.0, 1.25, 1.5, 2.0"),
        ({"model": "espnetv2", "backbone_weights": "imagenet"}, "torchvision has no ImageNet weights of ESPNetv2"),
        ({"model": "lightweight", "dropout": 1.0}, "dropout out of range"),
        ({"model": "fcn8s", "width": 0}, "width out of range; found 0; expected above 0, at most 4"),
        ({"model": "fcn8s", "dropout": 1}, "dropout out of range"),
        ({"model": "fpn_fcn", "backbone": "vgg11"}, "no backbone 'vgg11' for fpn_fcn; expected vgg19, vgg16"),
        ({"model": "attention_fcn", "width": "slimmer"}, 'width out of range; found slimmer.*or "slim"'),
        (
            {"model": "unet", "encoder": "vgg61"},
            "no encoder 'vgg61' for unet; expected plain, vgg16; did you",
        ),
        ({"model": "unet", "padding": 0}, "no padding 0 for unet; expected same, valid"),
        ({"model": "unet", "backbone_weights": "vgg16.pth"}, "plain encoder of unet has no weights.*encoder to vgg16"),
        ({"model": "attention_fcn", "reduction": 0}, "reduction out of range"),
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
