"""Networks whose code is elsewhere: segmentation_models_pytorch, Hugging Face folders, programs of torch.export."""

from __future__ import annotations

import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from pipeline.checkpoint import load_checkpoint, save_checkpoint
from pipeline.errors import InputError
from pipeline.labels import load_label_set
from pipeline.losses import cross_entropy_dice
from pipeline.model_spec import ModelSpec
from pipeline.models import build_model, parse_model, portable, preprocessing
from pipeline.models.limits import Range
from pipeline.optimizer import parameter_groups

SMP = "smp:Unet?encoder_name=resnet18&decoder_channels=[32,16,16,8,8]"


class Small(nn.Module):
    """Two layers and logits at half the size: what gets exported below."""

    def __init__(self, classes: int = 4, bands: int = 3) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.first = nn.Conv2d(bands, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, classes, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        return self.second(self.norm(self.first(x)).relu())


class Given(Small):
    """The same with its output as `shape` makes it."""

    def __init__(self, shape: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Any:
        return self.shape(super().forward(x))


def export(network: nn.Module, path: Path, *inputs: Tensor, dynamic: dict[int, Any] | None = None) -> str:
    program = torch.export.export(network.eval(), inputs, dynamic_shapes=dynamic and (dynamic,))
    torch.export.save(program, path)
    return f"export:{path}"


ANY = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}


# ---- every one of them is a network like ours ------------------------------------------------------------------------


@pytest.fixture(params=["smp", "hf"])
def trainable(request: pytest.FixtureRequest) -> str:
    return SMP if request.param == "smp" else f"hf:{request.getfixturevalue('segformer')}"


def test_they_train_on_any_size_bands_and_classes(trainable: str) -> None:
    torch.manual_seed(0)
    network = build_model(trainable, num_classes=3, in_channels=5)
    with torch.no_grad():
        assert network.eval()(torch.rand(1, 5, 97, 131)).shape == (1, 3, 97, 131)
    network.train()
    cross_entropy_dice(network(torch.rand(2, 5, 64, 64)), torch.randint(0, 3, (2, 64, 64))).backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    rates = {group["base_rate"] for group in parameter_groups(network, 1.0, 0.3, 0.01)}
    assert rates == {1.0, 0.3}, "the backbone is not known as one"


def test_a_checkpoint_of_them_needs_nothing_else(trainable: str, segformer: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    if trainable.startswith("hf:"):
        shutil.copytree(segformer, source)
        trainable = f"hf:{source}"
    network = build_model(trainable, num_classes=2).eval()
    spec = ModelSpec(*portable(trainable, {"encoder_weights": "imagenet"}), load_label_set("roads"))
    save_checkpoint(str(tmp_path / "checkpoint"), network, spec)
    shutil.rmtree(source, ignore_errors=True)
    loaded, found = load_checkpoint(str(tmp_path / "checkpoint"))
    assert found == spec and str(tmp_path) not in (tmp_path / "checkpoint" / "model.json").read_text()
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


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


# ---- programs of torch.export ----------------------------------------------------------------------------------------


def test_a_program_gives_what_the_network_gave(tmp_path: Path) -> None:
    small = Small()
    network = build_model(export(small, tmp_path / "a.pt2", torch.rand(2, 3, 32, 48), dynamic=ANY), num_classes=4)
    assert network.train() is network and not network.training
    x = torch.rand(3, 3, 57, 83)
    with torch.no_grad():
        expected = functional.interpolate(small(x), size=(57, 83), mode="bilinear")
        torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize(
    "shape",
    [
        lambda y: {"out": y, "aux": y.mean()},
        lambda y: {"aux": y.mean(), "logits": y},
        lambda y: (y, y.mean()),
        lambda y: [y],
    ],
)
def test_logits_in_a_container(tmp_path: Path, shape: Callable[[Tensor], Any]) -> None:
    x = torch.rand(1, 3, 16, 16)
    network = build_model(export(Given(shape), tmp_path / "a.pt2", x), num_classes=4)
    with torch.no_grad():
        torch.testing.assert_close(
            network(x), functional.interpolate(Small().eval()(x), scale_factor=2, mode="bilinear")
        )


@pytest.mark.parametrize(
    ("dynamic", "limits", "multiple"),
    [
        (None, (Range(2, 2), Range(32, 32), Range(48, 48)), 1),
        (ANY, (Range(), Range(), Range()), 1),
        (
            {0: Dim("n", max=4), 2: 16 * Dim("h", max=40), 3: 16 * Dim("w", min=3)},
            (Range(1, 4), Range(1, 640), Range(48, None)),
            16,
        ),
    ],
)
def test_a_program_says_what_it_takes(tmp_path: Path, dynamic: Any, limits: Any, multiple: int) -> None:
    network = build_model(export(Small(), tmp_path / "a.pt2", torch.rand(2, 3, 32, 48), dynamic=dynamic), num_classes=4)
    assert (network.limits.batch, network.limits.height, network.limits.width) == limits
    assert network.size_multiple == multiple and not network.square
    if dynamic is None:
        with pytest.raises(ValueError, match="takes 2 pictures of 32 x 48 px, not 1 of 32 x 48"):
            network(torch.rand(1, 3, 32, 48))


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


PICTURE = torch.rand(1, 3, 16, 16)


@pytest.mark.parametrize(
    ("network", "inputs", "message"),
    [
        (Sum(), (PICTURE, PICTURE), "takes other inputs.*found 4-d tensor, 4-d tensor; expected one N x B x H x W"),
        (nn.Conv2d(5, 4, 1), (torch.rand(1, 5, 16, 16),), "for other pictures.*found 5 bands; expected 3"),
        (nn.Conv2d(3, 4, 1).double(), (PICTURE.double(),), "takes other pixels.*torch.float64"),
    ],
)
def test_a_program_for_something_else_is_named(tmp_path: Path, network: nn.Module, inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model(export(network, tmp_path / "a.pt2", *inputs), num_classes=4)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (lambda y: {"masks": y}, "found masks; expected .*'out' or 'logits'"),
        (lambda y: y.argmax(1), r"found torch.int64 of shape \(1, 8, 8\)"),
        (lambda y: y.mean(1), r"found torch.float32 of shape \(1, 8, 8\)"),
    ],
)
def test_a_program_without_logits_is_named(tmp_path: Path, shape: Callable[[Tensor], Any], message: str) -> None:
    network = build_model(export(Given(shape), tmp_path / "a.pt2", PICTURE), num_classes=4)
    with pytest.raises(InputError, match=f"gives no logits; {message}"):
        network(PICTURE)


# ---- a program's file runs nothing -----------------------------------------------------------------------------------


class Touching:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def edited(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name.partition("/")[2], old.read(name)))


@pytest.mark.parametrize(
    ("record", "old", "new", "message"),
    [
        ("models/model.json", b"torch.ops.aten.relu.default", b"torch.hub.load", "operator torch.hub.load"),
        ("models/model.json", b"torch.ops.aten.relu.default", b"_operator.attrgetter", "operator _operator.attrgetter"),
        ("models/model.json", b"Symbol('s", b"exec(chr(1))+Symbol('s", "size exec"),
        ("models/model.json", b'"forward_arg_names": ["x"]', b'"forward_arg_names": ["x=exec(1)"]', "name 'x=exec"),
        ("data/weights/model_weights_config.json", b'"use_pickle": false', b'"use_pickle": true', "as a pickle"),
        ("data/sample_inputs/model.pt", None, None, "sample inputs that are no tensors"),
    ],
)
def test_a_program_that_would_run_code_is_refused(
    tmp_path: Path, record: str, old: bytes | None, new: bytes | None, message: str
) -> None:
    export(Small(), tmp_path / "good.pt2", torch.rand(2, 3, 32, 48), dynamic=ANY)
    touched = tmp_path / "touched"

    def change(name: str, data: bytes) -> bytes:
        if name != record:
            return data
        if old is None or new is None:
            buffer = io.BytesIO()
            torch.save(((Touching(touched),), {}), buffer)
            return buffer.getvalue()
        assert old in data
        return data.replace(old, new)

    edited(tmp_path / "good.pt2", tmp_path / "bad.pt2", change)
    with pytest.raises(InputError, match=f"exported program refused.*found .*{message}"):
        build_model(f"export:{tmp_path / 'bad.pt2'}", num_classes=4)
    assert not touched.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "exported program does not exist"),
        (b"", "no exported program.*BadZipFile"),
        (b"\x80\x02}q\x00.", "no exported program"),
        ("state dict", "no exported program.*an archive of"),
    ],
)
def test_a_file_that_is_no_program_is_named(tmp_path: Path, content: bytes | str | None, message: str) -> None:
    if isinstance(content, str):
        torch.save(Small().state_dict(), tmp_path / "a.pt2")
    elif content is not None:
        (tmp_path / "a.pt2").write_bytes(content)
    with pytest.raises(InputError, match=message):
        build_model(f"export:{tmp_path / 'a.pt2'}", num_classes=4)


# ---- model strings ---------------------------------------------------------------------------------------------------


def test_a_query_is_options_in_yaml() -> None:
    name, options = parse_model("smp:Unet?encoder_name=resnet18&encoder_depth=4&decoder_channels=[8,4]", {"a": 1})
    assert name == "smp:Unet"
    assert options == {"encoder_name": "resnet18", "encoder_depth": 4, "decoder_channels": [8, 4], "a": 1}
    assert parse_model("lightweight?output_stride=8", {"output_stride": 16}) == ("lightweight", {"output_stride": 16})
    assert build_model("lightweight?feature_enhancement=false", num_classes=2) is not None


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("smp:Unett", "no network 'Unett'.*DeepLabV3.*did you mean 'Unet'"),
        ("smp:Unet?encoder_name=resnet19", "no encoder 'resnet19'.*did you mean 'resnet18'"),
        ("smp:Unet?encoder_nam=resnet18", "no option 'encoder_nam'.*did you mean 'encoder_name'"),
        ("smp:Unet?encoder_depth=9", "smp:Unet cannot be built.*depth"),
        ("smp:Unet?aux_params={}", "no option 'aux_params'"),
        ("smp:Unet?encoder_name", "wrong query; found encoder_name"),
        ("smp:Unet?decoder_channels=[1", "wrong query.*value in YAML"),
        ("lightweight?output_stride=4", "output_stride out of range"),
        ("smpp:Unet", "no model 'smpp:Unet'.*smp:NAME, hf:NAME, export:NAME"),
    ],
)
def test_bad_model_strings_are_named(model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model(model, num_classes=2)


@pytest.mark.parametrize(
    ("model", "library", "extra"),
    [("smp:Unet", "segmentation_models_pytorch", "smp"), ("hf:somewhere", "transformers", "huggingface")],
)
def test_a_missing_library_is_named(model: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"{library} is not installed.*pip install 'ray-segmentation\[{extra}\]'"):
        build_model(model, num_classes=2)
