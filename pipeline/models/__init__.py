"""Networks: built by name, described by a checkpoint.

In: a model string and options, or a checkpoint folder. Out: a torch module, N x B x H x W floats -> N x K x H x W
logits, and all that is needed to feed it.

Reading order:
    build          the table of networks, and building one by name
    networks/      one file per network
    blocks         what several networks share
    backbones/     torchvision's classification networks as lists of feature maps
    providers/     networks whose code is elsewhere: torchvision, smp, Hugging Face, torch.export
    weights_file   weights as people find them
    limits         the batch and picture sizes that a network can be fed
    spec           what a checkpoint says of its network (no torch needed)
    scene_input    bands and scaling: how a network is fed from raster scenes
    normalization  pixels of any type -> what a network is fed
    checkpoint     a network saved to a folder and loaded from it
"""

from pipeline.models.build import (
    MODELS,
    PROVIDERS,
    build_model,
    check_options,
    optional_library,
    output_channels,
    parse_model,
    portable,
    preprocessing,
    structure_options,
    weights_sha256,
)

__all__ = [
    "MODELS",
    "PROVIDERS",
    "build_model",
    "check_options",
    "optional_library",
    "output_channels",
    "parse_model",
    "portable",
    "preprocessing",
    "structure_options",
    "weights_sha256",
]
