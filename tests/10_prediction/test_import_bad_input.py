"""Bad input of an import: one line that names it, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exported import Fine, export
from small_import import four_classes, import_options

from pipeline.errors import InputError
from pipeline.prediction.import_config import ImportConfig
from pipeline.prediction.import_model import import_model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": None}, "--mean and --std are missing.*nothing says so"),
        ({"mean": "0.5,x,0.5"}, "--mean has a wrong value; found 0.5,x,0.5; expected numbers"),
        ({"mean": "0,0", "std": "1,1"}, "exported program for other pictures.*found 3 bands; expected 2"),
        ({"std": "1,1"}, "normalisation does not fit the bands; found 3 means and 2 standard deviations"),
        ({"std": "1,1,0"}, "normalisation out of range"),
        ({"scale": 0.0}, "normalisation out of range"),
        ({"channel_order": "grb"}, "channel order out of range; found grb"),
        ({"label_set": "camvid"}, "found 4 channels; expected 11 classes of camvid; give another --label-set"),
        ({"label_set": "roads", "class_map": "0:0,9:1"}, "a channel that the network does not have; found 9"),
        ({"label_set": "roads", "class_map": "0:0,1:2"}, "class map leads out of the label set; found class 2"),
        ({"class_map": "0:0,0:1"}, "--class-map has a wrong value; found 0:1; expected each channel once"),
        ({"class_map": "0-1"}, "--class-map has a wrong value; found 0-1; expected channel:class"),
        ({"input_size": "40"}, "input size is no height and width; found 40; expected H,W"),
        ({"input_size": "0,40"}, "input size is no height and width"),
        ({"input_size": "a,b"}, "--input-size has a wrong value"),
        ({"size_multiple": 0}, "--size-multiple out of range"),
        ({"weights": "x.pth"}, "--weights does not go with a network that brings its own"),
        ({"try_": "nowhere.jpg"}, "picture does not exist: nowhere.jpg"),
        ({"try_": __file__}, "picture cannot be read"),
        ({"model": "smp:Unet"}, "--weights is missing"),
        ({"model": "smp:Unet", "weights": "nowhere.pth"}, "weights file does not exist"),
        ({"model": "export:nowhere.pt2"}, "exported program does not exist"),
        ({"model": "hf:nowhere"}, "no Hugging Face model"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = import_options(tmp_path)(**options)
    with pytest.raises(InputError, match=message) as caught:
        import_model(given)
    assert "\n" not in str(caught.value) and not Path(given.output).exists()


def test_sizes_that_do_not_go_together(tmp_path: Path) -> None:
    config = import_options(tmp_path)
    model = export(Fine(), tmp_path / "fixed.pt2", torch.rand(1, 3, 48, 64))
    for options, message in (
        ({"input_size": "48,48"}, "does not take this input size; found 48x48; expected 48 x 64 px"),
        ({"size_multiple": 32}, "--size-multiple does not go with.*found 32; expected a divisor of 48 and 64"),
    ):
        with pytest.raises(InputError, match=message):
            import_model(config(model=model, **options))


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"weights of another network: the file lacks \d+ of \d+ keys"):
        import_model(
            ImportConfig("lightweight", four_classes(tmp_path), str(tmp_path / "o"), weights=str(tmp_path / "a.pth"))
        )
