"""The sink: each region once, whatever was left lying about."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import read_predictions, storage
from pipeline.catalog import schema
from pipeline.catalog.manifest import region_key
from pipeline.errors import InputError, PipelineError
from pipeline.labels import CAMVID
from pipeline.storage import folders
from pipeline.tables.prediction_table import metadata, predictions_metadata
from pipeline.tables.sink import Sink, write_rows


@pytest.fixture(params=["local", "s3"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "out")
    return str(request.getfixturevalue("s3").uri("out"))


def table(ids: Iterable[int], status: str = "ok", error: str | None = None) -> pa.Table:
    rows = [
        {
            "region_id": i,
            "region_key": region_key(f"{i}.jpg"),
            "path": f"{i}.jpg",
            "uri": f"/c/{i}.jpg",
            "status": status,
            "error": error,
            "height": 2,
            "width": 3,
            "mask": np.full((2, 3), i % 11, np.uint8).tobytes() if status == "ok" else None,
            "mask_dtype": "uint8",
        }
        for i in ids
    ]
    return pa.Table.from_pylist(rows, schema.predictions_schema(metadata=metadata(CAMVID, "r", "m")))


def always() -> None:
    pass


def public(output: str) -> list[tuple[int, str]]:
    return sorted((row["region_id"], row["status"]) for row in read_predictions(output))


def test_only_published_files_are_seen_and_counted(output: str) -> None:
    sink = Sink(output, always)
    seen = write_rows(table([0, 1]), sink.attempt_uri)
    write_rows(table([2, 3]), sink.attempt_uri)  # its driver dies before it hears of this
    sink.publish(seen)
    assert public(output) == [(0, "ok"), (1, "ok")]
    late = sink.attempt_uri
    again = Sink(output, always)
    assert again.committed(4).tolist() == [True, True, False, False]
    write_rows(table([2, 3]), late)  # a dead attempt's late write
    again.publish(write_rows(table([2, 3]), again.attempt_uri))
    again.audit(np.arange(4))
    again.finish()
    assert folders.list_names(output) == ["predictions"]
    assert len(public(output)) == 4


def test_failed_rows_are_published_last_and_the_newest_counts(output: str) -> None:
    sink = Sink(output, always)
    mixed = pa.concat_tables([table([0]), table([1], "fetch_error", "reset"), table([2], "decode_error", "broken")])
    sink.publish(write_rows(mixed, sink.attempt_uri))
    assert public(output) == [(0, "ok")]
    assert sink.committed(3).all()
    sink.publish(write_rows(table([1]), sink.attempt_uri))  # the last pass over what failed in passing
    assert sink.publish_failed() == 1
    assert public(output) == [(0, "ok"), (1, "ok"), (2, "decode_error")]
    sink.audit(np.arange(3))


def test_a_kill_while_failed_rows_are_published_leaves_nothing_twice(output: str) -> None:
    sink = Sink(output, always)
    sink.publish(write_rows(pa.concat_tables([table([0]), table([1, 2], "timeout", "slow")]), sink.attempt_uri))
    sink.publish_failed()  # and then the driver dies: held rows and public rows are the same
    again = Sink(output, always)
    assert public(output) == [(0, "ok")]
    again.publish(write_rows(table([1]), again.attempt_uri))
    again.publish_failed()
    again.audit(np.arange(3))
    assert public(output) == [(0, "ok"), (1, "ok"), (2, "timeout")]


def test_retry_failed_puts_success_in_the_place_of_failure(output: str) -> None:
    sink = Sink(output, always)
    sink.publish(write_rows(pa.concat_tables([table([0]), table([1, 2], "decode_error", "v1")]), sink.attempt_uri))
    sink.publish_failed()
    sink.finish()
    retried = Sink(output, always, retry_failed=True)
    assert retried.committed(3).tolist() == [True, False, False]
    second = pa.concat_tables([table([1]), table([2], "decode_error", "v2")])
    retried.publish(write_rows(second, retried.attempt_uri))
    retried.publish_failed()
    retried.audit(np.arange(3))
    rows = {row["region_id"]: row for row in read_predictions(output)}
    assert rows[1]["status"] == "ok" and rows[2]["error"] == "v2"


def test_a_retry_that_dies_loses_no_failed_row(output: str) -> None:
    sink = Sink(output, always)
    sink.publish(write_rows(pa.concat_tables([table([0]), table([1], "decode_error", "v1")]), sink.attempt_uri))
    sink.publish_failed()
    sink.finish()
    Sink(output, always, retry_failed=True)  # dies before it has done anything
    resumed = Sink(output, always)
    assert resumed.committed(2).all()
    resumed.publish_failed()
    resumed.audit(np.arange(2))


def test_nothing_is_committed_without_the_lease(output: str) -> None:
    def lost() -> None:
        raise PipelineError("lease lost")

    sink = Sink(output, always)
    sink._commit = lost
    with pytest.raises(PipelineError, match="lease lost"):
        sink.publish(write_rows(table([0]), sink.attempt_uri))
    assert public(output) == []


def test_the_audit_finds_what_is_missing_twice_or_foreign(output: str) -> None:
    sink = Sink(output, always)
    sink.publish(write_rows(table([0, 1]), sink.attempt_uri))
    sink.publish(write_rows(table([1, 7]), sink.attempt_uri))
    with pytest.raises(PipelineError, match="1 regions missing, 1 rows twice, 1 rows of no region"):
        sink.audit(np.arange(3))


def test_reading_back(output: str) -> None:
    sink = Sink(output, always)
    sink.publish(write_rows(table([5, 13]), sink.attempt_uri))
    for uri in (output, storage.join(output, "predictions")):
        masks = {row["region_id"]: row["mask"] for row in read_predictions(uri)}
        assert masks[5].shape == (2, 3) and (masks[13] == 2).all()
    assert [sorted(row) for row in read_predictions(output, columns=["path"])] == [["path"]] * 2
    assert predictions_metadata(output)["result_fingerprint"] == "r"
    with pytest.raises(InputError, match="do not exist"):
        next(read_predictions(storage.join(output, "nowhere")))


def test_any_parquet_reader_reads_the_folder(tmp_path: Path) -> None:
    sink = Sink(str(tmp_path), always)
    sink.publish(write_rows(pa.concat_tables([table([0]), table([1], "decode_error", "x")]), sink.attempt_uri))
    sink.publish_failed()
    assert pq.read_table(tmp_path / "predictions").num_rows == 2
