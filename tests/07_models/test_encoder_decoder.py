"""Networks whose decoder mirrors their encoder: SegNet and U-Net."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from convolutions import behind_the_encoder
from network_contract import Network
from torch import nn
from torch.nn import functional

from pipeline.models.networks.unet import mirror


class TestSegNet(Network):
    name = "segnet"
    options = {"width": 0.125}

    def test_what_was_pooled_goes_back_to_where_it_stood(self):
        """Behind each unpooling only the places of the maxima are not 0, and there the maxima stand."""
        network = self.build(3).eval()
        pooled: list[torch.Tensor] = []
        unpooled: list[torch.Tensor] = []
        for stage in network.encoder.stages:
            stage.register_forward_hook(lambda module, inputs, output: pooled.append(output))
        for level in network.decoder:
            level.register_forward_pre_hook(lambda module, inputs: unpooled.append(inputs[0]))
        with torch.no_grad():
            network(torch.rand(1, 3, 64, 96))
        assert [one.shape for one in reversed(unpooled)] == [one.shape for one in pooled]
        for before, after in zip(pooled, reversed(unpooled), strict=True):
            _, places = torch.nn.functional.max_pool2d(before, 2, return_indices=True)
            elsewhere = torch.ones_like(before).flatten(2).scatter(2, places.flatten(2), 0.0).bool()
            assert not after.flatten(2)[elsewhere].any() and after.any()

    def test_the_decoder_mirrors_vgg16(self):
        levels = self.build(width=1.0).decoder
        assert [len(level) for level in levels] == [3, 3, 3, 2, 1]
        assert [level[-1][0].out_channels for level in levels] == [512, 256, 128, 64, 64]


class TestUNet(Network):
    name = "unet"
    options = {"width": 0.125}

    def test_each_level_concatenates_the_copy_of_its_size(self):
        calls = behind_the_encoder(self.build())
        every = ["C1", "C2", "C3", "C4", "C5"]
        assert [(one.levels, one.kernel, one.size, one.channels) for one in calls[:-1]] == [
            (tuple(every[i:]), 3, (128 >> i, 192 >> i), 8 << i) for i in (3, 3, 2, 2, 1, 1, 0, 0)
        ]

    @pytest.mark.parametrize(("encoder", "channels"), [("plain", [64, 128, 256, 512, 1024]), ("vgg16", [512] * 5)])
    def test_channels_double_on_the_way_down(self, encoder, channels):
        network = self.build(encoder=encoder, width=1.0)
        expected = [min(channel, 64 << i) for i, channel in enumerate(channels)]
        stages = [[m.out_channels for m in stage if isinstance(m, nn.Conv2d)] for stage in network.encoder.stages]
        assert [stage[-1] for stage in stages] == expected
        assert [len(stage) for stage in stages] == ([2] * 5 if encoder == "plain" else [2, 2, 3, 3, 3])

    @pytest.mark.parametrize("encoder", ["plain", "vgg16"])
    def test_without_padding_it_sees_what_it_saw_with_it(self, encoder):
        """Far from the borders, where both pool the same pixels together."""
        options = {"encoder": encoder, "width": 0.0625}
        same, valid = self.build(2, **options).eval(), self.build(2, **options, padding="valid").eval()
        x = torch.rand(1, 3, 288, 288)
        shift = 14  # the decoder takes 30 px off the deepest map, which so begins 30 px, or 14, before the picture
        with torch.no_grad():
            expected = same(functional.pad(x, (shift, 0, shift, 0)))[..., shift:, shift:]
            middle = (..., slice(136, 152), slice(136, 152))
            torch.testing.assert_close(valid(x)[middle], expected[middle], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("encoder", "padding"), [("plain", "valid"), ("vgg16", "same"), ("vgg16", "valid")])
    @pytest.mark.parametrize("size", [(1, 1), (97, 131)])
    def test_every_kind_covers_the_picture(self, encoder, padding, size):
        network = self.build(encoder=encoder, padding=padding, width=0.0625).eval()
        with torch.no_grad():
            assert network(torch.rand(1, 3, *size)).shape == (1, 21, *size)

    @pytest.mark.parametrize(("size_px", "before_px", "after_px"), [(1, 2, 3), (2, 5, 4), (7, 3, 6), (7, 20, 15)])
    def test_borders_are_mirrored(self, size_px, before_px, after_px):
        expected = np.pad(np.arange(size_px), (before_px, after_px), mode="reflect")
        assert mirror(size_px, before_px, after_px, torch.device("cpu")).tolist() == expected.tolist()


@pytest.mark.slow
class TestUNetValid(Network):
    name = "unet"
    options = {"width": 0.125, "padding": "valid"}


@pytest.mark.slow
class TestUNetOnVGG16(Network):
    name = "unet"
    options = {"width": 0.125, "encoder": "vgg16"}
