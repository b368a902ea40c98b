"""Programs of torch.export: they give what their network gave, say what they take, and their file runs nothing."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import ANY, Given, Small, export
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

from pipeline.errors import InputError
from pipeline.models import build_model
from pipeline.models.limits import Range

PICTURE = torch.rand(1, 3, 16, 16)


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
