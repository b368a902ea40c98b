"""Checkpoints: exact, self-contained, never seen half-replaced, and damage is named."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import InputError
from pipeline.labels import load_label_set
from pipeline.models.checkpoint import load_checkpoint, save_checkpoint
from pipeline.models.spec import ModelSpec, read_spec, weights_fingerprint
from pipeline.storage import folders

NAME = "torchvision:lraspp_mobilenet_v3_large"
SPEC = ModelSpec(
    NAME,
    {"backbone_weights": "somewhere/else.pth"},
    load_label_set("roads"),
    bands=4,
    mean=(0.1, 0.2, 0.3, 0.4),
    std=(1.0, 1.0, 1.0, 0.5),
    channel_order="bgr",
    size_multiple=8,
    output_stride=16,
    fingerprint="abc",
    metrics={"miou": 0.5, "epoch": 3},
)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return SPEC.build()


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )


def check_round_trip(uri: str) -> None:
    saved = network().to(memory_format=torch.channels_last)
    save_checkpoint(uri, saved, SPEC)
    torch.manual_seed(5)
    expected_random = torch.rand(1)
    torch.manual_seed(5)
    model, spec = load_checkpoint(uri)
    assert torch.equal(torch.rand(1), expected_random)  # loading costs nobody's seed
    assert spec == SPEC == read_spec(uri) and not model.training and same(model, saved)
    names = folders.list_names(uri)
    assert len(names) == 2 and names[0] == "model.json" and names[1].startswith("weights-")


def test_round_trip(tmp_path):
    check_round_trip(str(tmp_path / "best"))


def test_round_trip_on_s3(s3):
    check_round_trip(s3.uri("run", "best"))


def test_what_wraps_the_network_is_taken_off(tmp_path):
    saved = network()
    save_checkpoint(str(tmp_path / "a"), saved, SPEC)
    save_checkpoint(str(tmp_path / "b"), torch.compile(saved, backend="eager"), SPEC)
    assert weights_fingerprint(str(tmp_path / "a")) == weights_fingerprint(str(tmp_path / "b"))


def test_tied_weights_can_be_saved(tmp_path):
    saved = network()
    saved.network.classifier.low_classifier.bias = saved.network.classifier.high_classifier.bias
    save_checkpoint(str(tmp_path), saved, SPEC)
    assert same(load_checkpoint(str(tmp_path))[0], saved)


def test_a_reader_sees_the_old_network_or_the_new_one(tmp_path):
    uri = str(tmp_path / "best")
    saved = [network(0), network(1)]
    save_checkpoint(uri, saved[0], SPEC)
    stop = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        while not stop.is_set():
            try:
                model, _ = load_checkpoint(uri)
                if not any(same(model, one) for one in saved):
                    wrong.append("a mixture")
            except Exception as error:
                wrong.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for turn in range(12):
            save_checkpoint(uri, saved[turn % 2], SPEC)
    finally:
        stop.set()
        reader.join()
    assert not wrong
    assert len(folders.list_names(uri)) == 2


def test_the_fingerprint_knows_what_changes_a_mask(tmp_path):
    saved = network()

    def fingerprint(model: nn.Module = saved, **changes: object) -> str:
        uri = str(tmp_path / str(len(list(tmp_path.iterdir()))))
        save_checkpoint(uri, model, dataclasses.replace(SPEC, **changes))
        return weights_fingerprint(uri)

    first = fingerprint()
    assert first == fingerprint(metrics={}, fingerprint="def", options={})
    others = [
        fingerprint(network(1)),
        fingerprint(mean=(0.0, 0.2, 0.3, 0.4)),
        fingerprint(channel_order="rgb"),
        fingerprint(label_set=dataclasses.replace(SPEC.label_set, names=("a", "b"))),
    ]
    assert len({first, *others}) == 5


# ---- damage --------------------------------------------------------------------------------------------------------


def weights_of(folder: Path) -> Path:
    return next(folder.glob("weights-*"))


def describe(folder: Path, **changes: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> dict[str, bytes]:
    """The files of a good checkpoint."""
    folder = tmp_path_factory.mktemp("good")
    save_checkpoint(str(folder), network(), SPEC)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.json").unlink(), "no checkpoint: .*expected a folder with model.json"),
        (lambda folder: (folder / "model.json").write_text('{"model": '), "damaged checkpoint.*not JSON"),
        (lambda folder: (folder / "model.json").write_text("[]"), "damaged checkpoint.*names no weights"),
        (lambda folder: weights_of(folder).unlink(), "damaged checkpoint.*found no file weights-"),
        (lambda folder: weights_of(folder).write_bytes(weights_of(folder).read_bytes()[:-1]), "damaged.*bytes"),
        (lambda folder: weights_of(folder).write_bytes(bytes(weights_of(folder).stat().st_size)), "another sha256"),
        (lambda folder: describe(folder, checkpoint_version=99), "another version.*found 99"),
        (lambda folder: describe(folder, mean=[0.5]), "normalisation does not fit the bands"),
        (lambda folder: describe(folder, mean=None), "damaged checkpoint"),
        (lambda folder: describe(folder, model="deeplabv9"), "no model 'deeplabv9'"),
        (lambda folder: describe(folder, model="lightweight"), "weights of another network"),
        (lambda folder: describe(folder, label_set=load_label_set("camvid").to_json()), r"\(2,\) instead of \(11,\)"),
    ],
)
def test_damage_is_named(tmp_path: Path, checkpoint: dict[str, bytes], damage: Callable, message: str):
    for name, data in checkpoint.items():
        (tmp_path / name).write_bytes(data)
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        load_checkpoint(str(tmp_path))


def test_a_training_run_is_not_its_checkpoint(tmp_path):
    save_checkpoint(str(tmp_path / "best"), network(), SPEC)
    with pytest.raises(InputError, match="did you mean .*best"):
        load_checkpoint(str(tmp_path))
