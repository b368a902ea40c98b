"""What the columns of a table of pictures mean, by the names that such tables usually have.

Our own names are `path`, `uri`, `label` (or `label_uri`) and `split`. Where none of a role's own names is there, its
usual names are looked for, in any case. A column in no role travels to the results.
"""

from __future__ import annotations

import posixpath

import pyarrow as pa

from pipeline.catalog.entry import SPLITS
from pipeline.errors import InputError

OWN = {"path", "uri", "label", "label_uri", "split", "size_bytes", "version"}
_USUAL = {
    "path": "path image img picture photo file file_name filename filepath file_path image_path img_path image_file "
    "image_filename image_name",
    "uri": "uri url image_uri image_url",
    "label": "label labels mask masks annotation annotations segmentation gt ground_truth label_uri label_path "
    "label_file label_filename mask_uri mask_url mask_path mask_file mask_filename annotation_path annotation_file "
    "segmentation_path",
    "split": "split set subset partition",
}
_PICTURE_ROLES = ("path", "uri")
_LOOKED_AT = 100  # values of a column


def is_picture_name(name: str) -> bool:
    """Whether a column of this name may say where the pictures are."""
    return any(_plain(name) in _USUAL[role].split() for role in _PICTURE_ROLES)


def text_columns(names: list[str]) -> set[str]:
    """The columns that are text even where they look like numbers: "0001" is a name."""
    pictures = set(names) & set(_PICTURE_ROLES) or {name for name in names if is_picture_name(name)}
    return pictures | set(names) & {"label", "label_uri"}


def name_columns(table: pa.Table, where: str) -> pa.Table:
    """The table with the columns that have a role under our own names, as strings.

    Raises InputError where there is no column of pictures, or two for one role.
    """
    names = list(table.column_names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError("table of pictures has two columns of one name", where=where, found=", ".join(twice))
    roles: dict[str, str] = {}
    for role, usual in _USUAL.items():
        if ({"label", "label_uri"} if role == "label" else {role}) & set(names):
            continue
        found = [name for name in names if _plain(name) in usual.split() and _may_be(role, table[name])]
        if len(found) > 1:
            raise InputError(
                f"table of pictures has {len(found)} columns that may be the {role}",
                where=where,
                found=", ".join(found),
                todo=f"rename the one that is meant to `{role}`",
            )
        if found:
            roles[found[0]] = role
    table = table.rename_columns([roles.get(name, name) for name in names])
    if not set(_PICTURE_ROLES) & set(table.column_names):
        usual = ", ".join(f"{_USUAL['path']} {_USUAL['uri']}".split())
        raise InputError("table of pictures has no column of pictures", where=where, found=names, expected=usual)
    for role in set(table.column_names) & {*_USUAL, "label_uri"}:
        kind = table[role].type
        if not (_is_text(kind) or pa.types.is_null(kind)):
            raise InputError(f"column `{role}` of the table of pictures is no text", where=where, found=kind)
    for name, role in roles.items():
        values = table[role].to_pylist()
        if role == "split":
            table = _replace(table, role, [SPLITS[value.strip().lower()] if value else None for value in values])
        elif name != name.strip():  # spaces after the commas: before the values too
            table = _replace(table, role, [value.strip() if value else value for value in values])
    return table


def _plain(name: str) -> str:
    """A column's name as it is compared: without case, spaces around it, and with underscores between its words."""
    return "_".join(name.replace("-", " ").replace("_", " ").split()).lower()


def _may_be(role: str, column: pa.ChunkedArray) -> bool:
    """Whether the values suit the role: text everywhere; of labels, names of files; of splits, names of splits."""
    if not (_is_text(column.type) or pa.types.is_null(column.type)):
        return False
    if role in _PICTURE_ROLES:
        return _is_text(column.type)
    values = [value.strip() for value in column.unique().to_pylist()[:_LOOKED_AT] if value and value.strip()]
    if role == "split":
        return bool(values) and all(value.lower() in SPLITS for value in values)
    return all("/" in value or posixpath.splitext(value)[1] for value in values)


def _is_text(kind: pa.DataType) -> bool:
    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(inner) or pa.types.is_large_string(inner) or pa.types.is_string_view(inner))


def _replace(table: pa.Table, name: str, values: list[str | None]) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values, pa.string()))
