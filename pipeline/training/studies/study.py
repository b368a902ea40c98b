"""A published study as a file: what is trained alike, what each variant changes, what the paper found.

title: Losses and feature enhancement of `lightweight`
paper: Huo, Wang, Liu, Li 2023
published_on: VOC2012, 512 x 512
seeds: [0, 1, 2]
metrics: [pixel_accuracy, miou]
training: {model: lightweight, epochs: 8, ...}            # options of jobs/train.py
variants:
  CE: {training: {loss: cross_entropy}, published: {pixel_accuracy: 81.43, miou: 71.66}}
  CE + Dice: {training: {loss: cross_entropy_dice}, published: {pixel_accuracy: 81.30, miou: 72.46}}
claims:
  - {claim: Dice raises mIoU, metric: miou, better: CE + Dice, worse: CE}
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from pipeline import storage
from pipeline.errors import InputError, nearest

METRICS = ("miou", "pixel_accuracy", "mean_pixel_accuracy", "fwiou")
_KEYS = "title paper published_on data notes seeds metrics training variants claims".split()


@dataclass(frozen=True)
class Variant:
    """One column of a study: its options over the study's, and the paper's figures in percent, where it gives any."""

    name: str
    training: dict[str, Any] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """The name as a folder's."""
        return re.sub(r"[^\w.=-]+", "-", self.name).strip("-")


@dataclass(frozen=True)
class Claim:
    """Variant `better` has a higher `metric` than `worse`; `published` is the paper's difference in percentage points.

    Without a published figure the claim is a question: which of the two is better here?
    """

    claim: str
    metric: str
    better: str
    worse: str
    published: float | None = None


@dataclass(frozen=True)
class Study:
    """All that a sweep trains and compares."""

    title: str
    paper: str
    published_on: str
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    training: dict[str, Any]
    variants: tuple[Variant, ...]
    claims: tuple[Claim, ...]
    notes: str = ""

    def options(self, variant: Variant) -> dict[str, Any]:
        """The training options of a variant: the study's, the variant's over them, `model_options` merged."""
        merged = {**self.training, **variant.training}
        both = {**(self.training.get("model_options") or {}), **(variant.training.get("model_options") or {})}
        return {**merged, "model_options": both} if both else merged


def load_study(uri: str) -> Study:
    """The study in a YAML file. Raises InputError naming what is missing, unknown or inconsistent."""
    try:
        text = yaml.safe_load(storage.read_bytes(uri))
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(
            "study does not exist", where=uri, expected="a YAML file such as configs/ablations/*"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError("study is not YAML", where=uri, found=" ".join(str(error).split())) from None
    if not isinstance(text, dict):
        raise InputError("study is not a mapping", where=uri, found=type(text).__name__)
    for key in text:
        if key not in _KEYS:
            raise InputError(f"study has an unknown key {key!r}", where=uri, todo=nearest(str(key), _KEYS) or None)
    variants = tuple(_variant(name, value or {}, uri) for name, value in _mapping(text, "variants", uri).items())
    names = [variant.name for variant in variants]
    if len({variant.folder for variant in variants}) < len(variants) or not variants:
        raise InputError("study needs variants of different names", where=uri, found=", ".join(names))
    published = {variant.name: variant.published for variant in variants}
    seeds = tuple(text.get("seeds") or (0,))
    if not all(isinstance(seed, int) for seed in seeds) or len(set(seeds)) < len(seeds):
        raise InputError("seeds of a study are different integers", where=uri, found=list(seeds))
    metrics = tuple(text.get("metrics") or ("miou",))
    for metric in metrics:
        _one_of("metric", metric, METRICS, uri)
    return Study(
        title=str(text.get("title", uri)),
        paper=str(text.get("paper", "")),
        published_on=str(text.get("published_on", "")),
        seeds=seeds,
        metrics=metrics,
        training=_mapping(text, "training", uri),
        variants=variants,
        claims=tuple(_claim(value, published, metrics, uri) for value in text.get("claims") or []),
        notes=str(text.get("notes", "")),
    )


def _mapping(text: dict[str, Any], key: str, uri: str) -> dict[str, Any]:
    value = text.get(key) or {}
    if not isinstance(value, dict):
        raise InputError(f"{key!r} of a study is not a mapping", where=uri, found=type(value).__name__)
    return value


def _variant(name: object, value: dict[str, Any], uri: str) -> Variant:
    if not isinstance(value, dict) or set(value) - {"training", "published"}:
        raise InputError(f"variant {name!r} of a study", where=uri, found=value, expected="training:, published:")
    published = _mapping(value, "published", uri)
    for metric in published:
        _one_of("metric", metric, METRICS, uri)
    return Variant(str(name), _mapping(value, "training", uri), {key: float(v) for key, v in published.items()})


def _claim(value: dict[str, Any], published: dict[str, dict[str, float]], metrics: tuple[str, ...], uri: str) -> Claim:
    lacking = {"claim", "better", "worse"} - set(value)
    if lacking:
        raise InputError("claim of a study is incomplete", where=uri, found=value, expected=", ".join(sorted(lacking)))
    metric = value.get("metric", metrics[0])
    _one_of("metric", metric, metrics, uri)
    better, worse = (_one_of("variant", value[side], tuple(published), uri) for side in ("better", "worse"))
    theirs = [published[name].get(metric) for name in (better, worse)]
    difference = round(theirs[0] - theirs[1], 6) if theirs[0] is not None and theirs[1] is not None else None
    return Claim(str(value["claim"]), metric, better, worse, difference)


def _one_of(what: str, name: str, known: tuple[str, ...], uri: str) -> str:
    if name not in known:
        raise InputError(
            f"study names no {what} {name!r}",
            where=uri,
            expected=", ".join(known),
            todo=nearest(str(name), known) or None,
        )
    return name
