"""Collections to manifests: what is taken, in which order, with which split and label."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipeline import storage
from pipeline.catalog import label_files, manifest_writer
from pipeline.catalog.manifest import Manifest, open_manifest, region_key
from pipeline.catalog.manifest_writer import build_manifest
from pipeline.catalog.subset import Subset
from pipeline.errors import InputError


def draw(path: Path, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (4, 3)).save(path)


def labels_of(made: Manifest, root: object) -> dict[str, str | None]:
    rows = made.table(["path", "label_uri"]).to_pylist()
    return {row["path"]: row["label_uri"] and row["label_uri"].removeprefix(f"{root}/") for row in rows}


def test_camvid_layout(camvid_subset: Callable[..., Path], tmp_path: Path) -> None:
    root = camvid_subset(train=3, val=2)
    (root / "README.md").write_text("x")
    made = build_manifest(str(root), str(tmp_path / "m"))
    assert made.splits == {"train": 3, "val": 2} and made.labelled == 5 and made.skipped == 1
    rows = made.table().to_pylist()
    assert [row["region_id"] for row in rows] == list(range(5))
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    for row in rows:
        split, name = row["path"].split("/")
        assert row["label_uri"] == f"{root}/{split}annot/{name.replace('.jpg', '.png')}"
        assert row["region_key"] == region_key(row["path"]) and len(row["region_key"]) == 32
        assert row["size_bytes"] == os.path.getsize(row["uri"])
    assert Subset("val").ids(made).tolist() == [3, 4]
    part = build_manifest(str(root / "val"), str(tmp_path / "val"))
    assert part.labelled == 2 and part.splits == {"val": 2}  # the labels lie beside the root


def test_labels_beside_the_pictures(tmp_path: Path) -> None:
    root = tmp_path / "c"
    for name in ["images/city/a.jpg", "images/city/b.png", "images/c.jpg"]:
        draw(root / name)
    for name in ["labels/city/a.png", "labels/city/b.png", "masks_ignore/city/a.png", "notes/d.jpg"]:
        draw(root / name, "L")
    made = build_manifest(str(root), str(tmp_path / "m"))
    assert labels_of(made, root) == {
        "images/c.jpg": None,
        "images/city/a.jpg": "labels/city/a.png",
        "images/city/b.png": "labels/city/b.png",
        "notes/d.jpg": None,
    }
    other = build_manifest(str(root), str(tmp_path / "m2"), labels="masks_ignore")
    assert labels_of(other, root)["images/city/a.jpg"] == "masks_ignore/city/a.png"
    tree = build_manifest(str(root / "images"), str(tmp_path / "m3"), labels=str(root / "masks_ignore"))
    assert labels_of(tree, root) == {"c.jpg": None, "city/a.jpg": "masks_ignore/city/a.png", "city/b.png": None}
    with pytest.raises(InputError, match="label folder does not exist"):
        build_manifest(str(root), str(tmp_path / "m4"), labels=str(root / "nowhere"))


def test_labels_in_the_same_folder(tmp_path: Path) -> None:
    root = tmp_path / "c"
    for name in ["x.jpg", "x1.jpg", "x10.jpg", "y.jpg", "z.jpg", "z.png", "w.png"]:
        draw(root / name)
    for name in ["x_mask.png", "x1.png", "x10_label.png", "w_labelIds.png"]:
        draw(root / name, "L")
    made = build_manifest(str(root), str(tmp_path / "m"))
    assert labels_of(made, root) == {
        "w.png": "w_labelIds.png",
        "x.jpg": "x_mask.png",
        "x1.jpg": "x1.png",
        "x10.jpg": "x10_label.png",
        "y.jpg": None,
        "z.jpg": None,
        "z.png": None,  # an RGB picture of its own, not a label
    }


def test_a_prefix_takes_suffixes_in_any_case_and_a_glob_takes_all(tmp_path: Path) -> None:
    root = tmp_path / "c"
    for name in ["a.JPG", "b.Tif", "c.mp4", "d.txt", "sub/e.png", "noext", ".hidden.jpg"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    made = build_manifest(str(root), str(tmp_path / "m"))
    assert made.kinds == {"picture": 2, "raster": 1, "video": 1}
    assert made.skipped == 3 and "d.txt" in made.skipped_examples
    globbed = build_manifest(str(root / "*"), str(tmp_path / "m2"))
    assert [row["path"] for row in globbed.table(["path"]).to_pylist()] == sorted(
        [".hidden.jpg", "a.JPG", "b.Tif", "c.mp4", "d.txt", "noext"]
    )
    assert globbed.skipped == 0
    deep = build_manifest(str(root / "**" / "*.png"), str(tmp_path / "m3"))
    assert [row["path"] for row in deep.table(["path"]).to_pylist()] == ["sub/e.png"]
    one = build_manifest(str(root / "d.txt"), str(tmp_path / "m4"))
    assert one.num_rows == 1


def test_a_table_brings_columns_that_travel(tmp_path: Path) -> None:
    draw(tmp_path / "b.jpg")
    draw(tmp_path / "a.jpg")
    draw(tmp_path / "a_truth.png", "L")
    (tmp_path / "list.csv").write_text("path,label,split,city,date\nb.jpg,,val,Ulm,3\na.jpg,a_truth.png,train,Rom,4\n")
    made = build_manifest(str(tmp_path / "list.csv"), str(tmp_path / "m"))
    rows = made.table().to_pylist()
    assert [(row["path"], row["city"], row["date"], row["split"]) for row in rows] == [
        ("a.jpg", "Rom", 4, "train"),
        ("b.jpg", "Ulm", 3, "val"),
    ]
    assert rows[0]["label_uri"] == str(tmp_path / "a_truth.png")
    assert [item.name for item in made.travelling] == ["split", "city", "date"]
    assert open_manifest(str(tmp_path / "m")) == made


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    draw(tmp_path / "c" / "a.jpg")
    first = build_manifest(str(tmp_path / "c"), str(tmp_path / "m1"))
    assert build_manifest(str(tmp_path / "c"), str(tmp_path / "m2")).fingerprint == first.fingerprint
    draw(tmp_path / "c" / "b.jpg")
    assert build_manifest(str(tmp_path / "c"), str(tmp_path / "m3")).fingerprint != first.fingerprint


def test_parts_are_cut_and_a_half_written_manifest_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_writer, "ROWS_PER_PART", 2)
    monkeypatch.setattr(label_files, "_MOST_HELD_BACK", 1)
    for i in range(5):
        draw(tmp_path / "c" / f"{i}.jpg")
    made = build_manifest(str(tmp_path / "c"), str(tmp_path / "m"))
    assert [(unit.first_id, unit.num_rows) for unit in made.units()] == [(0, 2), (2, 2), (4, 1)]
    assert [unit.read(["path"])["path"].to_pylist() for unit in made.units()] == [
        ["0.jpg", "1.jpg"],
        ["2.jpg", "3.jpg"],
        ["4.jpg"],
    ]
    assert Subset().ids(made).tolist() == [0, 1, 2, 3, 4]
    (tmp_path / "m" / "_manifest.json").rename(tmp_path / "kept")
    assert open_manifest(str(tmp_path / "m")) is None
    (tmp_path / "kept").rename(tmp_path / "m" / "_manifest.json")
    (tmp_path / "m" / "part-00001.parquet").unlink()
    with pytest.raises(InputError, match="part is missing"):
        open_manifest(str(tmp_path / "m"))


def test_a_sample_is_drawn_by_key_and_a_larger_one_holds_a_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_writer, "ROWS_PER_PART", 90)
    for i in range(300):
        (tmp_path / "c").mkdir(exist_ok=True)
        (tmp_path / "c" / f"{i:03d}.jpg").write_bytes(b"x")
    few = build_manifest(str(tmp_path / "c"), str(tmp_path / "few"))
    paths = few.table(["path"])["path"].to_pylist()
    drawn = {share: set(Subset(sample=share).ids(few).tolist()) for share in (0.1, 0.3, 1.0)}
    assert drawn[0.1] < drawn[0.3] < drawn[1.0] == set(range(300))
    assert 15 < len(drawn[0.1]) < 50 and 60 < len(drawn[0.3]) < 120
    assert all((int(region_key(paths[i])[:8], 16) < 0.3 * 2**32) == (i in drawn[0.3]) for i in range(300))
    for i in range(100):  # the collection grows, before and between what was there
        (tmp_path / "c" / f"{i:03d}-b.jpg").write_bytes(b"x")
    many = build_manifest(str(tmp_path / "c"), str(tmp_path / "many"))
    again = many.table(["path"])["path"].to_pylist()
    kept = {again[i] for i in Subset(sample=0.3).ids(many) if "-b" not in again[i]}
    assert kept == {paths[i] for i in drawn[0.3]}
    assert Subset(limit=100).ids(many).tolist() == list(range(100))
    assert Subset(sample=0.3, limit=7).ids(few).tolist() == sorted(drawn[0.3])[:7]
    with pytest.raises(InputError, match="the sample holds no picture"):
        Subset(sample=1e-9).ids(few)


@pytest.mark.parametrize(
    ("before", "now", "fits"),
    [
        (Subset(limit=5), Subset(limit=9), True),
        (Subset(limit=5), Subset(), True),
        (Subset(sample=0.1), Subset(sample=0.2), True),
        (Subset(sample=0.1, limit=5), Subset(sample=0.1), True),
        (Subset(sample=0.1, limit=5), Subset(sample=0.2), True),
        (Subset(), Subset(sample=1.0), True),
        (Subset(), Subset(limit=5), False),
        (Subset(), Subset(sample=0.5), False),
        (Subset(limit=9), Subset(limit=5), False),
        (Subset(limit=5), Subset(sample=0.5), False),
        (Subset(sample=0.1, limit=5), Subset(sample=0.2, limit=50), False),
        (Subset("val"), Subset("val", limit=3), False),
        (Subset("val"), Subset(), False),
    ],
)
def test_an_output_may_grow_but_not_shrink(before: Subset, now: Subset, fits: bool) -> None:
    if fits:
        now.require_to_hold(before, "out")
    else:
        with pytest.raises(InputError, match=f"found {before}; expected {now}"):
            now.require_to_hold(before, "out")


def test_s3_prefix_with_labels(s3: object, tmp_path: Path) -> None:
    draw(tmp_path / "x.jpg")
    draw(tmp_path / "x.png", "L")
    for key in ["set/train/a b.jpg", "set/train/ü#1.jpg", "set/valid/c.jpg"]:
        storage.write_bytes(s3.uri(*key.split("/")), (tmp_path / "x.jpg").read_bytes())  # type: ignore[attr-defined]
    storage.write_bytes(s3.uri("set/trainannot/a b.png"), (tmp_path / "x.png").read_bytes())  # type: ignore[attr-defined]
    made = build_manifest(s3.uri("set"), s3.uri("m"))  # type: ignore[attr-defined]
    assert made.splits == {"train": 2, "val": 1}
    rows = made.table().to_pylist()
    assert [row["path"] for row in rows] == ["train/a b.jpg", "train/ü#1.jpg", "valid/c.jpg"]
    assert rows[0]["label_uri"] == s3.uri("set/trainannot/a b.png")  # type: ignore[attr-defined]
    assert rows[0]["version"].startswith("etag-")
    whole = build_manifest(s3.uri(), str(tmp_path / "m"))  # type: ignore[attr-defined]
    assert whole.num_rows == 3 and whole.labelled == 1


@pytest.mark.parametrize("source", ["nowhere", "empty", "empty/*.jpg", "nowhere/*.jpg", "s3://no-such-bucket-x/y"])
def test_a_source_without_pictures_is_bad_input_and_leaves_nothing(tmp_path: Path, source: str, s3_server: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="does not exist|no picture found"):
        build_manifest(source if "://" in source else str(tmp_path / source), str(tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def test_the_job(tmp_path: Path, run_job: Callable[..., object]) -> None:
    draw(tmp_path / "c" / "train" / "a.jpg")
    (tmp_path / "c" / "x.txt").write_text("x")
    done = run_job("manifest", "--source", tmp_path / "c", "--output", tmp_path / "m")
    assert done.code == 0, done.stderr  # type: ignore[attr-defined]
    assert "1 pictures (train: 1), 0 with labels, 1 other files skipped" in done.stdout  # type: ignore[attr-defined]
    again = run_job("manifest", "--source", tmp_path / "c", "--output", tmp_path / "m")
    assert again.code == 0 and again.stdout.startswith("complete")  # type: ignore[attr-defined]
    none = run_job("manifest", "--source", tmp_path / "nowhere", "--output", tmp_path / "n")
    assert none.code == 2 and none.error.startswith("error: source does not exist")  # type: ignore[attr-defined]
    assert not (tmp_path / "n").exists()
