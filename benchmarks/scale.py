"""What large collections cost: seconds, and peak memory of the driver.

    python benchmarks/scale.py plan        # 10 M regions planned, resumed with 9.9 M done, summed up
    python benchmarks/scale.py listing     # 1 M keys of a simulated S3 bucket, listed and made a manifest; an inventory
    python benchmarks/scale.py pictures    # 1 k, 10 k, 100 k small pictures through the job: time per picture

Every line of the tables is measured in a process of its own, whose peak resident memory it shows. CPU s is that
process's own time on all cores: on a machine that others use too it says more than the wall clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import gzip
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema, storage
from pipeline.cli import main
from pipeline.errors import InputError
from pipeline.labels import CAMVID
from pipeline.manifest import SUMMARY, Manifest, open_manifest
from pipeline.manifest_writer import ROWS_PER_GROUP, ROWS_PER_PART, build_manifest
from pipeline.portion import Portion
from pipeline.prediction_table import committed_ids, metadata
from pipeline.sink import Sink, put_tables
from pipeline.statistics import write_statistics

PROJECT = Path(__file__).resolve().parent.parent
_PAGE = 1000  # keys of one answer of S3


@dataclass
class PlanConfig:
    """Plan a run over a synthetic manifest, resume it with nearly all of it done, and sum it up.

    Args:
        regions: rows of the manifest
        pending: how many of them are not done
        rows_per_file: rows of one file of predictions (128 MiB of CamVid's masks are 24,000)
        folder: where the synthetic tables are written (default: a temporary folder)
    """

    regions: int = 10_000_000
    pending: int = 100_000
    rows_per_file: int = 24_000
    folder: str | None = None


@dataclass
class ListingConfig:
    """List a simulated S3 bucket, make its manifest, and make it once more from an S3 Inventory.

    Args:
        keys: objects in the bucket
        page_ms: what the store takes for a page of 1,000 keys
    """

    keys: int = 1_000_000
    page_ms: float = 0.0


@dataclass
class PicturesConfig:
    """Segment more and more small pictures with a small network: does a picture cost the same in the end?

    Args:
        steps: numbers of pictures
        height: of a picture in px
        width: of a picture in px
        checkpoint: the network (default: one strided convolution)
        runners: of processes and ray
    """

    steps: str = "1000,10000,100000"
    height: int = 32
    width: int = 48
    checkpoint: str | None = None
    runners: str = "processes,ray"


# ---- plan ------------------------------------------------------------------------------------------------------------


def plan(config: PlanConfig) -> None:
    with _folder(config.folder) as folder:
        manifest_uri, output = f"{folder}/manifest", f"{folder}/out"
        begin_s = time.monotonic()
        write_manifest(manifest_uri, config.regions)
        write_predictions(manifest_uri, output, config.regions - config.pending, config.rows_per_file)
        size_mb = sum(f.stat().st_size for f in Path(folder).rglob("*.parquet")) / 1e6
        print(f"synthetic tables: {size_mb:,.0f} MB, written in {time.monotonic() - begin_s:.0f} s\n")
        _header(f"{config.regions:,} regions")
        _measure("planned: manifest, selection, nothing done, slices", _planned, manifest_uri, f"{folder}/none")
        _measure(f"resumed: with {config.regions - config.pending:,} done", _planned, manifest_uri, output)
        _measure("a sample of 0.01 drawn", _sampled, manifest_uri)
        _measure("audit of all rows done", _audited, output, config.regions - config.pending)
        _measure("statistics of all rows done", _summed, output)
        _measure("--incremental: index of keys, every file judged", _judged, manifest_uri, output)


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
    from pipeline.predict_options import PredictOptions
    from pipeline.ray_stream import RayStream
    from pipeline.schema import Columns
    from pipeline.segment_config import SegmentConfig

    manifest = open_manifest(manifest_uri)
    assert manifest is not None
    ids = Portion().ids(manifest)
    pending = np.zeros(manifest.num_rows, bool)
    pending[ids] = True
    pending &= ~committed_ids(output, manifest.num_rows)
    config = SegmentConfig(manifest_uri, "none", output)
    stream = RayStream(config, manifest, Columns(), PredictOptions(), 2, 2, None)
    slices = list(stream.slices(pending))
    np.packbits(pending)
    return (
        f"{int(pending.sum()):,} pending in {sum(len(units) for units, _ in slices)} row groups, {len(slices)} slices"
    )


def _sampled(manifest_uri: str) -> str:
    manifest = open_manifest(manifest_uri)
    assert manifest is not None
    return f"{Portion(sample=0.01).ids(manifest).size:,} regions"


def _audited(output: str, rows: int) -> str:
    Sink(output, lambda: None).audit(np.arange(rows))
    return "none missing, none twice"


def _summed(output: str) -> str:
    return f"{write_statistics(output, CAMVID.num_classes, ['split'])['ok']:,} ok"


def _judged(manifest_uri: str, output: str) -> str:
    from pipeline.increment import Carrier, KeyIndex

    manifest = open_manifest(manifest_uri)
    assert manifest is not None
    index = KeyIndex(manifest, Portion().ids(manifest))
    carrier = Carrier(output, index, list(manifest.units()), schema.predictions_schema(manifest.travelling))
    files = storage.list_names(f"{output}/predictions")
    carried = sum(int((carrier.judge(f"{output}/predictions/{name}")[1] >= 0).sum()) for name in files)
    return f"{carried:,} carried"


# ---- listing ---------------------------------------------------------------------------------------------------------


def listing(config: ListingConfig) -> None:
    with _folder(None) as folder:
        _header(f"{config.keys:,} keys")
        _measure("listed", _listed, config.keys, config.page_ms)
        _measure("listed into a manifest", _manifested, config.keys, config.page_ms, "s3://bucket", f"{folder}/listed")
        source = _write_inventory(f"{folder}/inventory", config.keys)
        _measure("inventory (CSV) into a manifest", _manifested, config.keys, config.page_ms, source, f"{folder}/made")
    print("\nThe S3 client is the real one; its answers come from memory, a page of 1,000 keys at a time.")


def _key(i: int) -> str:
    return f"footage/{i // 1000:06d}/{i:09d}.jpg"


def _simulate(keys: int, page_ms: float) -> None:
    """In this process `s3://` is a store whose listing is made up page by page."""
    import fsspec
    import s3fs

    class Simulated(s3fs.S3FileSystem):  # type: ignore[misc]  # s3fs carries no types
        async def _list_pages(self, method: str, **options: Any) -> AsyncIterator[dict[str, Any]]:
            for begin in range(0, keys, _PAGE):
                await asyncio.sleep(page_ms / 1000)
                numbers = range(begin, min(keys, begin + _PAGE))
                yield {"Contents": [{"Key": _key(i), "Size": 10_000 + i, "ETag": f'"{i:032x}"'} for i in numbers]}

        async def _isdir(self, path: str) -> bool:
            return path.rstrip("/") == "bucket"

    fsspec.register_implementation("s3", Simulated, clobber=True)


def _listed(keys: int, page_ms: float) -> str:
    _simulate(keys, page_ms)
    return f"{sum(1 for _ in storage.walk_files('s3://bucket')):,} files"


def _manifested(keys: int, page_ms: float, source: str, uri: str) -> str:
    _simulate(keys, page_ms)
    with contextlib.redirect_stderr(io.StringIO()):
        return f"{build_manifest(source, uri).num_rows:,} rows"


def _write_inventory(folder: str, keys: int) -> str:
    order = np.random.default_rng(1).permutation(keys)
    files = []
    for number, numbers in enumerate(np.array_split(order, max(1, keys // 250_000))):
        text = io.StringIO()
        rows = (["bucket", _key(i), 10_000 + i, f"{i:032x}"] for i in numbers.tolist())
        csv.writer(text, quoting=csv.QUOTE_ALL).writerows(rows)
        storage.write_bytes(f"{folder}/data/{number}.csv.gz", gzip.compress(text.getvalue().encode(), 1))
        files.append({"key": f"data/{number}.csv.gz"})
    about = {"sourceBucket": "bucket", "fileFormat": "CSV", "fileSchema": "Bucket, Key, Size, ETag", "files": files}
    storage.write_json(f"{folder}/now/manifest.json", about)
    return f"{folder}/now/manifest.json"


# ---- pictures --------------------------------------------------------------------------------------------------------


def pictures(config: PicturesConfig) -> None:
    steps = [int(step) for step in config.steps.split(",")]
    from tiny import make_tiny

    with _folder(None) as folder:
        checkpoint = config.checkpoint or make_tiny(Path(folder, "checkpoint"))
        print("   runner  pictures   wall s  start s  ms each  pictures/s  share  driver MiB")
        drawn = 0
        for step, runner in itertools.product(steps, config.runners.split(",")):
            _draw(f"{folder}/pictures", drawn, step, config.height, config.width)
            drawn = step
            output = f"{folder}/out-{step}"
            wall_s, driver_mib = _run_job(f"{folder}/pictures", checkpoint, output, runner)
            speed = json.loads(Path(output, "_SUCCESS").read_text())["speed"]
            each_ms = 1000 * (wall_s - speed["startup_s"]) / step
            print(
                f"{runner:>9} {step:>9,} {wall_s:>8.1f} {speed['startup_s']:>8.1f} {each_ms:>8.2f}"
                f" {speed['pictures_per_s']:>11.1f} {speed['predictor_share']:>6.2f} {driver_mib:>11.0f}",
                flush=True,
            )
            shutil.rmtree(output)
    print(
        "\nms each: wall time after the start-up; pictures/s and share (of the predictor's own rate) in steady state."
    )


def _draw(folder: str, begin: int, end: int, height: int, width: int) -> None:
    import simplejpeg

    rng = np.random.default_rng(begin)
    kinds = [simplejpeg.encode_jpeg(rng.integers(0, 256, (height, width, 3), np.uint8), quality=80) for _ in range(64)]
    for i in range(begin, end):
        target = Path(folder, f"{i // 1000:04d}")
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{i:07d}.jpg").write_bytes(kinds[i % len(kinds)])


def _run_job(source: str, checkpoint: str, output: str, runner: str) -> tuple[float, float]:
    """Wall seconds and the driver's peak resident memory (MiB), read while it runs."""
    command = [sys.executable, str(PROJECT / "jobs" / "segment.py"), "--source", source]
    command += ["--checkpoint", checkpoint, "--output", output, "--runner", runner]
    begin_s, peak_mib = time.monotonic(), 0.0
    with tempfile.TemporaryFile() as log:
        job = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while job.poll() is None:
                with contextlib.suppress(OSError):
                    peak_mib = max(peak_mib, _peak_mib(job.pid))
                time.sleep(0.2)
        finally:
            job.terminate()
            job.wait()
        wall_s = time.monotonic() - begin_s
        if job.returncode:
            log.seek(0)
            raise InputError("the job failed", found=log.read().decode(errors="replace")[-400:])
    return wall_s, peak_mib


# ---- measuring -------------------------------------------------------------------------------------------------------


def _header(of: str) -> None:
    print(f"{of:<56} {'wall s':>7} {'CPU s':>7} {'peak MiB':>9}")


def _measure(what: str, work: Callable[..., str], *args: Any) -> None:
    """One line: `work(*args)` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        wall_s, cpu_s, peak_mib, told = pool.submit(_timed, work, args).result()
    print(f"{what:<56} {wall_s:>7.1f} {cpu_s:>7.1f} {peak_mib:>9.0f}  {told}", flush=True)


def _timed(work: Callable[..., str], args: tuple[Any, ...]) -> tuple[float, float, float, str]:
    begin_s, cpu_s = time.monotonic(), time.process_time()
    told = work(*args)
    return time.monotonic() - begin_s, time.process_time() - cpu_s, _peak_mib(os.getpid()), told


def _peak_mib(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0  # a process that has just ended has no memory


@contextlib.contextmanager
def _folder(given: str | None) -> Iterator[str]:
    if given is not None:
        yield storage.absolute(given)
        return
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        yield folder


JOBS: dict[str, tuple[Callable[..., None], type]] = {
    "plan": (plan, PlanConfig),
    "listing": (listing, ListingConfig),
    "pictures": (pictures, PicturesConfig),
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in JOBS:
        print(f"usage: python benchmarks/scale.py {'|'.join(JOBS)} [--help]", file=sys.stderr)
        sys.exit(2)
    job, config_class = JOBS[sys.argv[1]]
    main(job, config_class, sys.argv[2:])
