"""The options of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.reading.read_config import ReadConfig
from pipeline.runtime.options import INPUT, OUTPUT, SPEED, option, validate
from pipeline.runtime.output_config import ClusterOutputConfig


@dataclass
class EvaluateConfig(ClusterOutputConfig, ReadConfig):
    """Compare predictions with labels: exact confusion matrices, metrics, and a report of one page. The same command on
    the same output resumes what was not scored."""

    predictions: str = option(help="OUTPUT of jobs/segment.py, or its predictions/.", group=INPUT)
    labels: str = option(
        help="Manifest or collection with labels, or a folder of label files with the pictures' paths.", group=INPUT
    )
    output: str = option(
        help="Folder or prefix that receives metrics.json, metrics.parquet, pictures/ and report.html.", group=OUTPUT
    )
    label_set: str | None = option(
        None,
        "Names, colours, ignore and remap of the classes (default: those in the predictions' metadata).",
        group=INPUT,
    )
    split: str | None = option(None, "Only the pictures of this split.", group=INPUT)
    runner: str = option(
        "auto",
        "On Ray, or in processes of this machine alone. auto is ray where RAY_ADDRESS names a cluster.",
        group=SPEED,
        choices=("auto", "processes", "ray"),
    )

    def __post_init__(self) -> None:
        validate(self)
