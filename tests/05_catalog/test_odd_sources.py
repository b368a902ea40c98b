"""Sources as people have them: hidden folders, names from a Mac, tables of somebody else's columns."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from conftest import S3
from PIL import Image

from pipeline import storage
from pipeline.catalog.manifest import Manifest
from pipeline.catalog.manifest_writer import build_manifest
from pipeline.errors import InputError


def save(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(path)


def rows(manifest: Manifest) -> dict[str, str | None]:
    """path -> name of the label file."""
    table = manifest.table(["path", "label_uri"])
    return {
        row["path"]: None if row["label_uri"] is None else row["label_uri"].rsplit("/", 1)[-1]
        for row in table.to_pylist()
    }


# ---- hidden folders --------------------------------------------------------------------------------------------------

HIDDEN = (".ipynb_checkpoints/a.png", "deep/.hidden/b.png", "__MACOSX/deep/c.png", "deep/._d.jpg", ".e.png")


def test_hidden_folders_are_skipped_and_counted(tmp_path: Path) -> None:
    """Below the source; a source that lies in a hidden folder itself is taken as it is."""
    root = tmp_path / ".cache" / "pictures"
    save(root / "deep" / "seen.jpg", *(root / name for name in HIDDEN))
    manifest = build_manifest(str(root), str(tmp_path / "manifest"))
    assert rows(manifest) == {"deep/seen.jpg": None}
    assert manifest.skipped == len(HIDDEN) and set(manifest.skipped_examples) == set(HIDDEN)
    # a glob takes every name that it matches, though not from folders that hide themselves
    assert rows(build_manifest(f"{root}/**/*.png", str(tmp_path / "glob"))) == {".e.png": None}


def test_hidden_folders_of_a_bucket(s3: S3) -> None:
    picture = b"\x89PNG"
    for name in ("deep/seen.png", *HIDDEN):
        storage.write_bytes(s3.uri("data", name), picture)
    manifest = build_manifest(s3.uri("data"), s3.uri("manifest"))
    assert rows(manifest) == {"deep/seen.png": None} and manifest.skipped == len(HIDDEN)


# ---- names in two forms of Unicode -----------------------------------------------------------------------------------

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "straße-für-é") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(("of_picture", "of_label"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_a_label_is_found_under_the_other_form_of_its_name(tmp_path: Path, of_picture: str, of_label: str) -> None:
    assert COMPOSED != DECOMPOSED
    save(tmp_path / "in" / "images" / f"{of_picture}.jpg", tmp_path / "in" / "masks" / f"{of_label}.png")
    found = rows(build_manifest(str(tmp_path / "in"), str(tmp_path / "manifest")))
    assert found == {f"images/{of_picture}.jpg": f"{of_label}.png"}


def test_a_label_tree_under_the_other_form(tmp_path: Path) -> None:
    save(tmp_path / "pictures" / COMPOSED / "1.jpg", tmp_path / "labels" / DECOMPOSED / "1.png")
    manifest = build_manifest(str(tmp_path / "pictures"), str(tmp_path / "m"), labels=str(tmp_path / "labels"))
    assert rows(manifest) == {f"{COMPOSED}/1.jpg": "1.png"}


def test_the_same_form_is_preferred(tmp_path: Path) -> None:
    save(*(tmp_path / "in" / "images" / f"{name}.jpg" for name in (COMPOSED, DECOMPOSED)))
    save(*(tmp_path / "in" / "masks" / f"{name}.png" for name in (COMPOSED, DECOMPOSED)))
    found = rows(build_manifest(str(tmp_path / "in"), str(tmp_path / "manifest")))
    assert found == {f"images/{name}.jpg": f"{name}.png" for name in (COMPOSED, DECOMPOSED)}


# ---- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "image,mask,city\nx.jpg,x.png,Ulm\n"),
        ("a.csv", "image;mask;city\nx.jpg;x.png;Ulm\n"),
        ("a.csv", "\ufeffFilename\tAnnotation\tcity\r\nx.jpg\tx.png\tUlm\r\n"),
        ("a.tsv", 'file_name\tsegmentation\tcity\n"x.jpg"\tx.png\tUlm\n'),
        ("a.csv", "city,uri,label_uri\nUlm,x.jpg,x.png\n"),
        ("a.csv", '"image_path","mask_path","city"\n"x.jpg","x.png","Ulm"\n'),
    ],
)
def test_usual_columns_are_understood(tmp_path: Path, name: str, text: str) -> None:
    save(tmp_path / "x.jpg", tmp_path / "x.png")
    (tmp_path / name).write_bytes(text.encode())
    manifest = build_manifest(str(tmp_path / name), str(tmp_path / "manifest"))
    assert rows(manifest) == {"x.jpg": "x.png"}
    assert manifest.table(["city"])["city"].to_pylist() == ["Ulm"]
    assert [field.name for field in manifest.travelling] == ["split", "city"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,file\nx.jpg,y.jpg\n", "2 columns that may be the path.*image, file.*rename"),
        ("image,mask,label_path\nx.jpg,a.png,b.png\n", "2 columns that may be the label.*mask, label_path"),
        ("place,when\nx.jpg,now\n", "no column of pictures.*'place', 'when'.*expected path, image, img"),
    ],
)
def test_columns_that_are_not_understood(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        build_manifest(str(tmp_path / "a.csv"), str(tmp_path / "manifest"))


def test_a_column_of_the_roles_own_name_is_meant(tmp_path: Path) -> None:
    """`image` then is a column like any other, and travels."""
    save(tmp_path / "x.jpg")
    (tmp_path / "a.csv").write_text("path,image\nx.jpg,7\n")
    manifest = build_manifest(str(tmp_path / "a.csv"), str(tmp_path / "manifest"))
    assert rows(manifest) == {"x.jpg": None} and manifest.table(["image"])["image"].to_pylist() == [7]
