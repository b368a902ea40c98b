"""Weights as people find them: entries, prefixes, other objects beside the tensors."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.models import build_model
from pipeline.models.weights_file import read_state_dict

NETWORK = {"num_classes": 3, "width": 0.1}


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A classifier's state dict as torchvision has it, of MobileNetV2."""
    from torchvision.models import mobilenet_v2

    torch.manual_seed(7)
    return mobilenet_v2(weights=None).state_dict()


def backbone_of(file: Path) -> dict[str, torch.Tensor]:
    """What a DeepLab's backbone holds after loading a file."""
    built = build_model("deeplabv3plus", num_classes=3, backbone="mobilenet_v2", backbone_weights=str(file))
    return {key: value for key, value in built.state_dict().items() if key.startswith("backbone.")}


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> OrderedDict[str, torch.Tensor]:
    return OrderedDict((prefix + key, value) for key, value in state.items())


OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "net.", "_orig_mod.", "module.model."])
@pytest.mark.parametrize("entry", [None, "model", "state_dict", "model_state_dict", "state_dict_ema", "network"])
def test_the_entry_is_found_and_prefixes_are_taken_off(
    state: dict[str, torch.Tensor], prefix: str, entry: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, given = tmp_path / "found.pth", prefixed(state, prefix)
    torch.save(given if entry is None else {entry: given, "epoch": 9, "optimizer": OPTIMIZER, "best": 0.7}, file)
    torch.save(state, tmp_path / "plain.pth")
    expected, found = backbone_of(tmp_path / "plain.pth"), backbone_of(file)
    assert expected.keys() == found.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    said = capsys.readouterr().err
    assert (f"the entry {entry!r}" in said) == (entry is not None)
    assert (f"without its prefix {prefix!r}" in said) == bool(prefix)


def test_an_old_file_and_safetensors(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.save({"state_dict": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(dict(state), tmp_path / "new.safetensors", metadata={"format": "pt"})
    for name in ("old.pth", "new.safetensors"):
        assert read_state_dict(str(tmp_path / name)).keys() == state.keys()


def test_of_two_candidates_one_is_chosen(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = str(tmp_path / "two.pth")
    ema = {key: value + 1 if value.is_floating_point() else value for key, value in state.items()}
    torch.save({"model": state, "model_ema": {"module": ema, "decay": 0.9}, "epoch": 3}, file)
    with pytest.raises(InputError, match="several state dicts.*model, model_ema.module.*--weights-key model"):
        read_state_dict(file)
    with pytest.raises(InputError, match="no state dict 'modle'.*did you mean 'model'"):
        read_state_dict(file, key="modle")
    key = "features.0.0.weight"
    assert torch.equal(read_state_dict(file, key="model_ema.module")[key], state[key] + 1)
    assert torch.equal(read_state_dict(file, key="model")[key], state[key])


class Enum:
    """Somebody's own class."""


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"args": argparse.Namespace(lr=0.1)}, "argparse.Namespace"),
        ({"miou": np.float64(0.5)}, "numpy"),
        ({"config": Enum()}, "Enum"),
    ],
)
def test_other_objects_are_named_with_the_line_that_mends_it(
    state: dict[str, torch.Tensor], beside: dict[str, Any], named: str, tmp_path: Path
) -> None:
    """The line is run as it stands: it leaves a file that is read."""
    file = tmp_path / "args.pth"
    torch.save({"model": state, **beside}, file)
    with pytest.raises(InputError, match="other objects beside the tensors") as error:
        read_state_dict(str(file))
    text = str(error.value)
    assert named in text and "\n" not in text
    line = re.search(r'python -c "(.*)"', text)
    assert line is not None
    command = f"import sys; sys.path.append({str(Path(__file__).parent)!r}); {line[1]}"  # where `Enum` is found
    subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
    assert read_state_dict(str(tmp_path / "plain.pth")).keys() == state.keys()


def test_a_whole_network_and_a_program_say_what_they_are(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    torch.save(network, tmp_path / "whole.pth")
    with pytest.raises(InputError, match=r"a whole pickled network.*Conv2d.*\.state_dict\(\)"):
        read_state_dict(str(tmp_path / "whole.pth"))
    torch.jit.save(torch.jit.script(network), tmp_path / "script.pt")
    with pytest.raises(InputError, match=r"a TorchScript program.*torch\.jit\.load"):
        read_state_dict(str(tmp_path / "script.pt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "history": [1.0]}, "holds no state dict.*epoch: int, history: list"),
        ([1, 2], "holds no state dict.*found list"),
        (None, "cannot read weights file"),
    ],
)
def test_files_without_weights(content: object, message: str, tmp_path: Path) -> None:
    file = tmp_path / "none.pth"
    if content is None:
        file.write_bytes(b"not a file of torch")
    else:
        torch.save(content, file)
    with pytest.raises(InputError, match=message):
        read_state_dict(str(file))
    with pytest.raises(InputError, match="does not exist"):
        read_state_dict(str(tmp_path / "nowhere.pth"))


def test_the_real_weights_wrapped(backbone_weights: Path, tmp_path: Path) -> None:
    plain = torch.load(backbone_weights, weights_only=True)
    torch.save({"state_dict": prefixed(plain, "module.")}, tmp_path / "wrapped.pth")
    expected, found = backbone_of(backbone_weights), backbone_of(tmp_path / "wrapped.pth")
    assert all(torch.equal(found[key], expected[key]) for key in expected)
