"""Reading predictions: as rows, Arrow, pandas and torch; and the blocks of docs/reading.md, run."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest
from torch.utils.data import DataLoader

from pipeline import PredictionsDataset, predictions_dataset, predictions_frame, read_predictions
from pipeline.catalog import schema
from pipeline.catalog.manifest import region_key
from pipeline.errors import InputError
from pipeline.labels import CAMVID
from pipeline.tables.masks import MASK_FORMATS, encode_mask
from pipeline.tables.prediction_table import metadata
from pipeline.tables.sink import Sink, write_rows

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "reading.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


def class_map(i: int) -> np.ndarray:
    return (np.arange((3 + i) * 4, dtype=np.uint8) % 11).reshape(3 + i, 4)


def probabilities(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (11, 3 + i, 4), dtype=np.uint8)


def confidence(i: int) -> np.ndarray:
    return probabilities(i).max(0)


def write(output: str, mask_format: str = "raw") -> str:
    """Ten regions in four files, out of order; the regions 4 and 9 have failed."""
    sink = Sink(output, lambda: None)
    for ids in ([7, 2], [0, 1, 3], [5, 6, 8], [4, 9]):
        rows = []
        for i in ids:
            ok = i not in (4, 9)
            rows.append(
                {
                    "region_id": i,
                    "region_key": region_key(f"{i}.jpg"),
                    "path": f"{i}.jpg",
                    "uri": f"/c/{i}.jpg",
                    "status": "ok" if ok else "decode_error",
                    "error": None if ok else "broken",
                    "height": 3 + i,
                    "width": 4,
                    "mask": encode_mask(class_map(i), mask_format) if ok else None,
                    "mask_dtype": "uint8" if ok else None,
                    "mask_format": mask_format if ok else None,
                    "confidence": confidence(i).tobytes() if ok else None,
                    "probabilities": probabilities(i).tobytes() if ok else None,
                    "class_pixels": np.bincount(class_map(i).ravel(), minlength=11).tolist() if ok else None,
                    "mean_confidence": i / 10 if ok else None,
                    "low_confidence_share": 0.1 if ok else None,
                }
            )
        table = pa.Table.from_pylist(rows, schema.predictions_schema(metadata=metadata(CAMVID, "r", "m")))
        sink.publish(write_rows(table, sink.attempt_uri))
    sink.publish_failed()
    return output


@pytest.fixture
def output(tmp_path: Path) -> str:
    return write(str(tmp_path / "run"))


@pytest.mark.parametrize("mask_format", MASK_FORMATS)
def test_every_reader_gives_the_masks_that_were_written(tmp_path: Path, mask_format: str) -> None:
    uri = write(str(tmp_path / "run"), mask_format)
    by_row = {row["path"]: row["mask"] for row in read_predictions(uri, ["path", "mask"])}
    frame = predictions_frame(uri, ["path", "mask"])
    by_torch = {row["path"]: row["mask"].numpy() for row in PredictionsDataset(uri)}
    assert list(frame["path"]) == [f"{i}.jpg" for i in range(10)] and list(frame.columns) == ["path", "mask"]
    for i in range(10):
        for found in (by_row[f"{i}.jpg"], frame["mask"][i], by_torch.get(f"{i}.jpg")):
            if i in (4, 9):
                assert found is None
            else:
                np.testing.assert_array_equal(found, class_map(i))


def test_every_reader_gives_confidence_and_probabilities(output: str) -> None:
    columns = ["path", "confidence", "probabilities"]
    by_row = {row["path"]: row for row in read_predictions(output, columns)}
    by_frame = {row.path: row._asdict() for row in predictions_frame(output, columns).itertuples()}
    by_torch = {row["path"]: row for row in PredictionsDataset(output, columns)}
    assert "4.jpg" not in by_torch and by_row["4.jpg"]["probabilities"] is by_frame["4.jpg"]["probabilities"] is None
    for found in (by_row["7.jpg"], by_frame["7.jpg"], by_torch["7.jpg"]):
        np.testing.assert_array_equal(found["confidence"], confidence(7))
        np.testing.assert_array_equal(found["probabilities"], probabilities(7))


def test_a_frame_leaves_masks_unread_and_takes_a_filter(output: str) -> None:
    assert "mask" not in predictions_frame(output).columns
    sure = predictions_frame(output, ["path"], where=pyarrow.dataset.field("mean_confidence") > 0.55)
    assert list(sure["path"]) == ["6.jpg", "7.jpg", "8.jpg"]


def test_on_s3(s3) -> None:
    uri = write(s3.uri("run"))
    assert predictions_dataset(uri).count_rows() == 10
    assert len(list(PredictionsDataset(uri))) == 8


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_and_workers_share_the_regions_out(output: str, num_shards: int, num_workers: int) -> None:
    paths = []
    for shard in range(num_shards):
        data = PredictionsDataset(output, ["path"], shard=shard, num_shards=num_shards)
        paths += [row["path"] for row in DataLoader(data, batch_size=None, num_workers=num_workers)]
    assert sorted(paths) == [f"{i}.jpg" for i in range(10) if i not in (4, 9)]


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda uri: predictions_frame(uri + "/nowhere"), "no predictions found"),
        (lambda uri: PredictionsDataset(uri + "/nowhere"), "no predictions found"),
        (lambda uri: predictions_frame(uri, ["maks"]), "no column 'maks'"),
        (lambda uri: PredictionsDataset(uri, shard=2, num_shards=2), "shard out of range; found 2 of 2"),
    ],
)
def test_bad_arguments_are_named(output: str, read, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(output)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_documents_examples_run(output: str, block: str, capsys) -> None:
    exec(compile(block, str(DOCUMENT), "exec"), {"OUTPUT": output})
    printed = capsys.readouterr().out
    assert printed.strip()
    if "class_id" in block:  # the shares of the counts above
        pixels = sum(np.bincount(class_map(i).ravel(), minlength=11) for i in range(10) if i not in (4, 9))
        assert f"{pixels[0] / pixels.sum():.6f}"[:6] in printed
