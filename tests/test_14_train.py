"""Training: the sample plan, the label scan, bad input, and real runs: killed, stopped, resumed, shared out."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import InputError, Stopped
from pipeline.label_scan import class_weights, scan_labels
from pipeline.labels import LabelSet
from pipeline.regions import ReadOptions
from pipeline.samples import COLUMNS, SampleLoader, SamplePlan, validation_stream
from pipeline.selection import hold_out
from pipeline.train import TrainConfig, train

LABELS = LabelSet("two", ("dark", "light"), ((0, 0, 0), (255, 255, 255)))
OPTIONS = ReadOptions(fetch_retry_s=0)


def draw(root: Path, split: str, count: int, size: tuple[int, int] = (40, 48)) -> None:
    """Pictures whose right part is light, and their labels: 0 dark, 1 light, 255 void in the last row."""
    random = np.random.default_rng(len(split))
    for index in range(count):
        truth = np.zeros(size, np.uint8)
        truth[:, int(random.integers(10, size[1] - 10)) :] = 1
        noise = random.integers(0, 60, (*size, 3))
        pixels = (truth[..., None] * 150 + noise).astype(np.uint8)
        truth[-1] = 255
        for folder, array in ((split, pixels), (f"{split}annot", truth)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / folder / f"{index:03d}.png")


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    draw(tmp_path / "data", "train", 8)
    draw(tmp_path / "data", "val", 3)
    return tmp_path / "data"


@pytest.fixture
def label_file(tmp_path: Path) -> str:
    path = tmp_path / "two.yaml"
    path.write_text(json.dumps(LABELS.to_json()))
    return str(path)


@pytest.fixture
def config(collection: Path, label_file: str, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        source=str(collection),
        output=str(tmp_path / "run"),
        label_set=label_file,
        batch_size=2,
        crop="32,32",
        max_steps=4,
        precision="float32",
        fetch_retry_s=0,
    )


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


# ---- rows, labels, weights -------------------------------------------------------------------------------------------


def test_held_out_rows_stay_held_out_when_the_collection_grows() -> None:
    keys = [f"{value:08x}" + "0" * 24 for value in np.random.default_rng(0).integers(0, 2**32, 200)]
    small, large = (pa.table({"region_key": keys[:n]}) for n in (100, 200))
    held_small, held_large = (set(hold_out(table, 0.2)[1]["region_key"].to_pylist()) for table in (small, large))
    assert held_small == held_large & set(keys[:100])
    assert 5 < len(held_small) < 40
    for share in (0.0, 1.0):
        assert all(part.num_rows for part in hold_out(small, share))


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20), st.sampled_from(["log", "sqrt", "inverse", "none"]))
def test_class_weights_are_one_over_the_pixels(pixels: list[int], kind: str) -> None:
    weights = np.array(class_weights(pixels, kind))
    counts = np.array(pixels, float)
    assert (weights[counts == 0] == 0).all()
    if counts.sum():
        assert np.isclose((weights * counts).sum() / counts.sum(), 1)
        order = np.argsort(counts[counts > 0])
        assert (np.diff(weights[counts > 0][order]) <= 1e-9).all()  # rarer is never lighter


def test_label_scan_counts_and_lists(ray_session: None, collection: Path) -> None:
    table = rows(collection, "train")
    (collection / "trainannot" / "002.png").write_bytes(b"no picture")
    scan = scan_labels(table, LABELS, OPTIONS)
    assert scan.files == 7 and scan.unreadable_ids == [2] and "002.png" in scan.unreadable[0]
    assert sum(scan.class_pixels) == 7 * 39 * 48 and scan.ignored_pixels == 7 * 48


def test_label_scan_meets_an_unknown_value(ray_session: None, collection: Path) -> None:
    wrong = np.zeros((40, 48), np.uint8)
    wrong[:3] = 9
    Image.fromarray(wrong).save(collection / "trainannot" / "004.png")
    with pytest.raises(InputError, match=r"004\.png.*value 9 in 144 pixels.*0\.\.1, 255"):
        scan_labels(rows(collection, "train"), LABELS, OPTIONS)


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_a_picture_that_cannot_be_read_is_replaced_and_named(ray_session: None, collection: Path) -> None:
    import ray

    from pipeline.transforms import Augmentation

    table = rows(collection, "train")
    (collection / "train" / "003.png").write_bytes(b"broken")
    plan = SamplePlan(num_rows=8, batch_size=8, num_workers=1, total_steps=1)
    loader = SampleLoader(ray.put(table), plan, Augmentation((32, 32)), LABELS, OPTIONS, 0, 1)
    batch = loader({"id": np.arange(8)})
    again = loader({"id": np.arange(8)})
    assert batch["pixels"].shape == (8, 32, 32, 3) and batch["pixels"].dtype == np.uint8
    failures = [text for text in batch["failure"] if text]
    assert len(failures) == 1 and failures[0].startswith("train/003.png: ")
    assert all((truth != 255).any() for truth in batch["truth"])  # another picture stands in its place
    assert all(np.array_equal(batch[name], again[name]) for name in ("pixels", "truth"))


def test_validation_drops_no_picture_between_two_workers(ray_session: None, collection: Path) -> None:
    draw(collection, "odd", 5, size=(30, 44))
    table = pa.concat_tables([rows(collection, "val"), rows(collection, "odd")]).slice(0, 7)
    shards = validation_stream(table, 2, LABELS, OPTIONS).streaming_split(2, equal=True)
    found: list[tuple[int, int, int]] = []

    def take(worker: int) -> None:
        for row in shards[worker].iter_rows():
            if row["valid"]:
                assert not row["failure"] and len(row["pixels"]) == 3 * len(row["truth"])
                found.append((worker, row["height"], row["width"]))

    threads = [threading.Thread(target=take, args=(worker,)) for worker in range(2)]
    [thread.start() for thread in threads]
    [thread.join(timeout=60) for thread in threads]
    assert Counter((height, width) for _, height, width in found) == {(40, 48): 3, (30, 44): 4}


# ---- whole runs ------------------------------------------------------------------------------------------------------


def test_two_workers_train_and_the_same_command_says_complete(ray_session: None, config: TrainConfig) -> None:
    from pipeline.checkpoint import load_checkpoint

    config.num_workers = 2
    where = train(config)
    output = Path(config.output)
    assert str(output / "best") in where
    for name in ("best", "last"):
        _, spec = load_checkpoint(str(output / name))
        assert spec.label_set == LABELS and spec.metrics["step"] == 4
        # every validation picture once, whichever worker took it: 3 pictures less their void row
        assert spec.metrics["validation"]["pixels"] == 3 * 39 * 48
    assert list((output / "tensorboard").glob("events.out.tfevents.*"))
    history = json.loads((output / "history.json").read_text())
    assert history[-1]["step"] == 4 and (output / "_train").is_dir()
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    assert train(config).startswith("complete already")
    assert before == {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    config.batch_size = 4
    with pytest.raises(InputError, match="batch_size"):
        train(config)


@pytest.mark.slow
def test_training_goes_on_from_a_hugging_face_folder(
    ray_session: None, config: TrainConfig, segformer: Path, tmp_path: Path
) -> None:
    """With the folder's weights and pixels, and its own classes replaced; the checkpoint needs the folder no more."""
    import torch

    from pipeline.checkpoint import load_checkpoint
    from pipeline.models import build_model

    folder = tmp_path / "hf"
    shutil.copytree(segformer, folder)
    pixels = folder / "preprocessor_config.json"
    pixels.write_text(json.dumps(json.loads(pixels.read_text()) | {"do_flip_channel_order": True}))
    config.model, config.num_workers, config.max_steps, config.learning_rate = f"hf:{folder}", 2, 2, 1e-6
    train(config)
    before = build_model(f"hf:{folder}", num_classes=2).state_dict()
    shutil.move(folder, tmp_path / "moved")
    model, spec = load_checkpoint(f"{config.output}/best")
    assert (spec.model, spec.mean, spec.channel_order) == ("hf:segformer", (0.5, 0.4, 0.3), "bgr")
    assert spec.input_size is None and str(tmp_path) not in json.dumps(spec.to_json())
    kept = {key: value for key, value in model.state_dict().items() if "classifier" not in key and "norm" not in key}
    assert kept and all(torch.allclose(value, before[key], atol=1e-4) for key, value in kept.items())
    config.model = f"hf:{tmp_path / 'moved'}"
    assert train(config).startswith("complete already")  # the folder counts by its content
    config.model = "export:net.pt2"
    with pytest.raises(InputError, match="an exported program cannot be trained"):
        train(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "nowhere"}, "nowhere"),
        ({"model": "lightwait"}, "lightweight"),
        ({"label_set": "camvit"}, "camvid"),
        ({"label_set": None}, "--label-set is missing"),
        ({"split": "trian"}, "trian"),
        ({"batch_size": 3, "num_workers": 2}, "--batch-size"),
        ({"crop": "large"}, "--crop"),
        ({"class_weights": "logg"}, "did you mean 'log'"),
        ({"backbone_weights": "none.pth"}, r"none\.pth"),
        ({"num_workers": 4, "batch_size": 4}, "no CPU is left"),
    ],
)
def test_bad_input_leaves_nothing(ray_session: None, config: TrainConfig, change: dict, message: str) -> None:
    for name, value in change.items():
        setattr(config, name, value)
    with pytest.raises(InputError, match=message):
        train(config)
    assert not Path(config.output).exists() or not list(Path(config.output).iterdir())


def test_labels_of_which_none_matches(ray_session: None, config: TrainConfig, tmp_path: Path) -> None:
    draw(tmp_path / "bare", "train", 2)
    for path in (tmp_path / "bare" / "trainannot").iterdir():
        path.rename(path.with_name("other-" + path.name))
    config.source = str(tmp_path / "bare")
    with pytest.raises(InputError, match="no label file matches"):
        train(config)


def test_a_stop_waits_for_the_last_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal in mid-wait must not take the workers for done: they still have to save."""
    from types import SimpleNamespace

    import ray

    from pipeline.board import Board, watch

    board = Board()
    remote = {name: SimpleNamespace(remote=getattr(board, name)) for name in ("take", "stop")}
    monkeypatch.setattr(ray, "get", lambda value: value)
    saved: list[int] = []

    def work() -> None:
        while not board.post({"text": "step 7", "step": 7}, []):
            time.sleep(0.02)
        time.sleep(1.5)
        saved.append(7)

    def stop(signum: int, frame: object) -> None:
        raise Stopped("stopped on request")

    before = signal.signal(signal.SIGTERM, stop)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    try:
        with pytest.raises(Stopped, match="at step 7"):
            watch(work, SimpleNamespace(**remote))
    finally:
        timer.join()
        signal.signal(signal.SIGTERM, before)
    assert saved == [7]


def test_killed_stopped_and_resumed(config: TrainConfig, run_job: Callable, tmp_path: Path) -> None:
    """kill -9, then SIGTERM, then to the end: each start goes on where the one before it had saved.

    The kill may come between the note of a checkpoint and Ray's keeping it: then an earlier one is gone on from.
    """
    from conftest import end, start_job, wait_until

    output = Path(config.output)
    arguments = ["--source", config.source, "--output", output, "--label-set", config.label_set, "--crop", "32,32"]
    arguments += ["--batch-size", 2, "--max-steps", 30, "--epochs", 1000, "--validate-every", 1000]
    arguments += ["--checkpoint-minutes", 0.03, "--precision", "float32"]
    position = output / "_train" / "position.json"

    def step() -> int:
        return int(json.loads(position.read_text())["step"]) if position.exists() else 0

    def saved_beyond(first: int) -> Callable[[], bool]:
        return lambda: step() > first

    job = start_job("train", *arguments)
    try:
        wait_until(saved_beyond(0), seconds=120, what="a checkpoint", process=job)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
    finally:
        end(job, group=True)
    killed_at = step()
    assert 0 < killed_at < 30

    time.sleep(1)
    job = start_job("train", *arguments)
    try:
        wait_until(saved_beyond(killed_at), seconds=120, what="a further checkpoint", process=job)
        os.kill(job.pid, signal.SIGTERM)
        _, stderr = job.communicate(timeout=120)
    finally:
        end(job, group=True)
    assert job.returncode == 4, stderr
    resumed_at = [int(at) for at in re.findall(r"resuming at step (\d+) of 30", stderr)]
    assert all(0 < at <= killed_at for at in resumed_at)  # or none, where Ray had not kept the first one yet
    stopped_at = step()
    assert stderr.strip().splitlines()[-1].startswith("error: stopped on request")

    done = run_job("train", *arguments)
    assert done.code == 0, done.stderr
    assert f"resuming at step {stopped_at} of 30" in done.stderr
    assert str(output / "best") in done.stdout.strip().splitlines()[-1]
    assert json.loads((output / "history.json").read_text())[-1]["step"] == 30
