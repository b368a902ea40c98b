"""Hugging Face folders: what transformers gives, what they say of their pixels, and folders that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.models import build_model, preprocessing


def test_a_folder_gives_what_transformers_gives(segformer: Path) -> None:
    from transformers import AutoModelForSemanticSegmentation

    theirs = AutoModelForSemanticSegmentation.from_pretrained(segformer).eval()
    x = torch.rand(2, 3, 65, 97)
    with torch.no_grad():
        quarter = theirs(pixel_values=x).logits
        ours = build_model(f"hf:{segformer}", num_classes=5).eval()(x)
    assert quarter.shape[-2:] == (17, 25)
    torch.testing.assert_close(ours, functional.interpolate(quarter, size=(65, 97), mode="bilinear"))


def test_a_crf_keeps_the_memory_layout_that_its_network_asks_for(segformer: Path) -> None:
    plain, with_crf = (build_model(f"hf:{segformer}", num_classes=5, crf=crf) for crf in (False, True))
    assert with_crf.memory_format == plain.memory_format == torch.contiguous_format
    assert build_model("lightweight", num_classes=5, crf=True).memory_format == torch.channels_last


def test_only_the_last_layer_begins_anew_for_other_classes(segformer: Path) -> None:
    same, other = (build_model(f"hf:{segformer}", num_classes=k).state_dict() for k in (5, 3))
    differ = {key for key in same if same[key].shape != other[key].shape or not torch.equal(same[key], other[key])}
    assert differ == {"network.decode_head.classifier.weight", "network.decode_head.classifier.bias"}


def test_what_a_folder_says_of_its_pixels(segformer: Path, tmp_path: Path) -> None:
    found = preprocessing(f"hf:{segformer}", {})
    assert found == {
        "mean": (0.5, 0.4, 0.3),
        "std": (0.229, 0.224, 0.225),
        "scale": 255.0,
        "channel_order": "rgb",
        "input_size": (48, 64),
    }
    says = {"do_normalize": False, "do_rescale": False, "do_flip_channel_order": True, "size": {"shortest_edge": 9}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(says))
    assert preprocessing(f"hf:{tmp_path}", {}) == {
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "scale": 1.0,
        "channel_order": "bgr",
        "input_size": {"shortest_edge": 9},
    }


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no Hugging Face model.*config.json.*names of the hub are not looked up"),
        ({"config.json": b"{"}, "config.json is not JSON"),
        ({"config.json": b"[]"}, "config.json is no model's"),
        ({"config.json": b'{"model_type": "bert"}'}, "cannot build.*AutoModelForSemanticSegmentation"),
        ({"config.json": None}, "cannot build.*no file named model.safetensors"),
        ({"config.json": None, "model.safetensors": b"no weights"}, "cannot build.*Safetensor"),
        ({"config.json": b'{"model_type": "segformer"}', "model.safetensors": None}, r"folder lacks \d+ of \d+ keys"),
        (
            {"config.json": lambda c: c | {"decoder_hidden_size": 24}, "model.safetensors": None},
            r"folder has misshapen \d+ of.*decode_head.*instead of",
        ),
        (
            {"config.json": lambda c: {"model_type": "upernet", "backbone": "microsoft/resnet-50"}},
            "cannot build.*(offline|outgoing)",
        ),
    ],
)
def test_a_folder_that_is_none_is_named(
    segformer: Path, tmp_path: Path, files: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        original = (segformer / name).read_bytes()
        if callable(content):
            content = json.dumps(content(json.loads(original))).encode()
        (tmp_path / name).write_bytes(original if content is None else content)
    with pytest.raises(InputError, match=message) as caught:
        build_model(f"hf:{tmp_path}", num_classes=5)
    assert "\n" not in str(caught.value)
