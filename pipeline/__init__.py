"""Distributed image segmentation for whole data sets, on Ray.

The wings, in the order in which data flows through them, are listed in README.md. Importing this package is cheap:
neither torch nor Ray is loaded until a wing that needs one is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.tables.prediction_table import read_predictions
    from pipeline.tables.readers import PredictionsDataset, predictions_dataset, predictions_frame

__all__ = ["PredictionsDataset", "predictions_dataset", "predictions_frame", "read_predictions"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name == "read_predictions":
        from pipeline.tables.prediction_table import read_predictions

        return read_predictions
    if name in __all__:
        from pipeline.tables import readers

        return getattr(readers, name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
