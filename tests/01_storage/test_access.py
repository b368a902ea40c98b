"""How a store is asked: unsigned, at the reader's own cost, and what is said where it cannot be reached."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import s3fs
from conftest import Finished, free_port

from pipeline import storage
from pipeline.storage import folders

LISTING = b"""<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>public</Name><Prefix>a/</Prefix>
<KeyCount>1</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>
<Contents><Key>a/1.jpg</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>"e"</ETag><Size>3</Size>
<StorageClass>STANDARD</StorageClass></Contents></ListBucketResult>"""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, str]]]:
    """A store that notes the headers of every request; one object of three bytes lies in `public`."""
    seen: list[dict[str, str]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            seen.append({name.lower(): value for name, value in self.headers.items()})
            body = LISTING if "list-type" in self.path else b"abc"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"e"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()  # one that another test made asks elsewhere
    yield seen
    s3fs.S3FileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()


def requests_of(seen: list[dict[str, str]]) -> list[dict[str, str]]:
    """List and read through the project's own functions; the headers that were sent."""
    seen.clear()
    listed = list(folders.walk_files("s3://public/a"))
    assert [(file.path, file.size_bytes) for file in listed] == [("1.jpg", 3)]
    assert storage.read_version("s3://public/a/1.jpg", "etag-e", timeout_s=10) == b"abc"
    assert storage.read_bytes("s3://public/a/1.jpg") == b"abc"
    assert len(seen) >= 3
    return list(seen)


def test_requests_are_signed_by_default(bucket: list[dict[str, str]]) -> None:
    assert all("authorization" in headers for headers in requests_of(bucket))


@pytest.mark.parametrize("word", ["YES", "true"])
def test_a_public_bucket_is_asked_unsigned(
    bucket: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", word)
    assert not any("authorization" in headers for headers in requests_of(bucket))


def test_a_requester_pays(bucket: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    assert all(headers.get("x-amz-request-payer") == "requester" for headers in requests_of(bucket))


def test_workers_are_told_too() -> None:
    """A worker of a local Ray sees the variables of the command that started it."""
    code = (
        "import os, ray\n"
        "from pipeline.runtime.cluster import connect\n"
        "connect([])\n"
        "names = ['AWS_NO_SIGN_REQUEST', 'AWS_REQUEST_PAYER']\n"
        "print(ray.get(ray.remote(lambda: [os.environ.get(name) for name in names]).remote()))\n"
    )
    from conftest import PROJECT, job_environment

    variables = {"AWS_NO_SIGN_REQUEST": "YES", "AWS_REQUEST_PAYER": "requester"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=job_environment() | variables,
        cwd=PROJECT,
    )
    assert "['YES', 'requester']" in done.stdout, done.stderr


@pytest.mark.parametrize("job", ["manifest", "segment"])
def test_a_source_that_cannot_be_reached(job: str, tmp_path: Path, run_job: Callable[..., Finished]) -> None:
    source, output = f"https://127.0.0.1:{free_port()}/folder/", tmp_path / "out"
    more = ["--checkpoint", tmp_path] if job == "segment" else []
    if job == "segment":
        pytest.importorskip("torch")
        from pipeline.labels import ROADS
        from pipeline.models import build_model
        from pipeline.models.checkpoint import save_checkpoint
        from pipeline.models.spec import ModelSpec

        model = "fpn_fcn"
        save_checkpoint(
            str(tmp_path), build_model(model, num_classes=2, width=0.02), ModelSpec(model, {"width": 0.02}, ROADS)
        )
    refused = run_job(job, "--source", source, "--output", output, *more)
    assert refused.code == 2, refused.stderr
    assert refused.error.startswith(f"error: cannot be reached: {source}") and "ClientConnector" in refused.error
    assert not output.exists()


DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store that gives what is named and denies all else: listings, and what is not there. Its endpoint."""
    files = {"/public/list.csv": b"uri\ns3://public/a.jpg\ns3://public/gone.jpg\n", "/public/a.jpg": b"abc"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            body = files.get(self.path.split("?")[0], DENIED)
            self.send_response(403 if body is DENIED else 200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"e"')
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    variables = {
        "ENDPOINT_URL": endpoint,
        "ACCESS_KEY_ID": "a",
        "SECRET_ACCESS_KEY": "b",
        "DEFAULT_REGION": "us-east-1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    yield endpoint
    s3fs.S3FileSystem.clear_instance_cache()
    server.shutdown()
    server.server_close()


def test_a_table_is_read_where_the_bucket_may_not_be_listed(
    unlisted: str, tmp_path: Path, run_job: Callable[..., Finished]
) -> None:
    """As of many public buckets. What cannot be had of it fails as its own row later."""
    for number, source in enumerate(("s3://public/list.csv", f"{unlisted}/public/list.csv")):
        done = run_job("manifest", "--source", source, "--output", tmp_path / f"m{number}")
        assert done.code == 0 and done.stdout.startswith("2 pictures"), done.stderr
        rows = pq.read_table(tmp_path / f"m{number}" / "part-00000.parquet").to_pylist()
        assert [(row["uri"], row["size_bytes"]) for row in rows] == [
            ("s3://public/a.jpg", 3),
            ("s3://public/gone.jpg", None),
        ]


def test_what_a_store_denies_is_said_to_be_denied(
    unlisted: str, tmp_path: Path, run_job: Callable[..., Finished]
) -> None:
    for source in ("s3://public/drive", "s3://public/*.jpg", f"{unlisted}/public/"):
        refused = run_job("manifest", "--source", source, "--output", tmp_path / "m")
        assert refused.code == 2 and refused.error.startswith(f"error: access is denied: {source.rstrip('/')}")
    refused = run_job("manifest", "--source", "s3://No_Bucket!/x", "--output", tmp_path / "m")
    assert refused.code == 2 and "Invalid bucket name" in refused.error
    assert not (tmp_path / "m").exists()
