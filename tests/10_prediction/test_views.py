"""Test-time augmentation, against its definition."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.prediction.views import Views


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 3, padding=1).eval()


def test_one_plain_view_changes_no_probability(network):
    x = torch.rand(2, 3, 9, 11)
    with torch.no_grad():
        torch.testing.assert_close(Views(network)(x).softmax(1), network(x).softmax(1))


def test_the_views_are_averaged_as_probabilities(network):
    x = torch.rand(2, 3, 9, 11)
    with torch.no_grad():
        half = functional.interpolate(x, size=(4, 6), mode="bilinear", align_corners=False)
        parts = []
        for seen in (x, half):
            for flipped in (False, True):
                p = network(seen.flip(3) if flipped else seen).softmax(1)
                p = functional.interpolate(p, size=(9, 11), mode="bilinear", align_corners=False)
                parts.append(p.flip(3) if flipped else p)
        found = Views(network, flip=True, scales=(1, 0.5))(x).softmax(1)
        torch.testing.assert_close(found, sum(parts) / 4)


def test_a_mirrored_picture_gives_the_mirrored_answer(network):
    x = torch.rand(1, 3, 8, 13)
    views = Views(network, flip=True)
    with torch.no_grad():
        torch.testing.assert_close(views(x.flip(3)), views(x).flip(3))


@pytest.mark.parametrize("scales", [(), (0.1,), (1, 9)])
def test_scales_out_of_range_are_named(network, scales):
    with pytest.raises(InputError, match="scales of the views out of range"):
        Views(network, scales=scales)
