"""Training jobs: rows held out, two workers, other people's checkpoints, bad input; stopped, killed and resumed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from conftest import Finished, end, start_job, wait_until
from light_and_dark import LABELS, draw, draw_collection

from pipeline.errors import InputError, Stopped
from pipeline.training.job import TrainConfig, train
from pipeline.training.selection import hold_out


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    return draw_collection(tmp_path / "data")


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


def test_held_out_rows_stay_held_out_when_the_collection_grows() -> None:
    keys = [f"{value:08x}" + "0" * 24 for value in np.random.default_rng(0).integers(0, 2**32, 200)]
    small, large = (pa.table({"region_key": keys[:n]}) for n in (100, 200))
    held_small, held_large = (set(hold_out(table, 0.2)[1]["region_key"].to_pylist()) for table in (small, large))
    assert held_small == held_large & set(keys[:100])
    assert 5 < len(held_small) < 40
    for share in (0.0, 1.0):
        assert all(part.num_rows for part in hold_out(small, share))


def test_two_workers_train_and_the_same_command_says_complete(ray_session: None, config: TrainConfig) -> None:
    from pipeline.models.checkpoint import load_checkpoint

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


def test_ray_and_this_process_train_the_same_network(ray_session: None, config: TrainConfig) -> None:
    """Bit by bit: what a step does follows from its number, wherever it is done."""
    weights = []
    for runner in ("ray", "processes"):
        config.runner, config.output = runner, f"{config.output}-{runner}"
        train(config)
        (file,) = Path(config.output, "last").glob("weights-*.safetensors")
        weights.append(file.read_bytes())
        assert Path(config.output, "_train", "run").exists() == (runner == "ray")
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_training_goes_on_from_a_hugging_face_folder(
    ray_session: None, config: TrainConfig, segformer: Path, tmp_path: Path
) -> None:
    """With the folder's weights and pixels, and its own classes replaced; the checkpoint needs the folder no more."""
    import torch

    from pipeline.models import build_model
    from pipeline.models.checkpoint import load_checkpoint

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


def test_threads_wait_without_spinning(
    config: TrainConfig, run_job: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As OpenMP itself says where it is loaded: what is set any later has no effect."""
    monkeypatch.delenv("OMP_WAIT_POLICY")  # which the tests set for all they start
    arguments = ["--source", config.source, "--output", config.output, "--label-set", config.label_set]
    arguments += ["--crop", "32,32", "--batch-size", 2, "--max-steps", 1, "--model", "unet?width=0.1"]
    done = run_job("train", *arguments, env={"OMP_DISPLAY_ENV": "VERBOSE"})
    assert done.code == 0, done.stderr
    spins = re.findall(r"GOMP_SPINCOUNT = '(\w+)'", done.stderr)
    assert spins and set(spins) == {"0"}, spins


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

    from pipeline.training.monitor import Monitor, watch

    monitor = Monitor()
    remote = {name: SimpleNamespace(remote=getattr(monitor, name)) for name in ("take", "stop")}
    monkeypatch.setattr(ray, "get", lambda value: value)
    saved: list[int] = []

    def work() -> None:
        while not monitor.post({"text": "step 7", "step": 7}, []):
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


# ---- ended early: started again, a run goes on where the one before had saved ---------------------------------------


@pytest.fixture
def long_run(config: TrainConfig) -> list[object]:
    """The arguments of a run of 30 steps that saves a checkpoint every two seconds."""
    arguments = ["--source", config.source, "--output", config.output, "--label-set", config.label_set]
    arguments += ["--crop", "32,32", "--batch-size", 2, "--max-steps", 30, "--epochs", 1000, "--validate-every", 1000]
    return [*arguments, "--checkpoint-minutes", 0.03, "--precision", "float32"]


def saved_step(config: TrainConfig) -> int:
    position = Path(config.output, "_train", "position.json")
    return int(json.loads(position.read_text())["step"]) if position.exists() else 0


def end_by(sent: signal.Signals, config: TrainConfig, arguments: list[object]) -> tuple[int, str]:
    """Start the job and send it the signal at its first checkpoint. Returns its exit code and what it printed."""
    job = start_job("train", *arguments)
    try:
        wait_until(lambda: saved_step(config) > 0, seconds=120, what="a checkpoint", process=job)
        os.kill(job.pid, sent)
        _, stderr = job.communicate(timeout=120)
    finally:
        end(job, group=True)
    assert 0 < saved_step(config) < 30
    return job.returncode, stderr


def finished(done: Finished, config: TrainConfig) -> bool:
    assert done.code == 0, done.stderr
    last = json.loads(Path(config.output, "history.json").read_text())[-1]
    return last["step"] == 30 and str(Path(config.output, "best")) in done.stdout.strip().splitlines()[-1]


def test_stopped_and_resumed(config: TrainConfig, long_run: list[object], run_job: Callable) -> None:
    code, stderr = end_by(signal.SIGTERM, config, long_run)
    assert code == 4, stderr
    assert stderr.strip().splitlines()[-1].startswith("error: stopped on request")
    stopped_at = saved_step(config)
    done = run_job("train", *long_run)
    assert finished(done, config)
    assert f"resuming at step {stopped_at} of 30" in done.stderr


@pytest.mark.slow
def test_killed_and_resumed(config: TrainConfig, long_run: list[object], run_job: Callable) -> None:
    """The kill may come between the note of a checkpoint and Ray's keeping it: then an earlier one is gone on from."""
    code, _ = end_by(signal.SIGKILL, config, long_run)
    assert code == -signal.SIGKILL
    killed_at = saved_step(config)
    done = run_job("train", *long_run)
    assert finished(done, config)
    resumed_at = [int(at) for at in re.findall(r"resuming at step (\d+) of 30", done.stderr)]
    assert all(0 < at <= killed_at for at in resumed_at)  # or none, where Ray had not kept the first one yet
