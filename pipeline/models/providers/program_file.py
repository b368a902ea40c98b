"""Reading a program of torch.export without running anything that its file brings along.

`torch.export.load` unpickles what it finds, loads shared libraries of compiled programs, evaluates symbolic sizes as
Python and resolves any name below `torch` (torch 2.15: export/pt2_archive/_package.py, _export/serde/serialize.py). A
program that `torch.export.save` made of plain modules needs none of this, so `read_program` looks first and refuses the
rest. What remains is a graph of known operators over plain tensors.
"""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from pipeline.errors import InputError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_ARITHMETIC = "getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|lshift|rshift"
_OPERATORS = re.compile(
    r"torch\.ops\.(aten|prim|prims|higher_order|torchvision|quantized|quantized_decomposed)(\.[a-zA-Z]\w*|\._[a-zA-Z]\w*)+"
    rf"|_operator\.({_ARITHMETIC})|math\.[a-z]\w*|torch\.(_sym_|sym_)\w+"
)
_NAME = re.compile(r"[\w.$]*")
_SIZE = re.compile(
    r"(?>Symbol\('[a-z]+\d+'(?:, [a-z]+=(?:True|False))*\)|[su]\d+|zuf\d+|(?:int_)?oo|[A-Z]\w*"
    r"|\d+(?:\.\d+)?|[-+*/%(),<>=&|~\s])*+"  # atomic: no backtracking
)
_RECORDS = re.compile(
    r"models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)|data/sample_inputs/model\.pt"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|extra/.*|archive_format|archive_version|byteorder|\.data/.*"
    r"|\.format_version|\.storage_alignment|version"
)


def read_program(data: bytes, *, where: str) -> ExportedProgram:
    """The program in the bytes of a .pt2 file. Raises InputError where it is none, or holds more than a program."""
    try:
        _look(data)
    except _Refused as reason:
        raise InputError(
            "exported program refused: it holds more than tensors and known operators",
            where=where,
            found=reason,
            todo="save it with torch.export.save from a network of plain modules",
        ) from None
    except Exception as error:  # zipfile, json and torch.load raise a dozen kinds for a file that is none
        raise InputError(
            "no exported program", where=where, found=_reason(error), expected="a .pt2 file of torch.export.save"
        ) from None
    logger = logging.getLogger("torch.export")
    level = logger.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logger.setLevel(logging.CRITICAL)  # it logs a traceback for what is raised as well
            return torch.export.load(io.BytesIO(data))
    except Exception as error:
        raise InputError(
            "cannot load exported program",
            where=where,
            found=_reason(error),
            todo=f"export it for the CPU with torch {torch.__version__.split('+')[0]}",
        ) from None
    finally:
        logger.setLevel(level)


class _Refused(Exception):
    pass


def _look(data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        # all records lie in one folder that is named after the file
        records = {name.partition("/")[2]: name for name in archive.namelist()}
        if "models/model.json" not in records:
            raise ValueError(f"an archive of {', '.join(sorted(records)[:3])}")
        for record in records:
            if not _RECORDS.fullmatch(record):
                raise _Refused(f"record {record}")
        for kind in ("weights", "constants"):
            config = json.loads(archive.read(records[f"data/{kind}/model_{kind}_config.json"]))
            for name, payload in config["config"].items():
                if payload["use_pickle"] or not _NAME.fullmatch(name):
                    raise _Refused(f"{name} as a pickle" if payload["use_pickle"] else f"tensor {name!r}")
        sample = archive.read(records["data/sample_inputs/model.pt"])
        if sample:
            try:
                torch.load(io.BytesIO(sample), weights_only=True)
            except Exception as error:
                raise _Refused(f"sample inputs that are no tensors ({_reason(error)})") from None
        _look_into(json.loads(archive.read(records["models/model.json"])))


def _look_into(program: dict[str, Any]) -> None:
    """Every name and expression of the graph that loading would resolve or write into Python source."""
    for key, value in _strings(program):
        if key == "target" and not (_OPERATORS.fullmatch(value) or _NAME.fullmatch(value) and "." not in value):
            raise _Refused(f"operator {value}")
        if key == "expr_str" and not _SIZE.fullmatch(value):
            raise _Refused(f"size {value}")
        if key in ("name", "fqn", "forward_arg_names") and not _NAME.fullmatch(value):
            raise _Refused(f"name {value!r}")
        if key in ("in_spec", "out_spec") and ("default_factory" in value or "__enum__" in value):
            raise _Refused("a container that names code")


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string in nested JSON with the key it stands under."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, key)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _strings(item, name)


def _reason(error: Exception) -> str:
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}"
