"""The sample plan and its streams: every sample once, in its place; labels scanned; pictures that cannot be read."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from light_and_dark import LABELS, draw, draw_collection

from pipeline.errors import PipelineError
from pipeline.reading.regions import ReadOptions, RegionReader
from pipeline.training.label_scan import class_weights
from pipeline.training.samples.augmentation import Augmentation
from pipeline.training.samples.loader import SampleLoader
from pipeline.training.samples.plan import COLUMNS, SamplePlan
from pipeline.training.samples.process_stream import read_steps
from pipeline.training.samples.ray_streams import StreamedSamples, validation_stream

OPTIONS = ReadOptions(fetch_retry_s=0)


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    return draw_collection(tmp_path / "data")


def rows(collection: Path, split: str) -> pa.Table:
    files = sorted((collection / split).iterdir())
    table = [
        {
            "region_id": i,
            "region_key": f"{i:032x}",
            "path": f"{split}/{file.name}",
            "uri": str(file),
            "kind": "picture",
            "size_bytes": file.stat().st_size,
            "version": None,
            "window": None,
            "frame": None,
            "label_uri": str(collection / f"{split}annot" / file.name),
        }
        for i, file in enumerate(files)
    ]
    return pa.Table.from_pylist(table).select(COLUMNS)


# ---- the sample plan -------------------------------------------------------------------------------------------------

PLANS = st.builds(
    lambda rows, each, workers, steps, seed: SamplePlan(rows, each * workers, workers, steps, seed),
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 60),
    st.integers(0, 9),
)


@settings(max_examples=60, deadline=None)
@given(plan=PLANS, data=st.data())
def test_a_stream_holds_every_step_once_and_gives_each_worker_its_own_blocks(plan: SamplePlan, data) -> None:
    first = data.draw(st.integers(0, plan.total_steps - 1))
    block_steps = plan.block_steps(first, sample_bytes=1000)
    length = plan.stream_rows(first, block_steps)
    block_rows = block_steps * plan.worker_batch
    assert length % (block_rows * plan.num_workers) == 0  # an equal split drops nothing
    of_worker: dict[int, list[tuple[int, int]]] = {worker: [] for worker in range(plan.num_workers)}
    for position in range(length):
        of_worker[position // block_rows % plan.num_workers].append(plan.place(position, first, block_steps))
    for step in range(first, plan.total_steps):
        # what the workers take together in their n-th batch is exactly the n-th step
        begin = (step - first) * plan.worker_batch
        taken = [place for places in of_worker.values() for place in places[begin : begin + plan.worker_batch]]
        assert {s for s, _ in taken} == {step}
        assert sorted(sample for _, sample in taken) == list(
            range(step * plan.batch_size, (step + 1) * plan.batch_size)
        )


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 50), seed=st.integers(0, 5))
def test_every_epoch_is_a_permutation_of_its_own(rows: int, seed: int) -> None:
    plan = SamplePlan(rows, 1, 1, 3 * rows, seed)
    epochs = [[plan.draw(epoch * rows + i) for i in range(rows)] for epoch in range(3)]
    for number, epoch in enumerate(epochs):
        assert {e for e, _ in epoch} == {number}
        assert sorted(row for _, row in epoch) == list(range(rows))
    if rows > 8:
        assert epochs[0] != [(0, row) for _, row in epochs[1]]


def test_epochs_end_after_their_last_sample() -> None:
    plan = SamplePlan(num_rows=10, batch_size=4, num_workers=1, total_steps=8)
    assert [plan.epoch_end(epoch) for epoch in range(4)] == [3, 5, 8, 8]


# ---- labels and their weights ----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20), st.sampled_from(["log", "sqrt", "inverse", "none"]))
def test_class_weights_are_one_over_the_pixels(pixels: list[int], kind: str) -> None:
    weights = np.array(class_weights(pixels, kind))
    counts = np.array(pixels, float)
    assert (weights[counts == 0] == 0).all()
    if counts.sum():
        assert np.isclose((weights * counts).sum() / counts.sum(), 1)
        order = np.argsort(counts[counts > 0])
        assert (np.diff(weights[counts > 0][order]) <= 1e-9).all()  # rarer is never lighter


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_a_picture_that_cannot_be_read_is_replaced_and_named(ray_session: None, collection: Path) -> None:
    import ray

    table = rows(collection, "train")
    (collection / "train" / "003.png").write_bytes(b"broken")
    plan = SamplePlan(num_rows=8, batch_size=8, num_workers=1, total_steps=1)
    stream = StreamedSamples(ray.put(table), SampleLoader(plan, Augmentation((32, 32)), LABELS, OPTIONS), 0, 1)
    batch = stream({"id": np.arange(8)})
    again = stream({"id": np.arange(8)})
    assert batch["pixels"].shape == (8, 32, 32, 3) and batch["pixels"].dtype == np.uint8
    failures = [text for text in batch["failure"] if text]
    assert len(failures) == 1 and failures[0].startswith("train/003.png: ")
    assert all((truth != 255).any() for truth in batch["truth"])  # another picture stands in its place
    assert all(np.array_equal(batch[name], again[name]) for name in ("pixels", "truth"))


@pytest.mark.parametrize(("first_step", "processes"), [(0, 1), (3, 2)])
def test_processes_read_what_ray_reads(ray_session: None, collection: Path, first_step: int, processes: int) -> None:
    """The same samples in the same order, from any step on, by any number of processes."""
    import ray

    table = rows(collection, "train")
    plan = SamplePlan(num_rows=8, batch_size=3, num_workers=1, total_steps=6, seed=4)
    loader = SampleLoader(plan, Augmentation((32, 32), jitter=0.3), LABELS, OPTIONS)
    batches = list(read_steps(table, loader, first_step, processes))
    assert [int(step) for batch in batches for step in set(batch["step"])] == list(range(first_step, 6))
    streamed = StreamedSamples(ray.put(table), loader, first_step, 1)({"id": np.arange(3 * (6 - first_step))})
    for name in ("step", "pixels", "truth"):
        assert np.array_equal(np.concatenate([batch[name] for batch in batches]), streamed[name])


def test_where_reading_processes_die_others_go_on(collection: Path) -> None:
    """At the step that was due, with the samples that it would have had; three times is too often."""
    plan = SamplePlan(num_rows=8, batch_size=2, num_workers=1, total_steps=60)
    loader = SampleLoader(plan, Augmentation((32, 32)), LABELS, OPTIONS)
    table = rows(collection, "train")

    def kill_readers() -> None:
        readers = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
        assert readers
        for reader in readers:
            reader.kill()

    found = []
    for batch in read_steps(table, loader, 0, 1):
        found.append(batch)
        if len(found) == 2:
            kill_readers()
    assert [int(batch["step"][0]) for batch in found] == list(range(60))
    undisturbed = loader.load(table, range(120), RegionReader(OPTIONS, LABELS))
    assert np.array_equal(np.concatenate([batch["pixels"] for batch in found]), undisturbed["pixels"])
    with pytest.raises(PipelineError, match="died 3 times"):
        for _ in read_steps(table, loader, 0, 1):
            kill_readers()


def test_validation_drops_no_picture_between_two_workers(ray_session: None, collection: Path) -> None:
    draw(collection, "odd", 5, size=(30, 44))
    table = pa.concat_tables([rows(collection, "val"), rows(collection, "odd")]).slice(0, 7)
    shards = validation_stream(table, 2, LABELS, OPTIONS).streaming_split(2, equal=True)
    found: list[tuple[int, int, int]] = []

    def take(worker: int) -> None:
        for row in shards[worker].iter_rows():
            if row["valid"]:
                height, width, bands = row["pixels"]["shape"]
                assert not row["failure"] and bands == 3 and len(row["truth"]) == height * width
                found.append((worker, height, width))

    threads = [threading.Thread(target=take, args=(worker,)) for worker in range(2)]
    [thread.start() for thread in threads]
    [thread.join(timeout=60) for thread in threads]
    assert Counter((height, width) for _, height, width in found) == {(40, 48): 3, (30, 44): 4}
