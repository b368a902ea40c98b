"""What is said of values and colours that no label set knows, followed to the letter; transparent pixels."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.decode.picture import decode_label
from pipeline.errors import InputError
from pipeline.labels import CAMVID, CITYSCAPES, LABEL_SETS, ROADS, LabelSet, load_label_set, unknown_value


def picture(*colors: tuple[int, ...]) -> np.ndarray:
    """One row of pixels."""
    return np.array([colors], np.uint8)


def mapped(label_set: LabelSet, raw: np.ndarray) -> list[list[int]]:
    """The class map; every value must be known."""
    found = label_set.encode(raw)
    assert not found.unknown
    return found.class_map.tolist()


def load(tmp_path: Path, text: str) -> LabelSet:
    (tmp_path / "labels.yaml").write_text(text)
    return load_label_set(str(tmp_path / "labels.yaml"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("classes: [{name: a, color: [1, 2, 3]}]\nignore_colors: [[1, 2, 3]]", r"\[1, 2, 3\].*class 'a'"),
        ("classes: [a]\nignore_colors: [[1, 2]]", "not a label set"),
        ("classes: [a]\nignore_colors: [black]", "'black' is no colour"),
        ("classes: [a]\nignore_colors: [[1, 2, 300]]", "0 to 255"),
        ("classes: [a]\nignore_other_colors: maybe", "not true or false"),
        ("classes: [a]\nignore_colours: []", "did you mean 'ignore_colors'"),
        ("like: camvit", "did you mean 'camvid'"),
        ("like: camvid\nclasses: [a]", "`like` another one or"),
        ("like: camvid\nremap: {7: 90}", "does not exist"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        load(tmp_path, text)


def encoded(image: Image.Image) -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return decode_label(buffer.getvalue())


def test_transparent_pixels_of_no_colour_are_void() -> None:
    rgba = picture((*CAMVID.colors[3], 255), (*CAMVID.colors[3], 0), (1, 2, 3, 0), (255, 255, 255, 0))
    found = CAMVID.encode(encoded(Image.fromarray(rgba)))
    assert found.class_map.tolist() == [[3, 3, 255, 255]] and not found.unknown
    assert found.void == {0x010203: 1, 0xFFFFFF: 1}
    opaque = encoded(Image.fromarray(picture((*CAMVID.colors[3], 255), (1, 2, 3, 200))))
    assert opaque.shape == (1, 2, 3) and CAMVID.encode(opaque).unknown == {0x010203: 1}


# ---- the advice in the message, followed -----------------------------------------------------------------------------


def advice(error: InputError, key: str) -> str:
    (line,) = re.findall(rf"`({key}: [^`]*)`", str(error))[:1]
    return line


@pytest.mark.parametrize("name", ["camvid", "cityscapes"])
def test_following_the_advice_for_a_colour_makes_it_void(name: str, tmp_path: Path) -> None:
    label_set, raw = LABEL_SETS[name], picture((1, 2, 3), LABEL_SETS[name].colors[1], (0, 0, 0))
    error = unknown_value(label_set, 0x010203, 1, True, "s3://b/x.png")
    assert "s3://b/x.png; found colour [1, 2, 3] in 1 pixels; expected " in str(error) and len(str(error)) < 600
    changed = load(tmp_path, f"like: {name}\n{advice(error, 'ignore_colors')}\n")
    assert mapped(changed, raw) == [[255, 1, 255]]
    changed = load(tmp_path, f"like: {name}\n{advice(error, 'ignore_other_colors')}\n")
    assert mapped(changed, raw) == [[255, 1, 255]]
    assert LabelSet.from_json(json.loads(json.dumps(changed.to_json()))) == changed


def test_following_the_advice_for_a_value_makes_it_void_or_a_class(tmp_path: Path) -> None:
    raw = np.array([[0, 10, 11, 12, 255]], np.uint8)
    error = unknown_value(CAMVID, 12, 1, False, "x.png")
    assert "expected 0..11, 255 (camvid)" in str(error)
    void = load(tmp_path, f"like: camvid\n{advice(error, 'ignore')}\n")
    assert mapped(void, raw) == [[0, 10, 255, 255, 255]]
    changed = load(tmp_path, f"like: camvid\n{advice(error, 'remap').replace('CLASS_ID', '3')}\n")
    assert mapped(changed, raw) == [[0, 10, 255, 3, 255]]


def test_following_the_advice_for_a_set_of_one_s_own(tmp_path: Path) -> None:
    own = {"name": "own", "classes": [{"name": "a", "color": [9, 9, 9]}, {"name": "b", "color": [8, 8, 8]}]}
    label_set = load(tmp_path, yaml.safe_dump(own))
    error = unknown_value(label_set, 7, 3, False, "x.png")
    for key, expected in (("ignore", [0, 1, 255, 255]), ("remap", [0, 1, 1, 255])):
        line = yaml.safe_load(advice(error, key).replace("CLASS_ID", "1"))
        changed = load(tmp_path, yaml.safe_dump({**own, **line}))
        assert mapped(changed, np.array([[0, 1, 7, 255]])) == [expected]
    line = yaml.safe_load(advice(unknown_value(label_set, 0x010203, 3, True, "x.png"), "ignore_colors"))
    changed = load(tmp_path, yaml.safe_dump({**own, **line}))
    assert mapped(changed, picture((1, 2, 3), (8, 8, 8))) == [[255, 1]]


def test_a_set_like_another_adds_to_it(tmp_path: Path) -> None:
    changed = load(tmp_path, "like: roads\nremap: {255: 1}\n")
    assert mapped(changed, np.array([[0, 1, 255]])) == [[0, 1, 1]] and changed.names == ROADS.names
    assert load(tmp_path, "like: cityscapes\n") == CITYSCAPES
    renamed = load(tmp_path, "like: cityscapes\nname: mine\nignore: [34]\n")
    assert renamed.name == "mine" and renamed.void_colors == CITYSCAPES.void_colors
    assert mapped(renamed, np.array([[7, 34, 0]])) == [[0, 255, 255]]
    assert LabelSet.from_json(json.loads(json.dumps(renamed.to_json()))) == renamed


def test_a_label_set_lies_on_s3_or_nowhere(s3: object, tmp_path: Path) -> None:
    from pipeline import storage

    uri = s3.uri("sets", "roads.yaml")  # type: ignore[attr-defined]
    storage.write_bytes(uri, b"like: roads\nignore: [7]\n")
    assert load_label_set(uri).ignore == (255, 7)
    for where in (s3.uri("none.yaml"), str(tmp_path / "none.yaml"), str(tmp_path)):  # type: ignore[attr-defined]
        if where == str(tmp_path):
            (tmp_path / "folder.yaml").mkdir()
            where += "/folder.yaml"
        with pytest.raises(InputError, match="label set file does not exist"):
            load_label_set(where)
