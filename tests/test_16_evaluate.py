"""The evaluate job on small drawn predictions, on CamVid's labels, on S3, and on everything that can be wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import charts, folders, report, schema, storage
from pipeline.errors import InputError
from pipeline.evaluate import EvaluateConfig, evaluate
from pipeline.labels import LabelSet, load_label_set
from pipeline.manifest import region_key
from pipeline.manifest_writer import build_manifest
from pipeline.metrics import ConfusionMatrix
from pipeline.prediction_table import metadata
from pipeline.predictions import Predictions, plan_units, read_rows
from pipeline.tally import Tally
from pipeline.truth import build_index, find_labels, key_of_path

SET = LabelSet("drawn", ("sky", "road", "car"), ((90, 160, 220), (80, 80, 80), (200, 30, 30)), {}, (255,))
HEIGHT, WIDTH = 12, 16


class Drawn:
    """A collection `images/*.jpg` with `masks/*.png` beside it, and predictions that miss by a known share."""

    def __init__(self, root: Path, count: int = 6, label_set: LabelSet = SET, seed: int = 0) -> None:
        self.root, self.label_set = root, label_set
        random = np.random.default_rng(seed)
        self.truth: dict[str, np.ndarray] = {}
        self.masks: dict[str, np.ndarray | None] = {}
        for i in range(count):
            name = f"scene {i:03d}"
            truth = np.repeat(random.integers(0, label_set.num_classes, (HEIGHT // 4, WIDTH)), 4, axis=0)
            truth = np.where(random.random(truth.shape) < 0.05, label_set.ignore_value, truth)
            wrong = random.integers(0, label_set.num_classes, truth.shape)
            mask = np.where(random.random(truth.shape) < 0.1 * i, wrong, truth % label_set.num_classes)
            self.truth[name] = truth.astype(label_set.mask_dtype)
            self.masks[name] = mask.astype(label_set.mask_dtype)
        for folder in ("images", "masks"):
            (root / folder).mkdir(parents=True)
        for name, truth in self.truth.items():
            Image.fromarray(random.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(root / "images" / f"{name}.jpg")
            Image.fromarray(truth).save(root / "masks" / f"{name}.png")

    @property
    def matrix(self) -> ConfusionMatrix:
        """What an evaluation of all of it must find."""
        whole = ConfusionMatrix(self.label_set.num_classes)
        for name, truth in self.truth.items():
            whole.update(truth, self.masks[name], self.label_set.ignore_value)
        return whole

    def predict(self, output: Path, *, files: int = 2, root: str = "images/", split: str | None = None) -> Path:
        """Predictions as the segment job leaves them, `files` of them and one of failed rows."""
        city = pa.field("city", pa.string())
        table_schema = schema.predictions_schema(
            [schema.MANIFEST.field("split"), city], metadata(self.label_set, "weights", "pictures")
        )
        rows: list[dict[str, Any]] = []
        for i, (name, mask) in enumerate(self.masks.items()):
            row = {
                "region_id": i,
                "region_key": region_key(f"{root}{name}.jpg"),
                "path": f"{root}{name}.jpg",
                "uri": str(self.root / "images" / f"{name}.jpg"),
                "split": split,
                "city": ["Bern", "Ulm"][i % 2],
                "height": HEIGHT,
                "width": WIDTH,
                "status": "ok" if mask is not None else "decode_error",
                "error": None if mask is not None else "DecodeError: not a picture",
                "mask": None if mask is None else mask.tobytes(),
                "mask_dtype": None if mask is None else self.label_set.mask_dtype,
            }
            rows.append(row)
        (output / "predictions").mkdir(parents=True)
        for number in range(files):
            part = pa.Table.from_pylist(rows[number::files], schema=table_schema)
            pq.write_table(part, output / "predictions" / f"ok-0001-{number:04d}.parquet", row_group_size=2)
        return output


@pytest.fixture
def drawn(tmp_path: Path) -> Drawn:
    return Drawn(tmp_path / "data")


def run(predictions: Path | str, labels: Path | str, output: Path | str, **options: Any) -> dict[str, Any]:
    """The job in this process; what metrics.json holds."""
    evaluate(EvaluateConfig(str(predictions), str(labels), str(output), **options))
    found: dict[str, Any] = storage.read_json(storage.join(str(output), "metrics.json"))
    return found


# ---- the join and the sums -------------------------------------------------------------------------------------------


def test_labelled_collection(drawn: Drawn, tmp_path: Path, ray_session: None) -> None:
    """By region key; everything that is left agrees with the matrix made by hand."""
    drawn.masks["scene 004"] = None
    predictions, output = drawn.predict(tmp_path / "segment"), tmp_path / "evaluate"
    found = run(predictions, drawn.root, output)
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


def test_folder_of_label_files_by_path(drawn: Drawn, tmp_path: Path, ray_session: None) -> None:
    predictions = drawn.predict(tmp_path / "segment", root="")
    found = run(predictions / "predictions", drawn.root / "masks", tmp_path / "evaluate")
    assert found["confusion_matrix"] == drawn.matrix.matrix.tolist()
    assert found["ignored"] == drawn.matrix.ignored


def test_manifest_and_label_set_from_a_file(drawn: Drawn, tmp_path: Path, ray_session: None) -> None:
    """`--label-set` may rename the classes and say what raw values mean; the number of classes must fit."""
    for file in (drawn.root / "masks").iterdir():
        raw = np.asarray(Image.open(file))
        Image.fromarray(np.where(raw == 255, 0, raw + 7).astype(np.uint8)).save(file)
    build_manifest(str(drawn.root), str(tmp_path / "manifest"))
    classes = [{"name": name} for name in ("Himmel", "Straße", "Auto")]
    text = {"name": "german", "classes": classes, "remap": {7: 0, 8: 1, 9: 2}, "ignore": [0]}
    (tmp_path / "german.yaml").write_text(json.dumps(text))
    predictions = drawn.predict(tmp_path / "segment")
    found = run(predictions, tmp_path / "manifest", tmp_path / "evaluate", label_set=str(tmp_path / "german.yaml"))
    assert list(found["per_class"]) == ["Himmel", "Straße", "Auto"]
    assert found["confusion_matrix"] == drawn.matrix.matrix.tolist()
    with pytest.raises(InputError, match="21 classes; expected 3"):
        run(predictions, tmp_path / "manifest", tmp_path / "other", label_set="voc")


def test_split(drawn: Drawn, tmp_path: Path, ray_session: None) -> None:
    """The predictions' split; a name that nothing has is refused with those that are there."""
    for name, folder in (("a", "val"), ("b", None)):
        drawn.predict(tmp_path / name, split=folder)
    assert run(tmp_path / "a", drawn.root, tmp_path / "out", split="val")["pictures"]["ok"] == 6
    with pytest.raises(InputError, match="no prediction is of split 'test'.*val: 6"):
        run(tmp_path / "a", drawn.root, tmp_path / "other", split="test")
    assert not (tmp_path / "other").exists()


def test_some_labels_missing_broken_or_of_another_size(drawn: Drawn, tmp_path: Path, ray_session: None) -> None:
    """Counted and listed, not silently dropped; the rest is scored."""
    masks = drawn.root / "masks"
    (masks / "scene 000.png").unlink()
    (masks / "scene 001.png").write_bytes(b"no picture")
    Image.new("L", (WIDTH * 2, HEIGHT)).save(masks / "scene 002.png")
    Image.new("L", (WIDTH, HEIGHT)).save(masks / "scene 099.png")  # belongs to no prediction
    found = run(drawn.predict(tmp_path / "segment", root=""), masks, tmp_path / "evaluate")
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


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_no_label_matches(drawn: Drawn, tmp_path: Path, ray_session: None) -> None:
    predictions = drawn.predict(tmp_path / "segment", root="other/")
    with pytest.raises(InputError, match=r"no label belongs.*'scene 000.png'.*'other/scene 000.jpg'.*path without"):
        run(predictions, drawn.root / "masks", tmp_path / "deep" / "evaluate")
    with pytest.raises(InputError, match="compared by region key"):
        run(predictions, drawn.root, tmp_path / "deep" / "evaluate")
    assert not (tmp_path / "deep").exists()


def test_label_value_outside_the_set(tmp_path: Path, ray_session: None) -> None:
    """Among units that have written already and others that still run: nothing of them stays."""
    drawn = Drawn(tmp_path / "data", count=200)
    label = drawn.root / "masks" / "scene 130.png"
    raw = np.asarray(Image.open(label)).copy()
    raw[0, :5] = 77
    Image.fromarray(raw).save(label)
    predictions = drawn.predict(tmp_path / "segment")
    assert len(Predictions.open(str(predictions)).units) == 4
    with pytest.raises(InputError, match=r"scene 130\.png; found 77 in 5 pixels"):
        run(predictions, drawn.root, tmp_path / "evaluate")
    assert not (tmp_path / "evaluate").exists()
    Image.fromarray(drawn.truth["scene 130"]).save(label)
    assert run(predictions, drawn.root, tmp_path / "evaluate")["confusion_matrix"] == drawn.matrix.matrix.tolist()


def test_every_label_of_another_size(drawn: Drawn, tmp_path: Path, ray_session: None) -> None:
    for file in (drawn.root / "masks").iterdir():
        Image.new("L", (5, 5)).save(file)
    with pytest.raises(InputError, match="all 6 are with a label of another size.*5 x 5"):
        run(drawn.predict(tmp_path / "segment"), drawn.root, tmp_path / "evaluate")
    assert not (tmp_path / "evaluate").exists()


def test_predictions_that_are_none(drawn: Drawn, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no predictions found"):
        run(tmp_path / "nowhere", drawn.root, tmp_path / "evaluate")
    (tmp_path / "strange" / "predictions").mkdir(parents=True)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "strange" / "predictions" / "x.parquet")
    with pytest.raises(InputError, match="not the predictions of this project"):
        run(tmp_path / "strange", drawn.root, tmp_path / "evaluate")
    with pytest.raises(InputError, match="source does not exist"):
        run(drawn.predict(tmp_path / "segment"), tmp_path / "no labels", tmp_path / "evaluate")
    assert not (tmp_path / "evaluate").exists()


# ---- the output folder -----------------------------------------------------------------------------------------------


def test_again_resumes_or_says_complete(
    drawn: Drawn, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_tallies_merge_to_the_whole(drawn: Drawn, tmp_path: Path, ray_session: None) -> None:
    run(drawn.predict(tmp_path / "segment"), drawn.root, tmp_path / "evaluate")
    rows = pq.read_table(tmp_path / "evaluate" / "pictures")
    whole = Tally(3).add(rows, ["city"])
    parts = [Tally(3).add(rows.slice(i, 2), ["city"]) for i in (4, 0, 2)]
    merged = Tally(3)
    for part in parts:
        merged.merge(Tally.from_json(json.loads(json.dumps(part.to_json()))))
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


def test_s3(drawn: Drawn, tmp_path: Path, ray_session: None, s3: Any) -> None:
    """Predictions, labels and output in a bucket; the same numbers."""
    predictions = drawn.predict(tmp_path / "segment")
    for folder in (predictions, drawn.root):
        for path in folder.rglob("*"):
            if path.is_file():
                storage.write_bytes(s3.uri(folder.name, str(path.relative_to(folder))), path.read_bytes())
    found = run(s3.uri("segment"), s3.uri("data"), s3.uri("evaluate"))
    assert found["confusion_matrix"] == drawn.matrix.matrix.tolist()
    assert {"_SUCCESS", "metrics.json", "metrics.parquet", "groups.parquet", "report.html", "pictures"} <= set(
        folders.list_names(s3.uri("evaluate"))
    )
    assert "_stop" not in folders.list_names(s3.uri("evaluate"))


def test_camvid_labels(camvid_subset: Callable[..., Path], tmp_path: Path, ray_session: None) -> None:
    """Real labels with void pixels: shifted by three columns, the figures are those of the shifted arrays."""
    root, camvid = camvid_subset(train=1, val=4), load_label_set("camvid")
    expected = ConfusionMatrix(11)
    rows = []
    for i, file in enumerate(sorted((root / "valannot").iterdir())):
        truth, unknown = camvid.encode(np.asarray(Image.open(file)))
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
    found = run(tmp_path / "segment", root, tmp_path / "evaluate", split="val")
    assert found["confusion_matrix"] == expected.matrix.tolist()
    assert found["unpredicted"] == expected.unpredicted.tolist() and sum(found["unpredicted"]) > 0
    assert 0.5 < found["miou"] < 0.95
    page = (tmp_path / "evaluate" / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 8 and page.count("data:image/png;base64,") == 8


# ---- the page --------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Collects what a browser would load, and checks that tags are closed."""

    VOID = {"meta", "img", "br", "wbr", "rect", "line"}

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self._texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        assert tag not in ("script", "link", "iframe")
        if tag not in self.VOID or (tag == "rect" and not self.get_starttag_text().endswith("/>")):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID or tag == "rect":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self._texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self._texts)


def page_of(num_classes: int, **changes: Any) -> report.Page:
    random = np.random.default_rng(num_classes)
    names = tuple(f"<i>&class {i}" for i in range(num_classes))
    colors = tuple((i % 256, 0, 255 - i % 256) for i in range(num_classes))
    matrix = random.integers(0, 50, (num_classes, num_classes))
    matrix[0], matrix[:, 0] = 0, 0  # one class is absent
    values: dict[str, Any] = {
        "title": "s3://bucket/<script>alert(1)</script>",
        "label_set": LabelSet("set", names, colors),
        "matrix": ConfusionMatrix.from_counts(matrix),
        "counts": {"scored": 1200, "not predicted": 3},
        "facts": {"Labels": "<b>&"},
        "created": "today",
    }
    return report.Page(**(values | changes))


@pytest.mark.parametrize("num_classes", [1, 2, 11, 61, 150])
def test_report_stands_alone(num_classes: int) -> None:
    text = report.render(page_of(num_classes))
    page = Page()
    page.feed(text)
    assert not page.open and not page.loads
    assert not re.search(r"url\(|@import|https?://", text)
    assert "<script>" not in text and "<i>&class" not in text
    assert f"mIoU over {max(0, num_classes - 1)} of {num_classes} classes" in page.text
    assert "absent from truth and prediction" in page.text and not re.search(r"\bnan\b", page.text, re.IGNORECASE)
    assert len(text) < 5_000_000  # of 150 classes all confused with each other


def test_report_shows_exact_counts_and_the_worst() -> None:
    names = ("a", "b")
    labels = LabelSet("two", names, ((0, 0, 0), (255, 255, 255)))
    matrix = ConfusionMatrix.from_counts(np.array([[12345, 55], [0, 7]]), np.array([0, 3]))
    truth = np.array([[0, 1, 255], [1, 1, 0]], np.uint8)
    example = report.Example("folder/<x>.png", 0.25, 0.5, truth, truth, np.zeros((2, 3, 3), np.uint8), "mostly a")
    text = report.render(page_of(2, label_set=labels, matrix=matrix, examples=[example], histogram=[0, 3, 0, 1]))
    assert "truth a, predicted b: 55 px" in text and "truth b, no prediction: 3 px, 30.0 % of the row" in text
    assert "12,345 px" in text and "&lt;x&gt;.png" in text
    page = Page()
    page.feed(text)
    assert [source[:22] for source in page.loads] == ["data:image/jpeg;base64", "data:image/png;base64,"] + [
        "data:image/png;base64,",
        "data:image/jpeg;base64",
    ]
    gone = report.render(
        page_of(2, label_set=labels, matrix=matrix, examples=[report.Example("x", None, None, truth, truth)])
    )
    assert "picture not to be had" in gone


def test_percentages_do_not_round_away() -> None:
    assert [charts.percent(x) for x in (0.0, 1.0, 0.5, 0.0004, 0.000001)] == [
        "0.0 %",
        "100.0 %",
        "50.0 %",
        "0.04 %",
        "< 0.001 %",
    ]
