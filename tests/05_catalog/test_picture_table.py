"""Tables of pictures as people have them: columns that only look like a label or a number, odd text files, bad rows."""

from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.catalog.manifest_writer import build_manifest
from pipeline.errors import InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "0001"):
        Image.new("RGB", (4, 3)).save(tmp_path / name, "JPEG")
    for name in ("a.png", "b.png"):
        Image.new("L", (4, 3)).save(tmp_path / name)
    return tmp_path


def rows(folder: Path, text: str | bytes, name: str = "list.csv") -> list[dict]:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return build_manifest(str(folder / name), str(folder / "m" / str(len(list(folder.rglob("*")))))).table().to_pylist()


def triples(found: list[dict], folder: Path) -> list[tuple]:
    return [(r["path"], r["label_uri"] and r["label_uri"].removeprefix(f"{folder}/"), r["split"]) for r in found]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_delimiters_and_byte_order_marks(folder: Path, mark: str, encoding: str) -> None:
    lines = [
        ["image", "mask", "subset", "note; or, so"],
        ["a.jpg", "a.png", "train", "x,y;z"],
        ["b.jpg", "", "val", ""],
    ]
    text = "\r\n".join(mark.join(f'"{cell}"' for cell in line) for line in lines) + "\r\n"
    found = rows(folder, text.encode(encoding), "list.tsv" if mark == "\t" else "list.csv")
    assert triples(found, folder) == [("a.jpg", "a.png", "train"), ("b.jpg", None, "val")]
    assert found[0]["note; or, so"] == "x,y;z"


def test_a_comma_in_a_column_s_name_is_no_delimiter(folder: Path) -> None:
    found = rows(folder, 'image;mask;"note, or, so, on"\na.jpg;a.png;x\n')
    assert triples(found, folder) == [("a.jpg", "a.png", None)] and found[0]["note, or, so, on"] == "x"


def test_a_split_under_another_name(folder: Path) -> None:
    found = rows(folder, "image,set\na.jpg,Training\nb.jpg,validation\n")
    assert [row["split"] for row in found] == ["train", "val"]
    found = rows(folder, "image,set\na.jpg,summer\nb.jpg,validation\n")  # no split: it travels
    assert [(row["split"], row["set"]) for row in found] == [(None, "summer"), (None, "validation")]


def test_columns_that_only_have_a_usual_name_travel(folder: Path) -> None:
    found = rows(folder, "path,filename,image,annotation,label\na.jpg,x,3,checked by Eva,a.png\n")
    assert triples(found, folder) == [("a.jpg", "a.png", None)]
    assert (found[0]["filename"], found[0]["image"], found[0]["annotation"]) == ("x", 3, "checked by Eva")
    found = rows(folder, "path,annotation\na.jpg,checked by Eva\n")  # as in version 0.1
    assert (found[0]["label_uri"], found[0]["annotation"]) == (None, "checked by Eva")
    found = rows(folder, "path,segmentation\na.jpg,3\n")  # numbers are no names of files
    assert (found[0]["label_uri"], found[0]["segmentation"]) == (None, 3)


def test_of_label_and_label_uri_the_second_counts(folder: Path) -> None:
    found = rows(folder, "path,label,label_uri\na.jpg,b.png,a.png\nb.jpg,b.png,\n")
    assert triples(found, folder) == [("a.jpg", "a.png", None), ("b.jpg", "b.png", None)]


def test_spaces_after_the_commas(folder: Path) -> None:
    assert triples(rows(folder, "image, mask\na.jpg, a.png\n"), folder) == [("a.jpg", "a.png", None)]


def test_names_that_look_like_numbers_stay_names(folder: Path) -> None:
    found = rows(folder, "image,when\n0001,2026-01-02\n")
    assert triples(found, folder) == [("0001", None, None)] and found[0]["size_bytes"] > 0
    assert found[0]["when"] == datetime.date(2026, 1, 2)


def test_parquet(folder: Path) -> None:
    table = pa.table({"Image": pa.array(["a.jpg"]).dictionary_encode(), "MASK": pa.array(["a.png"], pa.large_string())})
    pq.write_table(table, folder / "list.parquet")
    made = build_manifest(str(folder / "list.parquet"), str(folder / "m"))
    assert triples(made.table().to_pylist(), folder) == [("a.jpg", "a.png", None)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("path,mask,label\na.jpg,a.png,a.png\n", "reserved column.*mask"),
        ("image,image\na.jpg,b.jpg\n", "two columns of one name.*image"),
        ("image,mask\n,a.png\n", "names no picture.*row 1"),
        (b"image\nm\xfcnchen.jpg\n", "cannot be read"),
        (b"bild\xfc,image\nx,a.jpg\n", "not in UTF-8"),
        ("image,mask\na.jpg,b.png,c.png\n", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_bad_tables(folder: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        rows(folder, text)


def test_a_parquet_column_of_pictures_without_text(folder: Path) -> None:
    pq.write_table(pa.table({"path": [1], "label": ["a.png"]}), folder / "list.parquet")
    with pytest.raises(InputError, match="column `path` of the table of pictures is no text.*int64"):
        build_manifest(str(folder / "list.parquet"), str(folder / "m"))
