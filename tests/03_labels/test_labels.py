"""Label sets: raw values to class ids, from built-in tables and YAML files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.labels import CAMVID, CITYSCAPES, LABEL_SETS, VOC, LabelSet, load_label_set


def test_camvid_void_is_ignored_and_foreign_values_are_counted() -> None:
    raw = np.array([[0, 10, 11], [255, 12, 12]], np.uint8)
    classes, unknown, *_ = CAMVID.encode(raw)
    assert classes.tolist() == [[0, 10, 255], [255, 255, 255]]
    assert unknown == {12: 2}


def test_remap_leads_from_raw_values_to_class_ids() -> None:
    classes, unknown, *_ = CITYSCAPES.encode(np.array([[7, 33, 0, 34]]))
    assert classes.tolist() == [[0, 18, 255, 255]]
    assert unknown == {34: 1}


def test_colour_labels_are_read_by_their_colours() -> None:
    raw = np.zeros((1, 2, 3), np.uint8)
    raw[0, 0] = VOC.colors[15]
    raw[0, 1] = (1, 2, 3)
    classes, unknown, *_ = VOC.encode(raw)
    assert classes.tolist() == [[15, 255]]
    assert unknown == {0x010203: 1}


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=50))
def test_every_pixel_is_a_class_void_or_counted(values: list[int]) -> None:
    raw = np.array(values, np.int32)[None]
    classes, unknown, *_ = CAMVID.encode(raw)
    for value, got in zip(values, classes[0], strict=True):
        assert got == (value if value < 11 else 255)
    assert sum(unknown.values()) == sum(v not in (*range(12), 255) for v in values)
    assert (CAMVID.encode(raw.astype(np.uint16))[0] == classes).all()


def test_more_than_254_classes_are_16_bits_wide() -> None:
    wide = LabelSet("wide", tuple(f"c{i}" for i in range(300)), ((0, 0, 0),) * 300, ignore=(65535,))
    classes, unknown, *_ = wide.encode(np.array([[299, 65535]], np.uint16))
    assert classes.dtype == np.uint16 and classes.tolist() == [[299, 65535]] and not unknown


@pytest.mark.parametrize("name", sorted(LABEL_SETS))
def test_json_brings_a_label_set_back(name: str) -> None:
    assert LabelSet.from_json(load_label_set(name).to_json()) == LABEL_SETS[name]


def test_yaml_file(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(
        "name: two\nclasses: [ground, {name: road, color: [255, 0, 0]}]\nremap: {0: 0, 255: 1}\nignore: []\n"
    )
    two = load_label_set(str(path))
    assert two.names == ("ground", "road") and two.colors[1] == (255, 0, 0)
    assert two.encode(np.array([[0, 255]]))[0].tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("classes: 3", "not a label set"),
        ("classes: [a, a]", "names a class twice"),
        ("classes: [{name: a, id: 4}]", "0..K-1"),
        ("classes: [a]\nremap: {1: 7}", "does not exist"),
        ("classes: [a]\nignored: [7]", "did you mean 'ignore'"),
        ("classes: [a", "not YAML"),
    ],
)
def test_bad_label_set_files_say_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        load_label_set(str(path))
    assert "\n" not in str(caught.value)


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'camvid'"):
        load_label_set("camvit")
