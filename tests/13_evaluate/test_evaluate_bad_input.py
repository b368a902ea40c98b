"""Bad input of the evaluate job: labels and predictions that do not fit, named with nothing left behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn_collection import Drawn, metrics_of
from PIL import Image

from pipeline.errors import InputError
from pipeline.evaluate.predictions import Predictions


def test_no_label_matches(tmp_path: Path) -> None:
    drawn = Drawn(tmp_path / "data")
    predictions = drawn.predict(tmp_path / "segment", root="other/")
    with pytest.raises(InputError, match=r"no label belongs.*'scene 000.png'.*'other/scene 000.jpg'.*path without"):
        metrics_of(predictions, drawn.root / "masks", tmp_path / "deep" / "evaluate")
    with pytest.raises(InputError, match="compared by region key"):
        metrics_of(predictions, drawn.root, tmp_path / "deep" / "evaluate")
    assert not (tmp_path / "deep").exists()


def test_label_value_outside_the_set(tmp_path: Path) -> None:
    """Among units that have written already and others that still run: nothing of them stays."""
    drawn = Drawn(tmp_path / "data", count=200)
    label = drawn.root / "masks" / "scene 130.png"
    raw = np.asarray(Image.open(label)).copy()
    raw[0, :5] = 77
    Image.fromarray(raw).save(label)
    predictions = drawn.predict(tmp_path / "segment")
    assert len(Predictions.open(str(predictions)).units) == 4
    with pytest.raises(InputError, match=r"scene 130\.png; found value 77 in 5 pixels"):
        metrics_of(predictions, drawn.root, tmp_path / "evaluate")
    assert not (tmp_path / "evaluate").exists()
    Image.fromarray(drawn.truth["scene 130"]).save(label)
    assert (
        metrics_of(predictions, drawn.root, tmp_path / "evaluate")["confusion_matrix"] == drawn.matrix.matrix.tolist()
    )


def test_every_label_of_another_size(tmp_path: Path) -> None:
    drawn = Drawn(tmp_path / "data")
    for file in (drawn.root / "masks").iterdir():
        Image.new("L", (5, 5)).save(file)
    with pytest.raises(InputError, match="all 6 are with a label of another size.*5 x 5"):
        metrics_of(drawn.predict(tmp_path / "segment"), drawn.root, tmp_path / "evaluate")
    assert not (tmp_path / "evaluate").exists()


def test_predictions_that_are_none(tmp_path: Path) -> None:
    drawn = Drawn(tmp_path / "data")
    with pytest.raises(InputError, match="no predictions found"):
        metrics_of(tmp_path / "nowhere", drawn.root, tmp_path / "evaluate")
    (tmp_path / "strange" / "predictions").mkdir(parents=True)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "strange" / "predictions" / "x.parquet")
    with pytest.raises(InputError, match="not the predictions of this project"):
        metrics_of(tmp_path / "strange", drawn.root, tmp_path / "evaluate")
    with pytest.raises(InputError, match="source does not exist"):
        metrics_of(drawn.predict(tmp_path / "segment"), tmp_path / "no labels", tmp_path / "evaluate")
    assert not (tmp_path / "evaluate").exists()
