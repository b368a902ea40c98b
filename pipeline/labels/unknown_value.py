"""The error for a raw label value that the label set does not know: what it is, and what can be done about it."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.errors import InputError
from pipeline.labels.built_in import LABEL_SETS
from pipeline.labels.colors import Color, unpack
from pipeline.labels.label_set import LabelSet

_LISTED_IDS = 8


def unknown_value(label_set: LabelSet, value: int, pixels: int, are_colors: bool, where: object) -> InputError:
    """`value` is one of `LabelSet.encode`'s unknown values, in `pixels` pixels of the label file `where`."""
    if are_colors:
        return _unknown_color(label_set, unpack(value), pixels, where)
    return InputError(
        "label value outside the label set",
        where=where,
        found=f"value {value} in {pixels} pixels",
        expected=f"{_runs({*label_set.raw_ids, *label_set.ignore})} ({label_set.name})",
        todo=f"give the right --label-set; or {in_file(label_set, ignore=value)} if {value} is void,"
        f" {in_file(label_set, remap=value)} if it is a class",
    )


def _unknown_color(label_set: LabelSet, color: Color, pixels: int, where: object) -> InputError:
    grey = color[0] == color[1] == color[2]
    return InputError(
        "label colour outside the label set",
        where=where,
        found=f"colour {list(color)} in {pixels} pixels",
        expected=f"the colours of label set {label_set.name!r}",
        todo=f"give the right --label-set; or, if it is void, {_with_void(label_set, color)}"
        " (all colours of no class: `ignore_other_colors: true`)"
        + ("; if the files hold numbers in three equal channels, save them with one" if grey else ""),
    )


def _with_void(label_set: LabelSet, color: Color) -> str:
    if is_built_in(label_set):
        return f"a YAML file with `like: {label_set.name}` and `ignore_colors: [{list(color)}]`"
    return f"`ignore_colors: {[list(known) for known in (*(label_set.void_colors or ()), color)]}` in its file"


def in_file(
    label_set: LabelSet, *, ignore: int | None = None, remap: int | None = None, to: object = "CLASS_ID"
) -> str:
    """The lines of YAML that make one more raw number void, or a class: those of a whole label set, or like one."""
    if is_built_in(label_set):
        line = f"ignore: [{ignore}]" if remap is None else f"remap: {{{remap}: {to}}}"
        return f"a YAML file with `like: {label_set.name}` and `{line}`"
    if remap is None:
        return f"`ignore: {[*label_set.ignore, ignore]}` in its file"
    if len(label_set.raw_ids) > _LISTED_IDS:
        return f"`{remap}: {to}` beside all other values under `remap` in its file"
    known = ", ".join(f"{raw}: {class_id}" for raw, class_id in label_set.raw_ids.items())
    return f"`remap: {{{known}, {remap}: {to}}}` in its file"


def is_built_in(label_set: LabelSet) -> bool:
    return LABEL_SETS.get(label_set.name) == label_set


def _runs(values: Iterable[int]) -> str:
    """Whole numbers as "0..10, 255"."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(low) if low == high else f"{low}..{high}" for low, high in runs)
