"""Label sets: the classes of a data set, and what the raw values of its label files mean.

In: the name of a label set or a YAML file; raw label files as arrays. Out: class maps, and the values nobody knows.

Reading order:
    label_set     the classes with names, ids and colours; raw values -> class ids
    void_colors   the colours that mean "no class" in known data sets
    built_in      the label sets of known data sets, and loading one by name or from a file
"""

from pipeline.labels.built_in import CAMVID, CITYSCAPES, LABEL_SETS, ROADS, SCENES, VOC, load_label_set
from pipeline.labels.label_set import IGNORE, IGNORE_WIDE, Encoded, LabelSet
from pipeline.labels.void_colors import Color

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
    "load_label_set",
]
