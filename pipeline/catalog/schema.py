"""The Arrow schemas of every table, versioned: the single truth about columns.

A reader reads its own version and every older one; columns that an older file lacks read as null.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa

SCHEMA_VERSION = 4  # 2: mask_format, confidence; 3: probabilities; 4: windows of scenes

STATUSES = ("ok", "fetch_error", "decode_error", "changed", "too_large", "timeout", "model_error")
TRANSIENT_STATUSES = ("fetch_error", "timeout", "model_error")  # get one more pass before the run ends

WINDOW = pa.struct([(side, pa.int32()) for side in ("x", "y", "width", "height")])

ASSETS = pa.list_(pa.struct([("uri", pa.string()), ("index", pa.int32()), ("band", pa.string())]))

_IDENTITY = [
    pa.field("region_id", pa.int64(), nullable=False),  # dense from 0 in path order; bookkeeping inside one run
    pa.field("region_key", pa.string(), nullable=False),  # 32 hex digits; a region's identity across runs
    pa.field("path", pa.string(), nullable=False),  # relative to the collection's root
    pa.field("uri", pa.string(), nullable=False),
]

MANIFEST = pa.schema(
    [
        *_IDENTITY,
        pa.field("kind", pa.string(), nullable=False),  # picture | raster | video
        pa.field("size_bytes", pa.int64()),
        pa.field("version", pa.string()),  # etag or mtime
        pa.field("window", WINDOW),  # of a scene, in its pixels: the core, which the mask covers; null = the whole
        pa.field("read_window", WINDOW),  # the core and the halo around it, which the network sees; null = the whole
        pa.field("scene_width", pa.int32()),  # of the whole scene, in px; null where its header was not read
        pa.field("scene_height", pa.int32()),
        pa.field("scene_area", pa.binary()),  # what of `read_window` is asked for: WKB in px of the scene; null = all
        pa.field("scene_resolution", pa.float64()),  # side of a pixel, in units of the crs
        pa.field("scene_acquired", pa.string()),  # as the file says it
        pa.field("assets", ASSETS),  # the files and bands (from 1) of a scene of several files; null = `uri` alone
        pa.field("frame", pa.int64()),
        pa.field("split", pa.string()),
        pa.field("label_uri", pa.string()),
    ]
)

_SCENE = "read_window scene_width scene_height scene_area scene_resolution scene_acquired assets".split()

_RESULT = [
    pa.field("height", pa.int32()),
    pa.field("width", pa.int32()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error", pa.string()),
    pa.field("mask", pa.large_binary()),  # the class map as masks.encode_mask writes it; null unless status is ok
    pa.field("mask_format", pa.string()),  # raw (row-major; as null, in version 1), png or rle
    pa.field("mask_dtype", pa.string()),  # uint8, or uint16 above 254 classes
    pa.field("confidence", pa.large_binary()),  # of every pixel times 255, row-major uint8, where it was asked for
    pa.field("probabilities", pa.large_binary()),  # of every class and pixel times 255, K x H x W uint8, likewise
    pa.field("class_pixels", pa.list_(pa.int64())),  # one per class
    pa.field("mean_confidence", pa.float32()),  # over predicted pixels; null where there are none
    pa.field("class_confidence", pa.list_(pa.float32())),  # mean per class; null where the class does not occur
    pa.field("low_confidence_share", pa.float32()),  # of the predicted pixels
    pa.field("crs", pa.string()),  # rasters only: authority and code, else WKT
    pa.field("transform", pa.list_(pa.float64())),  # rasters only: of the mask, the six numbers of affine.Affine
    pa.field("class_area_m2", pa.list_(pa.float64())),  # rasters only: one per class; null where it cannot be known
    pa.field("area_error", pa.string()),  # why it cannot
]

RESULT_COLUMNS = tuple(field.name for field in _RESULT)
# what predictions of older versions lack
LATER_COLUMNS = {"mask_format", "confidence", "probabilities", *_SCENE, "class_area_m2", "area_error"}
PIXEL_COLUMNS = ("mask", "confidence", "probabilities")  # what costs more to read than all the rest
MASK_COLUMNS = ("mask", "mask_format", "mask_dtype", "height", "width")  # what decoding a mask takes

STATISTICS = pa.schema(
    [
        pa.field("scope", pa.string(), nullable=False),  # all | folder | a travelling column's name
        pa.field("value", pa.string()),  # which folder, which value of the column; null for "all"
        pa.field("regions", pa.int64(), nullable=False),
        pa.field("ok", pa.int64(), nullable=False),
        *(pa.field(status, pa.int64(), nullable=False) for status in STATUSES[1:]),
        pa.field("pixels", pa.int64(), nullable=False),
        pa.field("class_pixels", pa.list_(pa.int64()), nullable=False),
        pa.field("class_share", pa.list_(pa.float64()), nullable=False),  # of the predicted pixels
        pa.field("class_area_m2", pa.list_(pa.float64())),  # of the regions whose area is known; null where none is
        pa.field("mean_confidence", pa.float64()),  # over predicted pixels
        pa.field("low_confidence_share", pa.float64()),  # of the predicted pixels
    ]
)

# not_predicted: the prediction failed, all truth pixels count as unpredicted; the last three count nothing
EVALUATION_STATUSES = ("ok", "not_predicted", "label_missing", "label_error", "size_mismatch")

EVALUATION = pa.schema(
    [
        pa.field("region_key", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("uri", pa.string()),
        pa.field("label_uri", pa.string()),
        pa.field("status", pa.string(), nullable=False),  # one of EVALUATION_STATUSES
        pa.field("error", pa.string()),
        pa.field("truth", pa.list_(pa.int32())),  # the picture's confusion matrix, entries that are not 0
        pa.field("prediction", pa.list_(pa.int32())),
        pa.field("pixels", pa.list_(pa.int64())),
        pa.field("unpredicted", pa.list_(pa.int64())),  # one per class
        pa.field("ignored", pa.int64()),
        pa.field("pixel_accuracy", pa.float64()),
        pa.field("miou", pa.float64()),
    ]
)

METRICS = pa.schema(  # a row for the whole (means over the classes) and one for each class
    [
        pa.field("scope", pa.string(), nullable=False),  # whole | class
        pa.field("class_id", pa.int32()),
        pa.field("name", pa.string(), nullable=False),
        pa.field("iou", pa.float64()),  # mIoU of the whole; null where the class is absent
        pa.field("accuracy", pa.float64()),  # mean pixel accuracy of the whole
        pa.field("dice", pa.float64()),
        pa.field("pixel_accuracy", pa.float64()),  # of the whole only, as fwiou
        pa.field("fwiou", pa.float64()),
        pa.field("truth_pixels", pa.int64()),
        pa.field("predicted_pixels", pa.int64()),
        pa.field("unpredicted_pixels", pa.int64()),
        pa.field("ignored_pixels", pa.int64()),  # of the whole only
    ]
)

GROUPS = pa.schema(  # a row for each value of each travelling column that has few
    [
        pa.field("column", pa.string(), nullable=False),
        pa.field("value", pa.string(), nullable=False),
        pa.field("pictures", pa.int64(), nullable=False),
        pa.field("miou", pa.float64()),
        pa.field("mean_pixel_accuracy", pa.float64()),
        pa.field("pixel_accuracy", pa.float64()),
        pa.field("fwiou", pa.float64()),
        pa.field("dice", pa.float64()),
        pa.field("classes_counted", pa.int32()),
        pa.field("truth", pa.list_(pa.int32())),  # the group's confusion matrix, entries that are not 0
        pa.field("prediction", pa.list_(pa.int32())),
        pa.field("pixels", pa.list_(pa.int64())),
        pa.field("unpredicted", pa.list_(pa.int64())),  # one per class
        pa.field("ignored", pa.int64()),
    ]
)


def travelling(manifest: pa.Schema) -> list[pa.Field]:
    """The columns a manifest has beyond ours; they travel to the results. `split` travels with them."""
    own = set(MANIFEST.names) - {"split"}
    return [field for field in manifest if field.name not in own]


def predictions_schema(extra: Iterable[pa.Field] = (), metadata: dict[str, str] | None = None) -> pa.Schema:
    """The `predictions` table with the travelling columns `extra` between identity and result."""
    identity = [
        *_IDENTITY,
        *(MANIFEST.field(name) for name in ("version", "size_bytes", "window", "frame", *_SCENE)),
    ]
    return pa.schema([*identity, *extra, *_RESULT], metadata=metadata)


@dataclass(frozen=True)
class Columns:
    """What travels from the manifest to the results, the metadata of the results, and how masks are written there.

    `planes` is what a row weighs: bytes a pixel, of which rows with probabilities hold many.
    """

    extra: tuple[pa.Field, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    mask_format: str = "raw"
    planes: int = 1

    @property
    def results(self) -> pa.Schema:
        return predictions_schema(self.extra, self.metadata)
