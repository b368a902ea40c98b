"""ResNet as a backbone (He et al. 2016, "Deep Residual Learning for Image Recognition"; torchvision's v1.5 variant)."""

from __future__ import annotations

from torch import nn

from pipeline.errors import InputError, nearest
from pipeline.models.backbones.staged import StagedBackbone
from pipeline.models.backbones.weights import classifier

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


class ResNet(StagedBackbone):
    """ResNet without pooling and classifier: N x B x H x W -> [C1, C2, C3, C4, C5].

    C1 is the stem before its max pooling. Channels 64, 256, 512, 1024, 2048 (ResNet-18 and -34: 64, 64, 128, 256, 512),
    `channels` lists them. `output_stride` 8 or 16 dilates the last stages (torchvision's
    `replace_stride_with_dilation`, which its basic blocks of ResNet-18 and -34 do not have: InputError).
    """

    def __init__(
        self, name: str = "resnet50", in_channels: int = 3, *, output_stride: int = 32, weights: str | None = None
    ) -> None:
        if name not in RESNETS:
            raise InputError(f"no backbone {name!r}", expected=", ".join(RESNETS), todo=nearest(name, RESNETS) or None)
        basic = name in ("resnet18", "resnet34")
        if output_stride not in ((32,) if basic else (8, 16, 32)):
            raise InputError(
                f"output_stride of {name} out of range",
                found=output_stride,
                expected="32" if basic else "8, 16 or 32",
            )
        dilated = [False, output_stride <= 8, output_stride <= 16]
        options = {} if basic else {"replace_stride_with_dilation": dilated}
        network = classifier(name, weights, in_channels, **options)
        super().__init__(
            [
                nn.Sequential(network.conv1, network.bn1, network.relu),
                nn.Sequential(network.maxpool, network.layer1),
                network.layer2,
                network.layer3,
                network.layer4,
            ],
            channels=(64, 64, 128, 256, 512) if basic else (64, 256, 512, 1024, 2048),
        )
