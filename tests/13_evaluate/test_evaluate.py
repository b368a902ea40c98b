"""The evaluate job: its figures on small drawn predictions, on CamVid's labels and on S3, and the folder it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn_collection import HEIGHT, SET, WIDTH, Drawn, metrics_of
from PIL import Image

from pipeline import storage
from pipeline.catalog import schema
from pipeline.catalog.manifest import region_key
from pipeline.catalog.manifest_writer import build_manifest
from pipeline.errors import InputError
from pipeline.evaluate.accumulator import Accumulator
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.job import evaluate
from pipeline.evaluate.label_index import build_index, find_labels, key_of_path
from pipeline.evaluate.predictions import plan_units, read_rows
from pipeline.labels import load_label_set
from pipeline.metrics import ConfusionMatrix
from pipeline.storage import folders
from pipeline.tables.prediction_table import metadata

# ---- the join and the sums -------------------------------------------------------------------------------------------


def test_labelled_collection(tmp_path: Path) -> None:
    """By region key; everything that is left agrees with the matrix made by hand."""
    drawn = Drawn(tmp_path / "data")
    drawn.masks["scene 004"] = None
    predictions, output = drawn.predict(tmp_path / "segment"), tmp_path / "evaluate"
    found = metrics_of(predictions, drawn.root, output)
    expected = drawn.matrix.metrics(SET.names)
    assert {key: found[key] for key in expected} == expected
    assert found["pictures"] == {
        "ok": 5,
        "not_predicted": 1,
        "label_missing": 0,
        "label_error": 0,
        "size_mismatch": 0,
    }
    assert found["labels_without_prediction"] == 0

    pictures = pq.read_table(output / "pictures").sort_by("path")
    assert pictures["path"].to_pylist() == [f"images/{name}.jpg" for name in drawn.truth]
    assert pictures["status"].to_pylist() == ["ok"] * 4 + ["not_predicted", "ok"]
    assert pictures["error"].to_pylist()[4] == "decode_error: DecodeError: not a picture"
    for row, (name, truth) in zip(pictures.to_pylist(), drawn.truth.items(), strict=True):
        one = ConfusionMatrix(3).update(truth, drawn.masks[name])
        stored = [row[key] for key in ("truth", "prediction", "pixels", "unpredicted", "ignored")]
        assert ConfusionMatrix.from_sparse(*stored) == one
        assert (row["miou"], row["pixel_accuracy"]) == (one.miou, one.pixel_accuracy)

    classes = pq.read_table(output / "metrics.parquet").to_pylist()
    assert [row["name"] for row in classes] == ["all", *SET.names]
    assert classes[0]["iou"] == found["miou"]
    assert [row["iou"] for row in classes[1:]] == [found["per_class"][name]["iou"] for name in SET.names]

    groups = {
        row["value"]: row for row in pq.read_table(output / "groups.parquet").to_pylist() if row["column"] == "city"
    }
    assert {city: row["pictures"] for city, row in groups.items()} == {"Bern": 3, "Ulm": 3}
    sums = [
        ConfusionMatrix.from_sparse(*(row[key] for key in ("truth", "prediction", "pixels", "unpredicted", "ignored")))
        for row in groups.values()
    ]
    assert sums[0] + sums[1] == drawn.matrix


def test_folder_of_label_files_by_path(tmp_path: Path) -> None:
    drawn = Drawn(tmp_path / "data")
    predictions = drawn.predict(tmp_path / "segment", root="")
    found = metrics_of(predictions / "predictions", drawn.root / "masks", tmp_path / "evaluate")
    assert found["confusion_matrix"] == drawn.matrix.matrix.tolist()
    assert found["ignored"] == drawn.matrix.ignored


def test_manifest_and_label_set_from_a_file(tmp_path: Path) -> None:
    """`--label-set` may rename the classes and say what raw values mean; the number of classes must fit."""
    drawn = Drawn(tmp_path / "data")
    for file in (drawn.root / "masks").iterdir():
        raw = np.asarray(Image.open(file))
        Image.fromarray(np.where(raw == 255, 0, raw + 7).astype(np.uint8)).save(file)
    build_manifest(str(drawn.root), str(tmp_path / "manifest"))
    classes = [{"name": name} for name in ("Himmel", "Straße", "Auto")]
    text = {"name": "german", "classes": classes, "remap": {7: 0, 8: 1, 9: 2}, "ignore": [0]}
    (tmp_path / "german.yaml").write_text(json.dumps(text))
    predictions = drawn.predict(tmp_path / "segment")
    found = metrics_of(
        predictions, tmp_path / "manifest", tmp_path / "evaluate", label_set=str(tmp_path / "german.yaml")
    )
    assert list(found["per_class"]) == ["Himmel", "Straße", "Auto"]
    assert found["confusion_matrix"] == drawn.matrix.matrix.tolist()
    with pytest.raises(InputError, match="21 classes; expected 3"):
        metrics_of(predictions, tmp_path / "manifest", tmp_path / "other", label_set="voc")


def test_split(tmp_path: Path) -> None:
    """The predictions' split; a name that nothing has is refused with those that are there."""
    drawn = Drawn(tmp_path / "data")
    for name, folder in (("a", "val"), ("b", None)):
        drawn.predict(tmp_path / name, split=folder)
    assert metrics_of(tmp_path / "a", drawn.root, tmp_path / "out", split="val")["pictures"]["ok"] == 6
    with pytest.raises(InputError, match="no prediction is of split 'test'.*val: 6"):
        metrics_of(tmp_path / "a", drawn.root, tmp_path / "other", split="test")
    assert not (tmp_path / "other").exists()


def test_some_labels_missing_broken_or_of_another_size(tmp_path: Path) -> None:
    """Counted and listed, not silently dropped; the rest is scored."""
    drawn = Drawn(tmp_path / "data")
    masks = drawn.root / "masks"
    (masks / "scene 000.png").unlink()
    (masks / "scene 001.png").write_bytes(b"no picture")
    Image.new("L", (WIDTH * 2, HEIGHT)).save(masks / "scene 002.png")
    Image.new("L", (WIDTH, HEIGHT)).save(masks / "scene 099.png")  # belongs to no prediction
    found = metrics_of(drawn.predict(tmp_path / "segment", root=""), masks, tmp_path / "evaluate")
    assert found["pictures"] == {
        "ok": 3,
        "not_predicted": 0,
        "label_missing": 1,
        "label_error": 1,
        "size_mismatch": 1,
    }
    assert [row["path"] for row in found["problems"]] == [f"scene 00{i}.jpg" for i in range(3)]
    assert "32 x 12, the mask 16 x 12" in found["problems"][2]["error"]
    assert found["labels_without_prediction"] == 1
    kept = {name: truth for name, truth in drawn.truth.items() if name > "scene 002"}
    drawn.truth = kept
    assert found["confusion_matrix"] == drawn.matrix.matrix.tolist()
    page = (tmp_path / "evaluate" / "report.html").read_text()
    assert "without label" in page and "label is 32 x 12" in page


# ---- the output folder -----------------------------------------------------------------------------------------------


def test_again_resumes_or_says_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = Drawn(tmp_path / "data")
    predictions, output = drawn.predict(tmp_path / "segment"), tmp_path / "evaluate"
    config = EvaluateConfig(str(predictions), str(drawn.root), str(output))
    evaluate(config)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert evaluate(config).startswith("complete: mIoU")
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    # as after a kill: some parts are there, the rest is not; only the rest is scored (its labels are gone by then)
    first = json.loads((output / "metrics.json").read_text())
    for name in ("_SUCCESS", "metrics.json", "report.html"):
        (output / name).unlink()
    for file in (drawn.root / "masks").iterdir():
        file.unlink()
    assert evaluate(config).endswith("report.html")
    assert json.loads((output / "metrics.json").read_text()) == first
    with pytest.raises(InputError, match="another run: result differs in split"):
        drawn.predict(tmp_path / "other", split="val")
        evaluate(EvaluateConfig(str(predictions), str(drawn.root), str(output), split="val"))


def test_each_row_is_in_one_unit(tmp_path: Path) -> None:
    """Units over many files and row groups: every row once, in batches of the right rows."""
    files = []
    for number, count in enumerate((0, 1, 33, 700, 5)):
        file = tmp_path / f"{number}.parquet"
        table = pa.table({"id": pa.array(range(1000 * number, 1000 * number + count), pa.int64())})
        pq.write_table(table, file, row_group_size=90)
        files.append(str(file))
    units = plan_units(files)
    assert len(units) == 739 // 64 + 1
    found = [i for unit in units for batch in read_rows(unit, ["id"]) for i in batch["id"].to_pylist()]
    assert found == [1000 * n + i for n, count in enumerate((0, 1, 33, 700, 5)) for i in range(count)]
    assert plan_units(files[:1]) == []


def test_tallies_merge_to_the_whole(tmp_path: Path) -> None:
    drawn = Drawn(tmp_path / "data")
    metrics_of(drawn.predict(tmp_path / "segment"), drawn.root, tmp_path / "evaluate")
    rows = pq.read_table(tmp_path / "evaluate" / "pictures")
    whole = Accumulator(3).add(rows, ["city"])
    parts = [Accumulator(3).add(rows.slice(i, 2), ["city"]) for i in (4, 0, 2)]
    merged = Accumulator(3)
    for part in parts:
        merged.merge(Accumulator.from_json(json.loads(json.dumps(part.to_json()))))
    left, right = whole.to_json(), merged.to_json()
    assert {key: left[key] for key in left if key != "groups"} == {key: right[key] for key in right if key != "groups"}
    assert {c: dict(sorted(g.items())) for c, g in left["groups"].items()} == {
        c: dict(sorted(g.items())) for c, g in right["groups"].items()
    }
    assert [row["miou"] for row in whole.worst] == sorted(rows["miou"].to_pylist())


def test_index_of_many_labels(tmp_path: Path) -> None:
    """Found are exactly those that are there; of two suffixes the lossless first one counts."""
    for i in range(300):
        (tmp_path / f"{i}.png").write_bytes(b"")
    (tmp_path / "7.gif").write_bytes(b"")
    index = build_index(build_manifest(str(tmp_path), str(tmp_path / "m")))
    found = find_labels(index, [key_of_path(f"{i}.jpg") for i in range(-5, 300)])
    assert found == [None] * 5 + [str(tmp_path / f"{i}.png") for i in range(300)]
    assert find_labels(index.slice(0, 0), [key_of_path("1.jpg")]) == [None]


def test_s3(tmp_path: Path, s3: Any) -> None:
    """Predictions, labels and output in a bucket; the same numbers."""
    drawn = Drawn(tmp_path / "data")
    predictions = drawn.predict(tmp_path / "segment")
    for folder in (predictions, drawn.root):
        for path in folder.rglob("*"):
            if path.is_file():
                storage.write_bytes(s3.uri(folder.name, str(path.relative_to(folder))), path.read_bytes())
    found = metrics_of(s3.uri("segment"), s3.uri("data"), s3.uri("evaluate"))
    assert found["confusion_matrix"] == drawn.matrix.matrix.tolist()
    assert {"_SUCCESS", "metrics.json", "metrics.parquet", "groups.parquet", "report.html", "pictures"} <= set(
        folders.list_names(s3.uri("evaluate"))
    )
    assert "_stop" not in folders.list_names(s3.uri("evaluate"))


def test_camvid_labels(camvid_subset: Callable[..., Path], tmp_path: Path) -> None:
    """Real labels with void pixels: shifted by three columns, the figures are those of the shifted arrays."""
    root, camvid = camvid_subset(train=1, val=4), load_label_set("camvid")
    expected = ConfusionMatrix(11)
    rows = []
    for i, file in enumerate(sorted((root / "valannot").iterdir())):
        truth, unknown, *_ = camvid.encode(np.asarray(Image.open(file)))
        assert not unknown
        mask = np.roll(truth, 3, axis=1)
        expected.update(truth, mask)
        path = f"val/{file.stem}.jpg"
        rows.append(
            {"region_id": i, "region_key": region_key(path), "path": path, "uri": str(root / path), "status": "ok"}
            | {"height": truth.shape[0], "width": truth.shape[1], "mask": mask.tobytes(), "mask_dtype": "uint8"}
            | {"split": "val"}
        )
    table_schema = schema.predictions_schema([schema.MANIFEST.field("split")], metadata(camvid, "a", "b"))
    (tmp_path / "segment" / "predictions").mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pylist(rows, schema=table_schema), tmp_path / "segment" / "predictions" / "ok-0001-a.parquet"
    )
    found = metrics_of(tmp_path / "segment", root, tmp_path / "evaluate", split="val")
    assert found["confusion_matrix"] == expected.matrix.tolist()
    assert found["unpredicted"] == expected.unpredicted.tolist() and sum(found["unpredicted"]) > 0
    assert 0.5 < found["miou"] < 0.95
    page = (tmp_path / "evaluate" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8 and page.count("data:image/png;base64,") == 8
