"""Networks for real time: BiSeNet, ESPNetv2, and torchvision's LR-ASPP."""

from __future__ import annotations

import torch
from convolutions import behind_the_encoder
from network_contract import AuxiliaryHeads, Network
from torch import nn

from pipeline.models import build_model
from pipeline.models.networks.espnetv2 import EESP


class TestBiSeNet(AuxiliaryHeads, Network):
    name = "bisenet"
    aux_heads = 2

    def test_the_spatial_path_stands_beside_the_encoder(self):
        spatial = [one for one in behind_the_encoder(self.build()) if not one.levels]
        assert [one.size for one in spatial] == [(64, 96), (32, 48), (16, 24), (16, 24)]
        assert [one.channels for one in spatial] == [64, 64, 64, 128]

    def test_attention_refines_the_last_two_stages(self):
        pooled = [one for one in behind_the_encoder(self.build()) if one.size == (1, 1)]
        assert sorted((one.levels, one.channels) for one in pooled) == [
            (("C4",), 128),  # refinement at stride 16
            (("C4", "C5"), 64),  # the fusion's two
            (("C4", "C5"), 256),
            (("C5",), 128),  # refinement at stride 32, and the global average
            (("C5",), 128),
        ]


class TestESPNetV2(AuxiliaryHeads, Network):
    name = "espnetv2"
    options = {"width": 0.5, "dropout": 0.0}
    aux_heads = 1
    norms_left = 3 + 3 + 7 + 1  # one a unit, on the hierarchical sum

    def test_every_3x3_is_depthwise_but_the_stem_and_the_pictures(self):
        network = self.build(in_channels=5)
        wide = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        dense = [(m.in_channels, m.out_channels) for m in wide if m.groups != m.in_channels]
        assert dense == [(5, 16), *[(5, 5)] * 3]
        dilations = [m.dilation[0] for m in wide if m.groups == m.in_channels]
        units_8, units_16 = [1, 2, 3, 4], [1, 1, 2, 3]
        assert dilations == [*units_8 * 2, *units_8 * 3, *units_8, *units_16 * 7, *units_16, *[1] * 4]

    def test_each_branch_is_added_to_the_next(self):
        unit = EESP(16, 32, rates=(1, 2, 3, 4)).eval()
        made, merged = [], []
        for branch in unit.branches:
            branch.register_forward_hook(lambda module, inputs, output: made.append(output))
        unit.activate.register_forward_pre_hook(lambda module, inputs: merged.append(inputs[0]))
        with torch.no_grad():
            unit(torch.rand(1, 16, 20, 20))
        torch.testing.assert_close(merged[0], torch.stack(made).cumsum(0).transpose(0, 1).flatten(1, 2))

    def test_it_takes_weights_of_its_encoder(self, tmp_path):
        state = self.build().encoder.state_dict()
        torch.save(state, tmp_path / "encoder.pth")
        torch.manual_seed(5)
        network = build_model(self.name, num_classes=2, **self.options, backbone_weights=str(tmp_path / "encoder.pth"))
        assert all(torch.equal(value, state[key]) for key, value in network.encoder.state_dict().items())


class TestTorchvision(Network):
    name = "torchvision:lraspp_mobilenet_v3_large"
