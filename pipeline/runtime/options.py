"""A job's options: a dataclass whose fields say everything about them, read from YAML and flags.

A field made by `option` carries its description, its group in `--help`, and the choices or range of its values.
`--config FILE` reads a YAML file (or a URI of one); flags stand over it, hyphens and underscores alike; a bare boolean
flag means true, `--no-NAME` false; `--print-config` shows what a run would use.

argparse (of Python itself) formats the help and parses the words; no other parser reads these fields.
"""

from __future__ import annotations

import argparse
import dataclasses
import keyword
import os
import shutil
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import yaml

from pipeline import storage
from pipeline.errors import InputError, nearest

Config = TypeVar("Config")
INPUT, OUTPUT, NETWORK, SPEED, FAILURES = "input", "output", "network", "speed", "failures and limits"
SCENES = "scenes"
MEASUREMENT = "measurement"  # of the benchmarks
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    group: str,
    choices: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
    factory: Any = dataclasses.MISSING,
) -> Any:
    """A dataclass field that is an option; one without a default must be given.

    `low` and `high` are the least and the largest number.
    """
    metadata = {"help": help, "group": group, "choices": tuple(choices), "low": low, "high": high}
    return dataclasses.field(default=default, default_factory=factory, metadata=metadata)


def parse(config_class: type[Config], argv: Sequence[str]) -> Config:
    """The dataclass from `argv`. Raises InputError; prints and exits 0 for `--help` and `--print-config`."""
    fields = _fields(config_class)
    parser = _parser(config_class, fields)
    given = vars(parser.parse_args(_checked(list(argv), fields)))
    config_uri, print_config = given.pop("config", None), given.pop("print_config", False)
    values = {} if config_uri is None else _known(_read_config(config_uri), fields, config_uri)
    config = _build(config_class, fields, {**values, **given})
    if print_config:
        print(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False), end="")  # type: ignore[call-overload]
        sys.exit(0)
    return config


def parse_values(config_class: type[Config], values: dict[str, Any], where: str | None = None) -> Config:
    """The dataclass from values as a YAML file holds them; `where` names the file. Raises InputError like `parse`."""
    fields = _fields(config_class)
    known = {name: value for name, value in _known(values, fields, where).items() if value is not None}
    return _build(config_class, fields, known)


def validate(config: Any) -> None:
    """Raises InputError for a value that is none of an option's choices, or out of its range."""
    for field in dataclasses.fields(config):
        value, choices = getattr(config, field.name), field.metadata.get("choices")
        low, high = field.metadata.get("low"), field.metadata.get("high")
        if value is None:
            continue
        if choices and value not in choices:
            hint = nearest(str(value), choices) or None
            raise InputError(f"{flag(field.name)}: no {value!r}", expected=", ".join(choices), todo=hint)
        if (low is not None and value < low) or (high is not None and value > high):
            expected = f"{low:g} to {high:g}" if high is not None and low is not None else f"{low:g} or more"
            raise InputError(f"{flag(field.name)} is out of range", found=value, expected=expected)


def flag(field_name: str) -> str:
    """How an option is written on the command line."""
    return f"--{field_name.rstrip('_').replace('_', '-')}"


def _fields(config_class: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(config_class)}


def _build(config_class: type[Config], fields: dict[str, Any], values: dict[str, Any]) -> Config:
    for name, field in fields.items():
        if _is_required(field) and values.get(name) is None:
            raise InputError(f"{flag(name)} is missing", todo="see --help")
    hints = typing.get_type_hints(config_class)
    config = config_class(**{name: _convert(name, value, hints[name]) for name, value in values.items()})
    validate(config)
    return config


# ---- values ----------------------------------------------------------------------------------------------------------


def _convert(name: str, value: Any, hint: Any) -> Any:
    """A word of the command line or a value of a YAML file as the field's type. Raises InputError."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)] if _is_union(hint) else [hint]
    if _is_union(hint) and (value is None or (isinstance(value, str) and value.lower() in ("null", "none", ""))):
        return None
    kind = typing.get_origin(kinds[0]) or kinds[0]
    try:
        return _as(kind, value)
    except (TypeError, ValueError, yaml.YAMLError):
        raise InputError(f"{flag(name)} has a wrong value", found=value, expected=kind.__name__) from None


def _as(kind: type, value: Any) -> Any:
    if kind is bool:
        return value if isinstance(value, bool) else _word(value)
    if kind in (int, float):
        if isinstance(value, bool) or (kind is int and isinstance(value, float) and value != int(value)):
            raise ValueError
        return kind(value)
    if kind is dict:
        found = yaml.safe_load(value) if isinstance(value, str) else value
        if not isinstance(found, dict):
            raise ValueError
        return found
    # a list of a YAML file for an option that is written with commas
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()


def _word(value: Any) -> bool:
    try:
        return _WORDS[str(value).lower()]
    except KeyError:
        raise ValueError from None


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _is_required(field: Any) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _is_bool(field: Any) -> bool:
    return field.type in (bool, "bool")


# ---- the command line ------------------------------------------------------------------------------------------------


def _parser(config_class: type[Any], fields: dict[str, Any]) -> argparse.ArgumentParser:
    width = min(120, shutil.get_terminal_size().columns)
    parser = argparse.ArgumentParser(
        prog=os.path.basename(sys.argv[0]),
        description=" ".join((config_class.__doc__ or "").split("\n\n")[0].split()),
        usage=f"{os.path.basename(sys.argv[0])} --option value ...",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28, width=width),
        argument_default=argparse.SUPPRESS,
        add_help=False,
    )
    groups = {title: parser.add_argument_group(title) for title in _group_order(fields)}
    for name, field in sorted(fields.items(), key=lambda item: not _is_required(item[1])):
        group, text = groups[_group(field)], _help(field)
        if not _is_bool(field):
            group.add_argument(flag(name), dest=name, metavar=_metavar(field), help=text)
        for value in (True, False) if _is_bool(field) else ():
            shown = text if value != field.default else argparse.SUPPRESS
            word = flag(name) if value else f"--no-{flag(name)[2:]}"
            group.add_argument(word, dest=name, action="store_const", const=value, help=shown)
    about = parser.add_argument_group("about the options")
    about.add_argument("--config", metavar="FILE", help="YAML file of these options; flags stand over it")
    about.add_argument("--print-config", action="store_true", help="print the options that a run would use, and exit")
    about.add_argument("-h", "--help", action="help", help="print this, and exit")
    return parser


def _group_order(fields: dict[str, Any]) -> list[str]:
    """Input, output and network first, speed and failures last."""
    titles = dict.fromkeys(map(_group, fields.values()))
    ends = ([INPUT, OUTPUT, NETWORK], [SPEED, FAILURES])
    middle = [title for title in titles if title not in (*ends[0], *ends[1])]
    return [title for title in (*ends[0], *middle, *ends[1]) if title in titles]


def _group(field: Any) -> str:
    return str(field.metadata.get("group", "options"))  # of a plain field


def _metavar(field: Any) -> str:
    if field.metadata.get("choices"):
        return "{" + ",".join(field.metadata["choices"]) + "}"
    kind = str(field.type).split(" |")[0]
    return {"int": "N", "float": "X", "dict[str, Any]": "'{NAME: VALUE}'"}.get(kind, "TEXT")


def _help(field: Any) -> str:
    text = str(field.metadata.get("help", "")).replace("%", "%%")
    if _is_required(field):
        return f"{text} (required)"
    if _is_bool(field):
        return f"Turn off: {text[:1].lower()}{text[1:]}" if field.default else text
    if field.default is None or field.default_factory is not dataclasses.MISSING or "(default" in text:
        return text
    return f"{text} (default: {field.default})"


def _checked(argv: list[str], fields: dict[str, Any]) -> list[str]:
    """The words with hyphens for underscores and values attached to their flags. Raises InputError for what argparse
    would refuse in words of its own."""
    out: list[str] = []
    known = {flag(name): field for name, field in fields.items()}
    bools = {name for name, field in known.items() if _is_bool(field)}
    bare = {*(f"--no-{name[2:]}" for name in bools), "--print-config", "--help", "-h"}
    position = 0
    while position < len(argv):
        word = argv[position]
        position += 1
        if not word.startswith("--") and word != "-h":
            raise InputError(f"unexpected argument {word!r}", expected="--name value", todo="see --help")
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name not in known and name not in bare and name != "--config":
            hint = nearest(name, [*known, *bare, "--config"])
            raise InputError(f"there is no option {name}", todo=f"{hint}see --help")
        following = argv[position] if position < len(argv) else None
        if name in bools:
            if not equals and following is not None and following.lower() in _WORDS:
                value, position = following, position + 1
            wanted = _convert(name[2:], value or "true", bool)
            out.append(name if wanted else f"--no-{name[2:]}")
        elif equals or name in bare:
            out.append(f"{name}={value}" if equals else name)
        elif following is None or (following.startswith("--") and len(following) > 2):
            raise InputError(f"{name} needs a value", todo="see --help")
        else:
            out.append(f"{name}={following}")
            position += 1
    return out


# ---- the YAML file ---------------------------------------------------------------------------------------------------


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
    read = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        name = f"{name}_" if keyword.iskeyword(name) else name
        if name not in fields:
            raise InputError(f"there is no option {name!r}", where=where, todo=f"{nearest(name, fields)}see --help")
        read[name] = value
    return read
