"""Backbones: torchvision's classification networks as a list of feature maps, never copies of their code.

C1..C5 are the stages at strides 2, 4, 8, 16, 32; beyond `output_stride` a stage keeps its resolution and its
convolutions are dilated instead, so that pretrained weights see the same neighbours as before. Weights are `None`
(random), `"imagenet"` (torchvision's weight enum, which downloads) or the path or URI of a state dict of torchvision's
class.
"""

from pipeline.models.backbones.choice import BACKBONES, build_backbone
from pipeline.models.backbones.mobilenet_v2 import MobileNetV2
from pipeline.models.backbones.resnet import ResNet
from pipeline.models.backbones.vgg import VGG
from pipeline.models.backbones.weights import load_weights, widen_first_convolution

__all__ = [
    "BACKBONES",
    "VGG",
    "MobileNetV2",
    "ResNet",
    "build_backbone",
    "load_weights",
    "widen_first_convolution",
]
