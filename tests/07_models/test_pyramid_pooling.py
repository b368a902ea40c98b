"""Networks that pool the deepest features at several scales: the DeepLabs and PSPNet."""

from __future__ import annotations

import pytest
import torch
from convolutions import behind_the_encoder
from network_contract import AuxiliaryHeads, Network, count_parameters

from pipeline.models import build_model


class TestLightweight(Network):
    name = "lightweight"

    def test_without_feature_enhancement_it_is_smaller(self):
        assert count_parameters("lightweight", feature_enhancement=False) < count_parameters("lightweight")

    @pytest.mark.slow
    def test_inductor_compiles_it(self):
        network = self.build(2).eval()
        x = torch.rand(1, 3, 64, 96)
        with torch.no_grad():
            torch.testing.assert_close(torch.compile(network, fullgraph=True)(x), network(x), rtol=1e-3, atol=1e-4)


class TestMultilevelDeepLab(Network):
    name = "multilevel_deeplab"
    options = {"backbone": "mobilenet_v2", "channels": 32}

    @pytest.mark.parametrize("rates", [(6, 12, 18), (2, 3, 5)])
    def test_each_branch_reads_a_level_of_its_own(self, rates):
        pyramid = behind_the_encoder(self.build(rates=rates))[:4]
        assert {one.levels: (one.kernel, one.dilation) for one in pyramid} == {
            ("C5",): (1, 1),
            ("C4",): (3, rates[0]),
            ("C3",): (3, rates[1]),
            ("C2",): (3, rates[2]),
        }
        assert {one.size for one in pyramid} == {(8, 12)}

    @pytest.mark.parametrize("fusion", ["add", "concat", "gated"])
    def test_the_decoder_carries_depth_into_every_level(self, fusion):
        every = ("C2", "C3", "C4", "C5")
        convolutions = behind_the_encoder(self.build(fusion=fusion))
        projected = next(i for i, one in enumerate(convolutions) if one.levels == every)
        decoder = convolutions[projected + 1 : -1]  # without the head
        laterals = [(one.levels[0], one.size) for one in decoder if one.levels != every]
        refined = [one.size for one in decoder if one.levels == every and one.kernel == 3]
        assert laterals == [("C4", (8, 12)), ("C3", (16, 24)), ("C2", (32, 48))]
        assert refined == [(8, 12), (16, 24), (32, 48)]

    @pytest.mark.parametrize(
        ("pooling", "levels"), [("none", []), ("deep", ["C5"]), ("every_level", ["C2", "C3", "C4", "C5"])]
    )
    def test_global_pooling_reads_what_is_asked(self, pooling, levels):
        pooled = [one for one in behind_the_encoder(self.build(global_pooling=pooling)) if one.size == (1, 1)]
        assert [one.levels for one in pooled] == [(level,) for level in levels]

    def test_its_ablations_differ_in_what_they_say(self):
        parameters = {fusion: count_parameters(self.name, fusion=fusion) for fusion in ("add", "concat", "gated")}
        norms = 3 * (2 * 256 - 256)  # batch norm has two parameters a channel, the gate's bias one
        assert parameters["concat"] - parameters["gated"] == norms
        assert parameters["concat"] - parameters["add"] == 3 * (2 * 256 * 256 + 2 * 256)

    @pytest.mark.slow
    @pytest.mark.parametrize("backbone", ["resnet101", "resnet50"])
    def test_a_resnet_at_full_width_gives_logits(self, backbone):
        network = self.build(backbone=backbone, channels=256).eval()
        with torch.no_grad():
            assert network(torch.rand(1, 3, 97, 131)).shape == (1, 21, 97, 131)


class TestDeepLabV3Plus(Network):
    name = "deeplabv3plus"
    options = {"backbone": "mobilenet_v2"}

    @pytest.mark.parametrize("rates", [(6, 12, 18), (6, 8, 12)])
    def test_the_atrous_convolutions_are_depthwise_separable(self, rates):
        convolutions = behind_the_encoder(self.build(rates=rates))
        depthwise = [i for i, one in enumerate(convolutions) if one.kernel == 3 and one.levels == ("C5",)]
        assert [convolutions[i].dilation for i in depthwise] == list(rates)
        assert {(convolutions[i].groups, convolutions[i].channels) for i in depthwise} == {(320, 320)}
        pointwise = [convolutions[i + 1] for i in depthwise]
        assert {(one.kernel, one.groups, one.channels, one.levels) for one in pointwise} == {(1, 1, 256, ("C5",))}

    def test_the_decoder_adds_48_channels_at_stride_4(self):
        convolutions = behind_the_encoder(self.build())
        (low_level,) = [one for one in convolutions if one.levels == ("C2",)]
        assert (low_level.kernel, low_level.channels, low_level.size) == (1, 48, (32, 48))
        after = [one for one in convolutions if one.levels == ("C2", "C5")]
        assert after[0].groups == 256 + 48
        assert {one.size for one in after} == {(32, 48)}


class TestPSPNet(AuxiliaryHeads, Network):
    name = "pspnet"
    options = {"backbone": "mobilenet_v2"}
    aux_heads = 1

    @pytest.mark.parametrize("bins", [(1, 2, 3, 6), (1, 4)])
    def test_the_pyramid_has_its_bins(self, bins):
        *pyramid, head, last = behind_the_encoder(self.build(bins=bins))
        assert [one.size for one in pyramid] == [(side, side) for side in bins]
        assert {(one.levels, one.kernel, one.channels) for one in pyramid} == {(("C5",), 1, 320 // len(bins))}
        assert (head.size, last.size) == ((16, 24), (16, 24))  # output stride 8

    @pytest.mark.slow
    def test_the_whole_network_gives_logits(self):
        network = build_model("pspnet", num_classes=21).eval()
        with torch.no_grad():
            assert network(torch.rand(1, 3, 97, 131)).shape == (1, 21, 97, 131)
