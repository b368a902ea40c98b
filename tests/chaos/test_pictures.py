"""What pictures themselves do: broken, deadly, endless, enormous, gone, replaced, oddly named."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from conftest import S3
from PIL import Image

from chaos.audit import rows_of
from chaos.conftest import BROKEN, MakeJobs, Undisturbed, marked
from chaos.record import recorded
from pipeline import read_predictions, storage
from pipeline.catalog.manifest import region_key
from pipeline.catalog.manifest_writer import build_manifest

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]


def enormous() -> bytes:
    """A BMP of 64 KB whose header asks for 34 gigapixels: 102 GB as RGB."""
    head = struct.pack("<IiiHHIIiiII", 40, 200_000, 170_000, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 65536, 0, 0, 54) + head + bytes(65536 - 54)


def good_pictures(pictures: Path) -> list[Path]:
    return [file for file in sorted(pictures.iterdir()) if file.name != BROKEN]


def test_pictures_that_kill_hang_or_exhaust_their_decoder(
    make_jobs: MakeJobs, pictures: Path, folder: Path, undisturbed: Undisturbed
) -> None:
    """Among good ones; each costs its own row. One is killed once from outside and costs nothing."""
    collection = folder / "collection"
    shutil.copytree(pictures, collection)
    template = good_pictures(pictures)[0]
    deadly = {
        "10-segfault.png": ("chaos: segfault", "decode_error", "SIGSEGV"),
        "20-hang.png": ("chaos: hang", "timeout", "not decoded in 4 s"),
        "21-exit.png": ("chaos: exit", "decode_error", "exit code 3"),
        "30-memory.png": ("chaos: 100 GB", "decode_error", "more memory needed than the decoder may use"),
    }
    for name, (mark, _, _) in deadly.items():
        (collection / name).write_bytes(marked(template, mark))
    (collection / "31-enormous.bmp").write_bytes(enormous())
    (collection / "32-once.png").write_bytes(marked(template, f"chaos: killed once in {folder / 'once'};"))
    expected = dict(undisturbed.rows)
    for name, (_, status, _) in deadly.items():
        expected[region_key(name)] = (status, None)
    expected[region_key("31-enormous.bmp")] = ("decode_error", None)
    expected[region_key("32-once.png")] = expected[region_key(template.name)]
    told = "segfault, hang, sudden exit, 100 GB (asked for; and by its header), killed once from outside"
    with recorded("pictures", f"pictures that end their decoder: {told} (on Ray)") as case:
        with case.attempt():
            runs = make_jobs(source=collection, decode_deadline_s=4, max_pixels=10**11)
            output = runs.output()
            runs.finish(output)
            assert (folder / "once").exists()
            case.audit(output, expected)
            errors = {row["path"]: row["error"] for row in read_predictions(output, columns=["path", "error"])}
            for name, (_, _, says) in deadly.items():
                assert says in errors[name], errors[name]
            assert "memory" in errors["31-enormous.bmp"].lower(), errors["31-enormous.bmp"]
            assert errors["32-once.png"] is None


def test_every_hostile_file_among_good_ones(
    make_jobs: MakeJobs, pictures: Path, folder: Path, undisturbed: Undisturbed, data_dir: Path
) -> None:
    """Each good one right, each bad one a row with its reason, none fatal. Which are bad: see test_03_child."""
    collection = folder / "collection"
    shutil.copytree(data_dir / "hostile" / "files", collection)
    expected = {}
    for file in good_pictures(pictures):
        shutil.copyfile(file, collection / f"good-{file.name}")
        expected[region_key(f"good-{file.name}")] = undisturbed.rows[region_key(file.name)]
    with recorded("pictures", "every file of `hostile/` among 39 good ones (on Ray)") as case:
        with case.attempt():
            runs = make_jobs(source=f"{collection}/*", rows_per_file=32, decode_deadline_s=20)
            output = runs.output()
            runs.finish(output)
            found = case.audit(output, expected)
            assert found.regions == len(list(collection.iterdir()))
            for row in read_predictions(output):
                if row["status"] == "ok":
                    assert row["mask"].shape == (row["height"], row["width"]) and row["error"] is None
                else:
                    assert row["error"] and row["mask"] is None
            assert found.statuses["ok"] > 150 and not set(found.statuses) - {"ok", "decode_error", "too_large"}


def test_pictures_gone_or_replaced_since_the_manifest(
    make_jobs: MakeJobs, pictures: Path, folder: Path, undisturbed: Undisturbed, s3: S3
) -> None:
    """Locally and on S3: `changed`, of another length and of the same; the others as ever."""
    with recorded("pictures", "deleted or replaced between manifest and fetch (on Ray; local and moto)") as case:
        for where in (str(folder / "collection"), s3.uri("collection")):
            with case.attempt(where):
                for file in pictures.iterdir():
                    storage.write_bytes(f"{where}/{file.name}", file.read_bytes())
                listed = f"{where}-manifest"
                build_manifest(where, listed)
                gone, longer, same = good_pictures(pictures)[3:6]
                storage.remove(f"{where}/{gone.name}")
                storage.write_bytes(f"{where}/{longer.name}", longer.read_bytes() + b"more")
                storage.write_bytes(f"{where}/{same.name}", same.read_bytes()[:-4] + b"else")
                if "://" not in where:
                    os.utime(f"{where}/{same.name}", (1, 1))
                expected = dict(undisturbed.rows)
                expected |= {region_key(file.name): ("changed", None) for file in (gone, longer, same)}
                runs = make_jobs(source=listed)
                output = runs.output()
                runs.finish(output)
                case.audit(output, expected, manifest=listed, endpoint=s3.endpoint)


ODD = [
    "a b.png",
    "ü-λ-写.png",
    "100%.png",
    "%2e%2e.png",
    "a#b.png",
    "a?b.png",
    "a?versionId=1.png",
    "a..b.png",
    "a&b=c+d.png",
]
ODD += ["x/../y.png", "./z.png", "a//b.png", "quote'\".png", "star*[1].png", "~home.png", "semi;colon,comma.png"]


def test_odd_keys(make_jobs: MakeJobs, pictures: Path, folder: Path, undisturbed: Undisturbed, s3: S3) -> None:
    """Keys that paths and URLs are bad at. Locally without those that a file system has no name for."""
    good = good_pictures(pictures)
    client = boto3_client(s3)
    with recorded(
        "pictures", f"{len(ODD)} odd keys: `..`, spaces, unicode, `%`, `#`, `?` (on Ray; local, moto)"
    ) as case:
        for where in (str(folder / "collection"), s3.uri("odd")):
            local = "://" not in where
            names = [name for name in ODD if not local or ("//" not in name and "./" not in name)]
            expected = {}
            for name, file in zip(names, good, strict=False):
                if local:
                    Path(where).mkdir(exist_ok=True)
                    Path(where, name).write_bytes(file.read_bytes())
                else:
                    client.put_object(Bucket=s3.bucket, Key=f"odd/{name}", Body=file.read_bytes())
                expected[region_key(name)] = undisturbed.rows[region_key(file.name)]
            with case.attempt(where):
                runs = make_jobs(source=where)
                output = runs.output()
                runs.finish(output)
                found = case.audit(output, expected)
                assert found.regions == len(names)
                paths = {row["path"] for row in read_predictions(output, columns=["path"])}
                assert paths == set(names)


def boto3_client(s3: S3) -> object:
    import boto3

    return boto3.client("s3", endpoint_url=s3.endpoint)


def test_a_batch_too_large_and_a_picture_the_network_raises_on(
    make_jobs: MakeJobs, pictures: Path, folder: Path
) -> None:
    """The network stands in for a device: more than two pictures of a batch are too many for its memory, one shape is
    too large for it even alone, and one picture it raises on. The others have the masks of batches that fit."""
    collection = folder / "collection"
    shutil.copytree(pictures, collection)
    Image.new("RGB", (64, 16), (200, 30, 30)).save(collection / "50-too-large.png")
    Image.new("RGB", (16, 64), (255, 0, 255)).save(collection / "51-raises.png")
    with recorded("pictures", "batch too large for memory, alone too large, a network that raises (on Ray)") as case:
        with case.attempt():
            twos = make_jobs(source=collection, batch_size=2)
            fitting = twos.output()
            twos.finish(fitting)
            expected = rows_of(fitting)
            expected |= {region_key(name): ("model_error", None) for name in ("50-too-large.png", "51-raises.png")}
            output = twos.output()
            driver = twos.start(output, "--batch-size=8", env={"SEGMENTATION_CHAOS_NETWORK": "1"})
            assert driver.wait() == 0, driver.stderr
            case.audit(output, expected)
            errors = {row["path"]: row["error"] for row in read_predictions(output, columns=["path", "error"])}
            assert "memory" in errors["50-too-large.png"] and "magenta" in errors["51-raises.png"], errors
            assert np.all([errors[file.name] is None for file in good_pictures(pictures)])
