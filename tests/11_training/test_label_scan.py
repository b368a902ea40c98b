"""The look at all labels before the first step: counts, and what must not be trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import Finished
from light_and_dark import LABELS, draw_collection
from PIL import Image

from pipeline.errors import InputError
from pipeline.labels import ROADS, VOC, LabelSet, load_label_set
from pipeline.reading.regions import ReadOptions
from pipeline.training.label_scan import LabelScan, require_every_class, require_labels, scan_labels

OPTIONS = ReadOptions(fetch_retry_s=0)
RUNNERS = pytest.mark.parametrize("on_ray", [False, True], ids=["here", "on Ray"])


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    return draw_collection(tmp_path / "data")


def labels_of(folder: Path) -> pa.Table:
    """Rows of a manifest for the label files in a folder."""
    names = ["region_id", "path", "uri", "label_uri"]
    return pa.Table.from_pylist(
        [
            dict(zip(names, (i, file.name, str(file), str(file)), strict=True))
            for i, file in enumerate(sorted(folder.iterdir()))
        ]
    )


def save(folder: Path, *arrays: np.ndarray) -> pa.Table:
    folder.mkdir()
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i}.png")
    return labels_of(folder)


@RUNNERS
def test_pixels_are_counted_and_unreadable_files_named(ray_session: None, collection: Path, on_ray: bool) -> None:
    (collection / "trainannot" / "002.png").write_bytes(b"no picture")
    scan = scan_labels(labels_of(collection / "trainannot"), LABELS, OPTIONS, on_ray=on_ray)
    assert scan.files == 7 and scan.unreadable_ids == [2] and "002.png" in scan.unreadable[0]
    assert sum(scan.class_pixels) == 7 * 39 * 48 and scan.ignored_pixels == 7 * 48
    assert scan.void == {"255": 7 * 48}
    assert LabelScan.from_json(json.loads(json.dumps(scan.to_json()))) == scan


@RUNNERS
def test_an_unknown_value_ends_the_run(ray_session: None, collection: Path, on_ray: bool) -> None:
    wrong = np.zeros((40, 48), np.uint8)
    wrong[:3] = 9
    Image.fromarray(wrong).save(collection / "trainannot" / "004.png")
    with pytest.raises(InputError, match=r"004\.png.*value 9 in 144 pixels.*0\.\.1, 255"):
        scan_labels(labels_of(collection / "trainannot"), LABELS, OPTIONS, on_ray=on_ray)


def test_masks_of_0_and_255_and_the_advice_for_them(tmp_path: Path) -> None:
    mask = np.zeros((4, 4), np.uint8)
    mask[0] = 255
    table = save(tmp_path / "masks", mask, mask)
    with pytest.raises(InputError, match="1 of 2 classes.*road.*255 taken for void in 8 pixels") as caught:
        require_every_class(scan_labels(table, ROADS, OPTIONS, on_ray=False), ROADS, "masks")
    lines = re.findall("`([^`]+)`", str(caught.value))
    (tmp_path / "labels.yaml").write_text("\n".join(lines))
    mended = load_label_set(str(tmp_path / "labels.yaml"))
    scan = scan_labels(table, mended, OPTIONS, on_ray=False)
    assert scan.class_pixels == [24, 8] and not scan.void
    require_every_class(scan, mended, "masks")


def test_void_values_without_number_are_bounded(tmp_path: Path) -> None:
    """As in colour labels that were saved as JPEG."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    label_set = LabelSet("two", ("a", "b"), ((1, 1, 1), (2, 2, 2)), ignore_other_colors=True)
    scan = scan_labels(save(tmp_path / "masks", noise, noise[::-1] // 2), label_set, OPTIONS, on_ray=False)
    assert scan.ignored_pixels > 8000 and len(scan.void) <= 256


def test_void_colours_of_colour_files(tmp_path: Path) -> None:
    """VOC's border is void, another colour is an error, and the advice of the error works."""
    colors = np.zeros((4, 4, 3), np.uint8)  # background is black there
    colors[0] = VOC.colors[15]
    colors[1] = (224, 224, 192)
    table = save(tmp_path / "good", colors)
    scan = scan_labels(table, VOC, OPTIONS, on_ray=False)
    assert scan.class_pixels[15] == 4 and scan.class_pixels[0] == 8 and scan.void == {"#e0e0c0": 4}
    colors[2] = (1, 2, 3)
    table = save(tmp_path / "odd", colors)
    with pytest.raises(InputError, match=r"colour \[1, 2, 3\] in 4 pixels.*ignore_colors.*ignore_other_colors: true"):
        scan_labels(table, VOC, OPTIONS, on_ray=False)
    text = VOC.to_json()
    for advice in ({"ignore_colors": [[224, 224, 192], [1, 2, 3]]}, {"ignore_other_colors": True}):
        mended = LabelSet.from_json({**text, **advice})
        assert LabelSet.from_json(json.loads(json.dumps(mended.to_json()))) == mended
        scan = scan_labels(table, mended, OPTIONS, on_ray=False)
        assert scan.void == {"#e0e0c0": 4, "#010203": 4}


def test_a_class_without_a_pixel_is_not_trained(tmp_path: Path) -> None:
    """Masks of 0 and 255 with a label set in which 255 is void: the message says what 255 was taken for."""
    masks = np.zeros((10, 10), np.uint8)
    masks[:3] = 255
    scan = scan_labels(save(tmp_path / "masks", masks, masks), ROADS, OPTIONS, on_ray=False)
    with pytest.raises(
        InputError, match=r"1 of 2 classes have no pixel.*: road.*255 taken for void in 60 pixels.*--allow"
    ):
        require_every_class(scan, ROADS, "s3://masks")


def test_labels_of_nothing_but_void_are_no_labels(tmp_path: Path) -> None:
    scan = scan_labels(save(tmp_path / "void", np.full((5, 5), 255, np.uint8)), ROADS, OPTIONS, on_ray=False)
    with pytest.raises(InputError, match="every label pixel for validation is void.*255 taken for void in 25 pixels"):
        require_labels(scan, "validation", "s3://masks")
    with pytest.raises(InputError, match="no readable label file for training"):
        require_labels(LabelScan([0, 0], unreadable=["a.png: broken"]), "training", "s3://masks")


def test_training_refuses_and_may_be_told_otherwise(
    collection: Path, tmp_path: Path, run_job: Callable[..., Finished]
) -> None:
    """The whole job: exit 2 and nothing left, until the option says that it is meant."""
    label_set = tmp_path / "three.yaml"
    text = LABELS.to_json()
    label_set.write_text(json.dumps({**text, "classes": [*text["classes"], {"name": "absent", "color": [9, 9, 9]}]}))
    output = tmp_path / "run"
    arguments = ["--source", collection, "--output", output, "--label-set", label_set, "--crop", "32,32"]
    arguments += ["--batch-size", 2, "--max-steps", 1, "--model", "unet?width=0.1", "--fetch-retry-s", 0]
    refused = run_job("train", *arguments)
    assert refused.code == 2 and "1 of 3 classes have no pixel in the training labels: absent" in refused.error
    assert not output.exists()
    trained = run_job("train", *arguments, "--allow-absent-classes")
    assert trained.code == 0, trained.stderr
    for file in (collection / "valannot").iterdir():
        Image.fromarray(np.full((40, 48), 255, np.uint8)).save(file)
    refused = run_job("train", *arguments, "--allow-absent-classes", "--overwrite")
    assert refused.code == 2 and "every label pixel for validation is void" in refused.error
    assert json.loads((output / "history.json").read_text())[-1]["step"] == 1  # the run before is still there
