"""Units of an evaluation scored on Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.catalog.manifest import Manifest
from pipeline.evaluate.label_index import build_index
from pipeline.evaluate.predictions import Predictions
from pipeline.evaluate.scoring import Scoring, score_unit


def score_on_ray(
    predictions: Predictions, scoring: Scoring, manifest: Manifest, split: str | None
) -> tuple[int, Iterator[dict[str, Any]]]:
    """How many labels there are (of one split), and what `score_unit` returns for each unit, in any order.

    The label index lives in the object store, where the workers of a node read the same memory.
    """
    import ray
    import ray.data

    index = ray.remote(build_index).remote(manifest, split)
    num_labels = int(ray.get(ray.remote(lambda built: built.num_rows).remote(index)))
    count = len(predictions.units)
    numbers = ray.data.from_items([{"unit": unit} for unit in range(count)], override_num_blocks=min(count, 10_000))
    data = numbers.map_batches(
        _score_block,  # type: ignore[arg-type]  # Ray's annotation knows no Arrow table
        fn_kwargs={"units": ray.put(predictions.units), "scoring": scoring, "index": index},
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=1,
    )
    return num_labels, (json.loads(row["scored"]) for row in data.iter_rows())


def _score_block(batch: pa.Table, units: Any, scoring: Scoring, index: Any) -> pa.Table:
    import ray

    unit = int(batch["unit"][0].as_py())
    return pa.table({"scored": [json.dumps(score_unit(unit, ray.get(units)[unit], scoring, ray.get(index)))]})
