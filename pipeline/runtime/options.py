"""A job's options: a typed dataclass from a YAML file and flags over it.

`--config FILE` reads a YAML file (or a URI of one); flags stand over it, hyphens and underscores alike; a bare
boolean flag means true; `--print-config` shows what a run would use.
"""

from __future__ import annotations

import argparse
import dataclasses
import keyword
import os
import re
import sys
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import yaml

from pipeline import storage
from pipeline.errors import InputError, nearest

Config = TypeVar("Config")


def parse(config_class: type[Config], argv: Sequence[str]) -> Config:
    """The dataclass from `argv`. Raises InputError; prints and exits 0 for `--help` and `--print-config`."""
    from jsonargparse import ArgumentParser

    fields = {f.name: f for f in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    arguments, config_uri, print_config = _prepare(list(argv), fields)
    parser = ArgumentParser(
        prog=os.path.basename(sys.argv[0]),
        description=(config_class.__doc__ or "").split("\n\n")[0],
        exit_on_error=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of these options; flags stand over it")
    parser.add_argument("--print-config", action="store_true", help="print the resolved options and exit")
    parser.add_class_arguments(config_class, nested_key=None)
    if "--help" in arguments:
        # options are shown as they are written, with hyphens; underscores are accepted
        print(re.sub(r"--(\w+)", lambda flag: _flag(flag[1]), parser.format_help()), end="")
        sys.exit(0)
    read = {} if config_uri is None else _known(_read_config(config_uri), fields, config_uri)
    try:
        namespace = parser.parse_args(_flags_of(read) + arguments)
        values = namespace.as_dict()
    except (argparse.ArgumentError, TypeError, ValueError) as error:
        raise _parse_error(str(error)) from None
    missing = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and values.get(name) is None
    ]
    if missing:
        raise InputError(f"{_flag(missing[0])} is missing", todo="see --help")
    config = config_class(**{name: values[name] for name in fields if name in values})
    if print_config:
        print(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False), end="")  # type: ignore[call-overload]
        sys.exit(0)
    return config


def parse_values(config_class: type[Config], values: dict[str, Any], where: str | None = None) -> Config:
    """The dataclass from values as a YAML file holds them; `where` names the file. Raises InputError like `parse`."""
    fields = {f.name: f for f in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    known = {name: value for name, value in _known(values, fields, where).items() if value is not None}
    return parse(config_class, _flags_of(known))


def _parse_error(text: str) -> InputError:
    """jsonargparse's message as one of ours."""
    required = re.search(r"arguments are required: (\S+)", text)
    if required:
        return InputError(f"{_flag(required[1].strip(','))} is missing", todo="see --help")
    wrong = re.search(r'Parser key "(\w+)":\s*(.*?)\.? Got value:\s*(.*)', text, re.S)
    if wrong:
        kind = re.sub(r"Expected an? (<class '(\w+)'>)?", r"\2", wrong[2]) or wrong[2]
        return InputError(f"{_flag(wrong[1])} has a wrong value", found=wrong[3], expected=kind.strip())
    return InputError(" ".join(text.split()), todo="see --help")


def _prepare(argv: list[str], fields: dict[str, Any]) -> tuple[list[str], str | None, bool]:
    """Hyphens to underscores, bare booleans to true; takes `--config` and `--print-config` out. Unknown flags:
    InputError."""
    out: list[str] = []
    config_uri, print_config = None, False
    known = [*fields, "config", "print_config", "help"]
    position = 0
    while position < len(argv):
        argument = argv[position]
        position += 1
        if argument in ("-h", "--help"):
            out.append("--help")
            continue
        if not argument.startswith("--"):
            raise InputError(f"unexpected argument {argument!r}", expected="--name value", todo="see --help")
        name, equals, value = argument[2:].partition("=")
        name = _field_name(name)
        if name not in known:
            flag = _flag(name)
            hint = nearest(flag, [_flag(other) for other in known])
            raise InputError(f"there is no option {flag}", todo=f"{hint}see --help")
        if name == "print_config":
            print_config = True
            continue
        if not equals:
            takes_none = name in fields and _is_bool(fields[name].type)
            following = argv[position] if position < len(argv) else None
            if takes_none and (following is None or following.lower() not in ("true", "false", "yes", "no")):
                value = "true"
            elif following is None or (following.startswith("--") and len(following) > 2):
                raise InputError(f"{_flag(name)} needs a value", todo="see --help")
            else:
                value, position = following, position + 1
        if name == "config":
            config_uri = value
        else:
            out.append(f"--{name}={value}")
    return out, config_uri, print_config


def _read_config(uri: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(storage.read_bytes(uri)) or {}
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise InputError("configuration file does not exist", where=uri) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError("configuration file is not YAML", where=uri, found=str(error)) from None
    if not isinstance(values, dict):
        raise InputError("configuration file is not a mapping", where=uri, found=type(values).__name__)
    return values


def _known(values: dict[str, Any], fields: dict[str, Any], where: str | None) -> dict[str, Any]:
    """The values by field name (hyphens and underscores alike). InputError for one that is no field."""
    read = {_field_name(str(name)): value for name, value in values.items()}
    for name in read:
        if name not in fields:
            raise InputError(f"there is no option {name!r}", where=where, todo=f"{nearest(name, fields)}see --help")
    return read


def _field_name(option: str) -> str:
    """`num-workers` -> `num_workers`, `try` -> `try_`: what an option is called in the dataclass."""
    name = option.replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


def _flag(field_name: str) -> str:
    """The inverse: how an option is written on the command line."""
    return f"--{field_name.rstrip('_').replace('_', '-')}"


def _flags_of(values: dict[str, Any]) -> list[str]:
    # flow style: a list or mapping becomes one word of YAML, which is what the parser reads
    def word(value: Any) -> str:
        if isinstance(value, str):
            return value
        text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
        return text.removesuffix("...").strip()

    return [f"--{name}={word(value)}" for name, value in values.items()]


def _is_bool(annotation: Any) -> bool:
    return annotation in (bool, "bool") or typing.get_origin(annotation) is bool
