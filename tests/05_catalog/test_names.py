"""Names that only look the same, and what is hidden, on a local folder and on S3."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from pipeline import storage
from pipeline.catalog.manifest import Manifest, region_key
from pipeline.catalog.manifest_writer import build_manifest


def form(of: str, text: str) -> str:
    return unicodedata.normalize(of, text)


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "c")
    return str(request.getfixturevalue("s3").uri("c"))


def put(root: str, tmp_path: Path, *names: str) -> None:
    """Pictures, or grey ones where the name says that they are labels."""
    for name in names:
        grey = any(part in name for part in ("mask", "label", "grey"))
        Image.new("L" if grey else "RGB", (4, 3)).save(tmp_path / "drawn.png")
        storage.write_bytes(f"{root}/{name.replace('grey ', '')}", (tmp_path / "drawn.png").read_bytes())


def labels_of(made: Manifest, root: str) -> dict[str, str | None]:
    rows = made.table(["path", "label_uri"]).to_pylist()
    return {row["path"]: row["label_uri"] and row["label_uri"].removeprefix(f"{root}/") for row in rows}


FORMS = pytest.mark.parametrize(("of_picture", "of_label"), [("NFC", "NFD"), ("NFD", "NFC")])


@FORMS
def test_labels_in_the_folder_beside(root: str, tmp_path: Path, of_picture: str, of_label: str) -> None:
    pictures = [form(of_picture, f"images/città/{name}.jpg") for name in ("münchen", "plain", "école_leftImg8bit")]
    labels = [form(of_label, f"labels/città/{name}.png") for name in ("münchen", "plain", "école_gtFine_labelIds")]
    put(root, tmp_path, *pictures, *labels)
    made = build_manifest(root, str(tmp_path / "m"))
    assert labels_of(made, root) == dict(zip(pictures, labels, strict=True))
    keys = made.table(["path", "region_key"]).to_pylist()
    assert all(row["region_key"] == region_key(row["path"]) for row in keys)  # of the path's own bytes


def test_a_label_tree_of_both_forms(root: str, tmp_path: Path) -> None:
    put(root, tmp_path, f"in/{form('NFC', 'é')}/{form('NFC', 'ü')}/1.jpg")
    put(root, tmp_path, f"labels/{form('NFC', 'é')}/{form('NFD', 'ü')}/1.png")
    made = build_manifest(f"{root}/in", str(tmp_path / "m"), labels=f"{root}/labels")
    assert list(labels_of(made, root).values()) == [f"labels/{form('NFC', 'é')}/{form('NFD', 'ü')}/1.png"]


@FORMS
def test_labels_in_the_same_folder(root: str, tmp_path: Path, of_picture: str, of_label: str) -> None:
    pictures = [form(of_picture, name) for name in ("é.jpg", "ü.jpg", "ö.png", "d/ä.jpg")]
    labels = [form(of_label, name) for name in ("é_mask.png", "grey ü.png", "ö_label.png", "d/ä_mask.png")]
    others = [form(of_label, "ñ.jpg"), "x.jpg", "z/y.jpg"]
    put(root, tmp_path, *pictures, *labels, *others)
    expected = dict(zip(pictures, (label.replace("grey ", "") for label in labels), strict=True))
    made = build_manifest(root, str(tmp_path / "m"))
    assert labels_of(made, root) == expected | dict.fromkeys(others)
    assert list(labels_of(made, root)) == sorted(labels_of(made, root), key=str.encode)


def test_names_of_both_forms_are_told_apart_by_their_bytes(root: str, tmp_path: Path) -> None:
    names = [form("NFC", "é"), form("NFD", "é")]
    third, halfway = form("NFC", "ǖ"), form("NFC", "ü") + "\u0304"
    put(root, tmp_path, *(f"images/{name}.jpg" for name in names), *(f"labels/{name}.png" for name in names))
    put(root, tmp_path, f"images/{third}.jpg", f"labels/{halfway}.png", f"labels/{form('NFD', third)}.png")
    found = labels_of(build_manifest(root, str(tmp_path / "m")), root)
    assert [found[f"images/{name}.jpg"] for name in names] == [f"labels/{name}.png" for name in names]
    assert found[f"images/{third}.jpg"] is None  # two label files look like it


# ---- hidden ----------------------------------------------------------------------------------------------------------

HIDDEN = [
    ".ipynb_checkpoints/a-checkpoint.jpg",
    "images/.ipynb_checkpoints/a-checkpoint.jpg",
    "images/._a.jpg",
    "images/.a.jpg",
    "labels/.ipynb_checkpoints/a-checkpoint.png",
    "__MACOSX/images/._a.jpg",
    ".Trash/b.jpg",
    "images/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg",
]


def test_what_is_hidden_is_no_label_either(root: str, tmp_path: Path) -> None:
    put(root, tmp_path, "images/a.jpg", "images/b.jpg", "labels/a.png", "labels/._b.png", *HIDDEN)
    storage.write_bytes(f"{root}/.DS_Store", b"x")
    made = build_manifest(root, str(tmp_path / "m"))
    assert labels_of(made, root) == {"images/a.jpg": "labels/a.png", "images/b.jpg": None}
    assert made.skipped == len(HIDDEN) + 2 and ".DS_Store" in made.skipped_examples


def test_a_glob_takes_what_is_hidden_only_where_it_says_so(root: str, tmp_path: Path) -> None:
    put(root, tmp_path, "images/a.jpg", *HIDDEN)
    made = build_manifest(f"{root}/**/*.jpg", str(tmp_path / "m"))
    assert list(labels_of(made, root)) == ["images/.a.jpg", "images/a.jpg"] and made.skipped == len(HIDDEN) - 2
    asked = build_manifest(f"{root}/*/.ipynb_checkpoints/*.jpg", str(tmp_path / "m2"))
    assert list(labels_of(asked, root)) == ["images/.ipynb_checkpoints/a-checkpoint.jpg"] and asked.skipped == 0
    one = build_manifest(f"{root}/images/._a.jpg", str(tmp_path / "m3"))
    assert one.num_rows == 1 and one.parts
