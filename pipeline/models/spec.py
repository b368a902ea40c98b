"""What a checkpoint says of its network: how it is built, fed and read. Free of torch, which a driver need not load.

A checkpoint is a folder of `weights-<hash>.safetensors` (or `program-<hash>.pt2`, an exported network) and, written
last, `model.json`, which names that file with its size and sha256.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pipeline import storage
from pipeline.errors import InputError
from pipeline.labels import LabelSet
from pipeline.models import build_model, structure_options

if TYPE_CHECKING:
    from torch import nn

CHECKPOINT_VERSION = 2  # 2: `input_size`, `class_map` or a program, which a reader of version 1 would pass over
DESCRIPTION = "model.json"


@dataclass(frozen=True)
class Scaling:
    """How values of a scene are brought to 0..1, band by band: value x scale + offset, clipped.

    `kind` says where the numbers come from: `fixed` (given), `percentile` (of a sample of the training scenes); with
    `metadata` each file's own scale and offset were applied when it was read, with `none` nothing is done; both are not
    clipped.
    """

    kind: str
    scales: tuple[float, ...]
    offsets: tuple[float, ...]

    @property
    def clips(self) -> bool:
        return self.kind in ("fixed", "percentile")

    @classmethod
    def from_json(cls, text: dict[str, Any]) -> Scaling:
        return cls(text["kind"], tuple(text["scales"]), tuple(text["offsets"]))


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to rebuild a network, feed it pixels and read its class ids.

    A pixel enters as (pixel / scale - mean) / std, band by band, in `channel_order`; with a `scaling` that takes the
    place of the division. `band_names` are the bands of a scene that it takes, by name or number (none: all), `dtype`
    is "uint8" where it learnt bytes and "wide" where it learnt wider values ("any": a run said how they are scaled).
    Pictures are padded to a multiple
    of `size_multiple` pixels. With `input_size` (height, width) every picture is resized to it (bilinear, antialiased)
    and the logits are brought back to the picture's size (bilinear). `class_map` gives for each output channel the
    class it stands for, or None for none of the label set's; without it the channels are the classes.
    `fingerprint` is the training run's, `metrics` what it measured; `imported_from` names where a network that was
    trained elsewhere came from.
    """

    model: str
    options: dict[str, Any]
    label_set: LabelSet
    bands: int = 3
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    scale: float = 255.0
    channel_order: str = "rgb"
    size_multiple: int = 1
    output_stride: int | None = None
    fingerprint: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    input_size: tuple[int, int] | None = None
    class_map: tuple[int | None, ...] | None = None
    imported_from: str = ""
    band_names: tuple[str, ...] = ()
    scaling: Scaling | None = None
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        if len(self.mean) != self.bands or len(self.std) != self.bands:
            raise InputError(
                "normalisation does not fit the bands",
                found=f"{len(self.mean)} means and {len(self.std)} standard deviations",
                expected=f"{self.bands} of each",
            )
        if min(self.std) <= 0 or self.scale <= 0 or self.size_multiple < 1:
            raise InputError(
                "normalisation out of range",
                found=f"std={self.std}, scale={self.scale}, size_multiple={self.size_multiple}",
                expected="all above 0",
            )
        if self.scaling is not None and {len(self.scaling.scales), len(self.scaling.offsets)} != {self.bands}:
            raise InputError(
                "scaling does not fit the bands", found=f"{len(self.scaling.scales)} scales", expected=str(self.bands)
            )
        if self.channel_order not in ("rgb", "bgr"):
            raise InputError("channel order out of range", found=self.channel_order, expected="rgb or bgr")
        if self.input_size is not None and (len(self.input_size) != 2 or min(self.input_size) < 1):
            raise InputError("input size out of range", found=self.input_size, expected="height and width, above 0")
        wrong = [k for k in self.class_map or () if k is not None and not 0 <= k < self.label_set.num_classes]
        if wrong:
            raise InputError(
                "class map leads out of the label set",
                found=f"class {wrong[0]}",
                expected=f"0 to {self.label_set.num_classes - 1} of {self.label_set.name}",
            )

    @property
    def takes(self) -> tuple[int, bool | None]:
        """How many bands a scene must have, and whether bytes (True), wider values (False) or either (None)."""
        either = self.dtype == "any" or (self.scaling is not None and self.scaling.kind == "metadata")
        return self.bands, None if either else self.dtype == "uint8"

    @property
    def num_channels(self) -> int:
        """How many output channels the network has."""
        return self.label_set.num_classes if self.class_map is None else len(self.class_map)

    def build(self, **options: Any) -> nn.Module:
        """The network with random weights; `options` beside those kept here."""
        options = {**structure_options(self.options), **options}
        return build_model(self.model, num_classes=self.num_channels, in_channels=self.bands, **options)

    def to_json(self) -> dict[str, Any]:
        """As in model.json; what is not set of the later fields is left out, as it was before there were any."""
        text = {**asdict(self), "label_set": self.label_set.to_json()}
        later = ("input_size", "class_map", "imported_from", "band_names", "scaling")
        return {k: v for k, v in text.items() if (v or k not in later) and (k, v) != ("dtype", "uint8")}

    @classmethod
    def from_json(cls, text: dict[str, Any]) -> ModelSpec:
        """The inverse of `to_json`; keys it does not know (of a newer version) are left out."""
        values = {key: value for key, value in text.items() if key in cls.__dataclass_fields__}
        values["label_set"] = LabelSet.from_json(values["label_set"])
        if values.get("scaling") is not None:
            values["scaling"] = Scaling.from_json(values["scaling"])
        for name in ("mean", "std", "input_size", "class_map", "band_names"):
            if values.get(name) is not None or name in ("mean", "std"):
                values[name] = tuple(values[name])
        return cls(**values)


def read_spec(uri: str) -> ModelSpec:
    """The description alone, weights unread. Raises InputError like `load_checkpoint`."""
    return _spec(uri, _describe(uri))


def read_checkpoint(uri: str) -> tuple[ModelSpec, str, bytes]:
    """The description, and the name and bytes of the file that holds the weights, found whole.

    Raises InputError where `uri` holds no checkpoint or a damaged one (which file, what is wrong with it).
    """
    for attempt in range(3):
        description = _describe(uri)
        (name, file), *_ = description["files"].items()
        try:
            data = storage.read_bytes(storage.join(uri, name))
            break
        except FileNotFoundError:
            # replaced between the two reads: the new description names another file
            if attempt == 2 or _describe(uri)["files"].keys() == description["files"].keys():
                raise _damaged(uri, found=f"no file {name}") from None
    if len(data) != file["size_bytes"]:
        raise _damaged(uri, found=f"{name} of {len(data)} bytes", expected=f"{file['size_bytes']}")
    if hashlib.sha256(data).hexdigest() != file["sha256"]:
        raise _damaged(uri, found=f"{name} with another sha256", expected=file["sha256"])
    return _spec(uri, description), name, data


def weights_fingerprint(uri: str) -> str:
    """sha256 (hex) of everything in a checkpoint that can change a mask: weights, structure, normalisation, labels."""
    description = _describe(uri)
    return fingerprint_of(_spec(uri, description), [file["sha256"] for file in description["files"].values()])


def fingerprint_of(spec: ModelSpec, sha256s: list[str]) -> str:
    decisive = {**spec.to_json(), "options": structure_options(spec.options), "weights": sorted(sha256s)}
    for other in ("fingerprint", "metrics", "imported_from"):
        decisive.pop(other, None)
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _describe(uri: str) -> dict[str, Any]:
    try:
        data = storage.read_bytes(storage.join(uri, DESCRIPTION))
    except (FileNotFoundError, NotADirectoryError):
        inner = [name for name in ("best", "last") if storage.exists(storage.join(uri, name, DESCRIPTION))]
        raise InputError(
            "no checkpoint",
            where=uri,
            expected=f"a folder with {DESCRIPTION}",
            todo=f"did you mean {storage.join(uri, inner[0])}?" if inner else None,
        ) from None
    try:
        description = json.loads(data)
    except ValueError as error:
        raise _damaged(uri, found=f"{DESCRIPTION} that is not JSON ({error})") from None
    if not isinstance(description, dict) or not isinstance(description.get("files"), dict) or not description["files"]:
        raise _damaged(uri, found=f"{DESCRIPTION} that names no weights")
    version = description.get("checkpoint_version")
    if not isinstance(version, int) or version > CHECKPOINT_VERSION:
        raise InputError(
            "checkpoint of another version", where=uri, found=version, expected=f"at most {CHECKPOINT_VERSION}"
        )
    return description


def _spec(uri: str, description: dict[str, Any]) -> ModelSpec:
    try:
        return ModelSpec.from_json(description)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(uri, found=f"{DESCRIPTION} with {type(error).__name__}: {error}") from None


def _damaged(uri: str, *, found: str, expected: str | None = None) -> InputError:
    return InputError("damaged checkpoint", where=uri, found=found, expected=expected)
