"""The predictions of a segment run for other tools: an Arrow data set, a pandas frame, a torch data set.

`predictions/` is plain Parquet, so whatever reads Parquet reads it; these only know where the files are, leave masks
unread unless they are asked for, and then turn bytes into arrays. docs/reading.md shows them in use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from torch import Tensor, from_numpy
from torch.utils.data import IterableDataset, get_worker_info

from pipeline import storage
from pipeline.catalog import schema
from pipeline.errors import InputError
from pipeline.tables.prediction_table import prediction_files, predictions_metadata, with_arrays

if TYPE_CHECKING:
    import pandas

_ROWS = 16  # decoded at once


def predictions_dataset(uri: str) -> pyarrow.dataset.Dataset:
    """The rows of a segment run (OUTPUT or its `predictions/`) as a data set to filter and scan; nothing is read yet.

    Raises InputError where there are no predictions.
    """
    predictions_metadata(uri)  # raises for what is none
    files = prediction_files(uri)
    fs, _ = storage.arrow_filesystem(files[0])
    paths = [storage.arrow_filesystem(file)[1] for file in files]
    return pyarrow.dataset.dataset(paths, format="parquet", filesystem=fs)


def predictions_frame(
    uri: str, columns: Sequence[str] | None = None, where: pyarrow.dataset.Expression | None = None
) -> pandas.DataFrame:
    """A pandas frame with a row a region, in path order; by default every column but those of pixels.

    `where` is an expression over columns (`pyarrow.dataset.field("status") == "ok"`). In the columns `mask` and
    `confidence` each is a numpy array H x W or None, in `probabilities` K x H x W. Raises InputError like
    `predictions_dataset`, and for a column that does not exist.
    """
    found = predictions_dataset(uri)
    names = (
        [name for name in found.schema.names if name not in schema.PIXEL_COLUMNS] if columns is None else list(columns)
    )
    foreign = [name for name in names if name not in found.schema.names]
    if foreign:
        raise InputError(f"no column {foreign[0]!r}", where=uri, expected=", ".join(found.schema.names))
    needed = list(dict.fromkeys([*names, "region_id", *_beside(names)]))
    table = found.to_table(columns=needed, filter=where).sort_by("region_id")
    frame = table.to_pandas()
    pixels = [name for name in names if name in schema.PIXEL_COLUMNS]
    if pixels:
        rows = [with_arrays(row) for row in table.select([*_beside(pixels), *pixels]).to_pylist()]
        for name in pixels:
            frame[name] = [row[name] for row in rows]
    return frame[names]


class PredictionsDataset(IterableDataset):  # type: ignore[type-arg]
    """The regions that have a mask, for a torch DataLoader: dicts of the columns, those of pixels as tensors.

    Each of the loader's workers, and each of `num_shards` processes (a process's own number is `shard`), reads row
    groups of its own, so that together they see every region once. Raises InputError like `predictions_dataset`.
    """

    def __init__(
        self, uri: str, columns: Sequence[str] = ("path", "mask"), *, shard: int = 0, num_shards: int = 1
    ) -> None:
        if not 0 <= shard < num_shards:
            raise InputError("shard out of range", found=f"{shard} of {num_shards}", expected="0 <= shard < num_shards")
        predictions_metadata(uri)
        self.columns = tuple(columns)
        self.shard, self.num_shards = shard, num_shards
        self._groups: list[tuple[str, int]] = []
        for file in prediction_files(uri):
            fs, path = storage.arrow_filesystem(file)
            with pq.ParquetFile(path, filesystem=fs) as parquet:
                self._groups += [(file, group) for group in range(parquet.num_row_groups)]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        here, of = (worker.id, worker.num_workers) if worker else (0, 1)
        needed = list(dict.fromkeys([*self.columns, "status", *schema.MASK_COLUMNS]))
        for file, group in self._groups[self.shard * of + here :: self.num_shards * of]:
            fs, path = storage.arrow_filesystem(file)
            with pq.ParquetFile(path, filesystem=fs) as parquet:
                for batch in parquet.iter_batches(batch_size=_ROWS, row_groups=[group], columns=needed):
                    yield from self._rows(batch)

    def _rows(self, batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
        for row in batch.to_pylist():
            if row["status"] == "ok" and row["mask"] is not None:
                row = with_arrays(row)
                yield {name: _tensor(row[name]) if name in schema.PIXEL_COLUMNS else row[name] for name in self.columns}


def _beside(columns: Sequence[str]) -> list[str]:
    """What decoding columns of pixels takes besides."""
    return [] if set(columns).isdisjoint(schema.PIXEL_COLUMNS) else [*schema.MASK_COLUMNS]


def _tensor(pixels: Any) -> Tensor | None:
    # a view of Parquet's bytes is read-only, which torch has no word for
    return None if pixels is None else from_numpy(pixels.copy())
