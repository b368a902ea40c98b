"""Figures that follow from counted pixels.

In: truth and prediction as class maps. Out: int64 confusion matrices that add up in any order, and mIoU, pixel accuracy
and their relatives.

Reading order:
    confusion_matrix   counting, adding up, and the definitions of every figure
    areas              square metres of every class in a window of a scene
"""

from pipeline.metrics.confusion_matrix import ConfusionMatrix

__all__ = ["ConfusionMatrix"]
