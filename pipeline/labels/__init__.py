"""Label sets: the classes of a data set, and what the raw values of its label files mean.

In: the name of a label set or a YAML file; raw label files as arrays. Out: class maps, and the values nobody knows.

Reading order:
    colors          colours, packed into a number and back
    void_colors     the colours that mean "no class" in known data sets
    label_set       the classes with names, ids and colours; raw values -> class ids
    built_in        the label sets of known data sets, and loading one by name or from a file
    unknown_value   the error for a raw value that a label set does not know
"""

from pipeline.labels.built_in import CAMVID, CITYSCAPES, LABEL_SETS, ROADS, SCENES, VOC, load_label_set
from pipeline.labels.colors import Color
from pipeline.labels.label_set import IGNORE, IGNORE_WIDE, Encoded, LabelSet
from pipeline.labels.unknown_value import in_file, unknown_value

__all__ = [
    "CAMVID",
    "CITYSCAPES",
    "IGNORE",
    "IGNORE_WIDE",
    "LABEL_SETS",
    "ROADS",
    "SCENES",
    "VOC",
    "Color",
    "Encoded",
    "LabelSet",
    "in_file",
    "load_label_set",
    "unknown_value",
]
