"""What a pixel goes through in an imported network: masks are those of a forward written by hand, tiled or whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import Fine, Given, Small, export
from small_import import agree, by_hand, drawn, import_options, predicted
from torch.export import Dim

from pipeline.errors import InputError
from pipeline.models.checkpoint import load_checkpoint
from pipeline.models.spec import read_spec
from pipeline.prediction.import_config import ImportConfig
from pipeline.prediction.import_model import import_model
from pipeline.prediction.predictor import Prediction, Predictor


@pytest.mark.parametrize(
    ("options", "hand"),
    [
        ({}, {}),
        ({"channel_order": "bgr"}, {"bgr": True}),
        ({"scale": 128.0}, {"scale": 128.0}),
        ({"input_size": "30,44"}, {"size": (30, 44)}),
        (
            {"input_size": "64,64", "channel_order": "bgr", "scale": 1.0, "mean": "120,110,100", "std": "60,50,40"},
            {"size": (64, 64), "bgr": True, "scale": 1.0, "mean": (120.0, 110.0, 100.0), "std": (60.0, 50.0, 40.0)},
        ),
    ],
)
def test_masks_are_those_of_a_forward_by_hand(options: dict[str, Any], hand: dict[str, Any], tmp_path: Path) -> None:
    config = import_options(tmp_path)
    import_model(config(**options))
    pictures = drawn((40, 56), (97, 131), (40, 56))
    together = predicted(config().output, *pictures, batch_size=2)
    for picture, found in zip(pictures, together, strict=True):
        expected = by_hand(picture, Small().eval(), **hand)
        assert agree(found.class_map, expected.argmax(0))
        assert found.mean_confidence == pytest.approx(expected.max(0).mean(), rel=1e-3)
        alone = predicted(config().output, picture, batch_size=2)[0]
        assert np.array_equal(alone.class_map, found.class_map)
    if hand:
        wrong = by_hand(pictures[1], Small().eval())
        assert not agree(together[1].class_map, wrong.argmax(0)), "the option changes nothing here"


def test_a_large_picture_is_enlarged_band_by_band(tmp_path: Path) -> None:
    config = import_options(tmp_path)
    import_model(config(input_size="32,32"))
    (picture,) = drawn((700, 900))
    (found,) = predicted(config().output, picture, tile_px=256, overlap_px=32)
    assert agree(found.class_map, by_hand(picture, Small().eval(), size=(32, 32)).argmax(0))


def test_channels_are_led_to_classes(tmp_path: Path) -> None:
    """Two channels share a class, one stands for none."""
    config = import_options(tmp_path)
    told = import_model(config(label_set="roads", class_map="0:1,1:0,3:1"))
    assert "4 channels for the 2 classes of roads" in told
    (picture,) = drawn((60, 80))
    (found,) = predicted(config().output, picture)
    p = by_hand(picture, Small().eval())
    expected = np.array([1, 0, 255, 1])[p.argmax(0)]
    assert agree(found.class_map, expected) and (found.class_map == 255).any()
    assert found.class_pixels.tolist() == [(found.class_map == k).sum() for k in range(2)]
    known = expected != 255
    assert found.mean_confidence == pytest.approx(p.max(0)[known].mean(), rel=1e-3)
    assert found.low_confidence_share == pytest.approx((p.max(0)[known] < 0.5).mean(), abs=1e-2)
    nothing = ImportConfig(**{**vars(config(label_set="roads", class_map="0:1")), "output": str(tmp_path / "b")})
    import_model(nothing)
    model, spec = load_checkpoint(nothing.output)
    predictor = Predictor(model, replace(spec, class_map=(None,) * 4), device="cpu")
    (found,) = predictor.predict([picture])
    assert isinstance(found, Prediction) and (found.class_map == 255).all() and not found.class_pixels.any()
    assert np.isnan(found.mean_confidence) and np.isnan(found.low_confidence_share)


def test_probabilities_are_taken_for_what_they_are(tmp_path: Path) -> None:
    config = import_options(tmp_path)
    model = export(Given(lambda y: y.softmax(1)), tmp_path / "p.pt2", torch.rand(1, 3, 32, 32))
    import_model(config(model=model))
    assert read_spec(config().output).options == {"probabilities": True}
    (picture,) = drawn((32, 32))
    (found,) = predicted(config().output, picture)
    expected = by_hand(picture, lambda x: Small().eval()(x).softmax(1).log())
    assert found.mean_confidence == pytest.approx(expected.max(0).mean(), abs=2e-2)


# ---- a fixed batch, a fixed size -------------------------------------------------------------------------------------


def test_a_program_of_one_batch_and_size_is_padded_and_tiled(tmp_path: Path) -> None:
    config = import_options(tmp_path)
    model = export(Fine(), tmp_path / "fixed.pt2", torch.rand(3, 3, 48, 64))
    import_model(config(model=model))
    predictor = Predictor(*load_checkpoint(config().output), device="cpu", batch_size=1)
    assert predictor.batch_size == 3
    pictures = drawn((48, 64), (20, 30), (131, 200), (48, 64), (30, 300))
    for picture, found in zip(pictures, predictor.predict(pictures), strict=True):
        assert isinstance(found, Prediction), found
        inner = (slice(1, -1), slice(1, -1))  # padded with the mean colour, by hand with 0 as well
        expected = by_hand(picture, Fine().eval()).argmax(0)
        assert np.array_equal(found.class_map[inner], expected[inner])


def test_a_program_within_bounds_is_tiled_at_the_largest(tmp_path: Path) -> None:
    config = import_options(tmp_path)
    bounds = {0: Dim("n", max=2), 2: 8 * Dim("h", min=4, max=10), 3: 8 * Dim("w", min=4, max=12)}
    model = export(Fine(), tmp_path / "bounded.pt2", torch.rand(2, 3, 48, 64), dynamic=bounds)
    import_model(config(model=model))
    assert read_spec(config().output).size_multiple == 8
    pictures = drawn((9, 300), (200, 95), (50, 70))
    for picture, found in zip(pictures, predicted(config().output, *pictures, batch_size=16), strict=True):
        expected = by_hand(picture, Fine().eval()).argmax(0)
        assert np.array_equal(found.class_map[1:-1, 1:-1], expected[1:-1, 1:-1])


def test_a_program_for_squares_wants_an_input_size(tmp_path: Path) -> None:
    config = import_options(tmp_path)
    side = Dim("side")
    model = export(Fine(), tmp_path / "square.pt2", torch.rand(1, 3, 48, 48), dynamic={2: side, 3: side})
    with pytest.raises(InputError, match="square pictures only; give --input-size"):
        import_model(config(model=model))
    import_model(config(model=model, input_size="40,40"))
    (picture,) = drawn((50, 70))
    (found,) = predicted(config().output, picture)
    assert agree(found.class_map, by_hand(picture, Fine().eval(), size=(40, 40)).argmax(0))
