"""Ten million regions: planned, resumed, audited, summed up, carried over."""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.catalog import schema
from pipeline.catalog.manifest import SUMMARY, Manifest, open_manifest
from pipeline.catalog.manifest_writer import ROWS_PER_GROUP, ROWS_PER_PART
from pipeline.catalog.subset import Subset
from pipeline.labels import CAMVID
from pipeline.runtime.options import MEASUREMENT, option
from pipeline.storage import folders
from pipeline.tables.prediction_table import committed_ids, metadata
from pipeline.tables.sink import Sink, put_tables
from pipeline.tables.statistics import write_statistics
from scaling.measure import folder_for, header, measure


@dataclass
class PlanConfig:
    """Plan a run over a synthetic manifest, resume it with nearly all of it done, and sum it up."""

    regions: int = option(10_000_000, "Rows of the manifest.", group=MEASUREMENT)
    pending: int = option(100_000, "How many of them are not done.", group=MEASUREMENT)
    rows_per_file: int = option(
        24_000, "Rows of one file of predictions (128 MiB of CamVid's masks are 24,000).", group=MEASUREMENT
    )
    folder: str | None = option(
        None, "Where the synthetic tables are written (default: a temporary folder).", group=MEASUREMENT
    )


def plan(config: PlanConfig) -> None:
    with folder_for(config.folder) as folder:
        manifest_uri, output = f"{folder}/manifest", f"{folder}/out"
        begin_s = time.monotonic()
        write_manifest(manifest_uri, config.regions)
        write_predictions(manifest_uri, output, config.regions - config.pending, config.rows_per_file)
        size_mb = sum(f.stat().st_size for f in Path(folder).rglob("*.parquet")) / 1e6
        print(f"synthetic tables: {size_mb:,.0f} MB, written in {time.monotonic() - begin_s:.0f} s\n")
        header(f"{config.regions:,} regions")
        measure("planned: manifest, selection, nothing done, slices", _planned, manifest_uri, f"{folder}/none")
        measure(f"resumed: with {config.regions - config.pending:,} done", _planned, manifest_uri, output)
        measure("a sample of 0.01 drawn", _sampled, manifest_uri)
        measure("audit of all rows done", _audited, output, config.regions - config.pending)
        measure("statistics of all rows done", _summed, output)
        measure("--incremental: index of keys, every file judged", _judged, manifest_uri, output)


def write_manifest(uri: str, regions: int) -> None:
    """A manifest as `ManifestWriter` leaves it, made in bulk."""
    parts: list[str] = []
    for begin in range(0, regions, ROWS_PER_PART):
        ids = np.arange(begin, min(regions, begin + ROWS_PER_PART))
        paths = [f"day-{i // 100_000:04d}/drive-{i // 1000 % 100:02d}/{i:09d}.jpg" for i in ids.tolist()]
        keys = [hashlib.blake2b(f"{path}\0\0".encode(), digest_size=16).hexdigest() for path in paths]
        columns = {
            "region_id": ids,
            "region_key": keys,
            "path": paths,
            "uri": [f"s3://bucket/footage/{path}" for path in paths],
            "kind": ["picture"] * len(paths),
            "size_bytes": ids % 90_000 + 10_000,
            "version": [f"etag-{key}" for key in keys],
        }
        arrays = [
            pa.array(columns[item.name], item.type) if item.name in columns else pa.nulls(len(paths), item.type)
            for item in schema.MANIFEST
        ]
        buffer = pa.BufferOutputStream()
        table = pa.Table.from_arrays(arrays, schema=schema.MANIFEST)
        pq.write_table(table, buffer, compression="zstd", row_group_size=ROWS_PER_GROUP)
        parts.append(f"part-{len(parts):05d}.parquet")
        storage.write_bytes(storage.join(uri, parts[-1]), buffer.getvalue().to_pybytes())
    made = Manifest(
        uri,
        "s3://bucket/footage",
        "s3://bucket/footage",
        regions,
        "synthetic",
        tuple(parts),
        tuple(schema.MANIFEST.names),
    )
    storage.write_json(storage.join(uri, SUMMARY), asdict(made))


def write_predictions(manifest_uri: str, output: str, rows: int, rows_per_file: int) -> None:
    """Files of `ok` rows as a run leaves them, but for the masks."""
    manifest = open_manifest(manifest_uri)
    assert manifest is not None
    wanted = schema.predictions_schema(manifest.travelling, metadata(CAMVID, "result", "manifest"))
    rng = np.random.default_rng(0)
    left = rows
    for part in manifest.read_parts(None):
        for begin in range(0, min(left, part.num_rows), rows_per_file):
            own = part.slice(begin, min(rows_per_file, left - begin, part.num_rows - begin))
            count = own.num_rows
            pixels = rng.integers(0, 172_800 // 11, (count, 11))
            pixels[:, 0] += 172_800 - pixels.sum(1)
            result = {
                "height": np.full(count, 360),
                "width": np.full(count, 480),
                "status": ["ok"] * count,
                "class_pixels": pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * 11, pixels.ravel()),
                "mean_confidence": rng.random(count, np.float32),
                "low_confidence_share": rng.random(count, np.float32),
            }
            arrays = [
                own[item.name].combine_chunks()
                if item.name in own.column_names
                else pa.array(result[item.name]).cast(item.type)
                if item.name in result
                else pa.nulls(count, item.type)
                for item in wanted
            ]
            name = f"ok-0001-{own['region_id'][0].as_py():012d}.parquet"
            put_tables(f"{output}/predictions/{name}", wanted, [pa.Table.from_arrays(arrays, schema=wanted)])
        left -= min(left, part.num_rows)
        if not left:
            break


def _planned(manifest_uri: str, output: str) -> str:
    from pipeline.catalog.schema import Columns
    from pipeline.segment.config import SegmentConfig
    from pipeline.segment.predict_options import PredictOptions
    from pipeline.segment.ray_runner import RayRunner

    manifest = open_manifest(manifest_uri)
    assert manifest is not None
    ids = Subset().ids(manifest)
    pending = np.zeros(manifest.num_rows, bool)
    pending[ids] = True
    pending &= ~committed_ids(output, manifest.num_rows)
    config = SegmentConfig(manifest_uri, "none", output)
    runner = RayRunner(config, manifest, Columns(), PredictOptions(), 2, 2, None)
    slices = list(runner.slices(pending))
    np.packbits(pending)
    return (
        f"{int(pending.sum()):,} pending in {sum(len(units) for units, _ in slices)} row groups, {len(slices)} slices"
    )


def _sampled(manifest_uri: str) -> str:
    manifest = open_manifest(manifest_uri)
    assert manifest is not None
    return f"{Subset(sample=0.01).ids(manifest).size:,} regions"


def _audited(output: str, rows: int) -> str:
    Sink(output, lambda: None).audit(np.arange(rows))
    return "none missing, none twice"


def _summed(output: str) -> str:
    return f"{write_statistics(output, CAMVID.num_classes, ['split'])['ok']:,} ok"


def _judged(manifest_uri: str, output: str) -> str:
    from pipeline.tables.increment import Carrier, KeyIndex

    manifest = open_manifest(manifest_uri)
    assert manifest is not None
    index = KeyIndex(manifest, Subset().ids(manifest))
    carrier = Carrier(output, index, list(manifest.units()), schema.predictions_schema(manifest.travelling))
    files = folders.list_names(f"{output}/predictions")
    carried = sum(int((carrier.compare(f"{output}/predictions/{name}")[1] >= 0).sum()) for name in files)
    return f"{carried:,} carried"
