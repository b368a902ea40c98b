"""The table of networks: each is put through the cases of all, and is as large as its paper says."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from network_contract import TESTED, count_parameters

from pipeline.models import MODELS


@dataclass(frozen=True)
class Size:
    """Parameters at 21 classes as a paper gives them."""

    model: str
    options: dict[str, Any]
    parameters: float
    tolerance: float  # share


MIB = 2**20 / 4  # float32 parameters

SIZES = [  # as the papers print them
    Size("lightweight", {}, 23.2 * MIB, 0.02),
    Size("pspnet", {}, 178 * MIB, 0.03),
    Size("fcn8s", {"slim_head": True}, 91.3 * MIB, 0.03),
    Size("unet", {"encoder": "vgg16"}, 94.9 * MIB, 0.03),
    Size("attention_fcn", {"width": "slim"}, 1.63e6, 0.03),
]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size.model}{size.options or ''}")
def test_size_is_the_papers(size):
    assert count_parameters(size.model, **size.options) == pytest.approx(size.parameters, rel=size.tolerance)


def test_every_network_of_the_table_is_tested():
    for file in Path(__file__).parent.glob("test_08_*.py"):
        importlib.import_module(file.stem)  # enters its subclasses of `Network` in TESTED
    assert set(MODELS) <= set(TESTED)
