"""Keep what this version writes: `python tests/recorded/record.py 0.1` fills tests/recorded/0.1/.

Drawn scenes on an S3 server of its own (so that no path of a machine is in any file), a tiny network, and every job
that writes: a manifest, a training run and its checkpoint, a segment run, one that was killed half-way, an evaluation.
Later versions must read all of it (test_versions.py).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
BUCKET = "recorded"
ROOT = f"s3://{BUCKET}"
NETWORK = "fpn_fcn?width=0.02"  # 10,000 parameters
KEPT = ("scenes", "manifest", "train", "checkpoint", "segment", "killed", "evaluate")
TOO_LARGE = ("train/_train", "train/best", "train/last", "train/tensorboard", "evaluate/report.html")


def main(version: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
        AWS_ACCESS_KEY_ID="testing",
        AWS_SECRET_ACCESS_KEY="testing",
        AWS_DEFAULT_REGION="us-east-1",
    )
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)])
    try:
        record(HERE / version)
    finally:
        server.terminate()


def record(folder: Path) -> None:
    import s3fs

    sys.path.insert(0, str(PROJECT))
    from pipeline.scenes import write_scenes

    s3 = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    for _ in range(100):
        try:
            s3.mkdir(BUCKET)
            break
        except OSError:
            time.sleep(0.1)
    with tempfile.TemporaryDirectory() as scratch:
        write_scenes(f"{scratch}/scenes", train=3, unseen=4)
        shrink(Path(scratch, "scenes"))
        s3.put(f"{scratch}/scenes/", f"{BUCKET}/scenes/", recursive=True)
    job("manifest", "--source", f"{ROOT}/scenes", "--output", f"{ROOT}/manifest")
    training = ["--source", f"{ROOT}/manifest", "--label-set", "scenes", "--model", NETWORK, "--crop", "32,32"]
    training += ["--batch-size", "2", "--max-steps", "20", "--precision", "float32", "--seed", "1"]
    job("train", *training, "--output", f"{ROOT}/train")
    s3.copy(f"{BUCKET}/train/best/", f"{BUCKET}/checkpoint/", recursive=True)
    segment = ["--source", f"{ROOT}/manifest", "--split", "val", "--checkpoint", f"{ROOT}/checkpoint"]
    segment += ["--num-predictors", "1"]
    job("segment", *segment, "--output", f"{ROOT}/segment")
    kill_half_way("segment", *segment, "--rows-per-file", "1", "--output", f"{ROOT}/killed", s3=s3)
    job("evaluate", "--predictions", f"{ROOT}/segment", "--labels", f"{ROOT}/manifest", "--output", f"{ROOT}/evaluate")
    for name in TOO_LARGE:
        s3.rm(f"{BUCKET}/{name}", recursive=True)
    shutil.rmtree(folder, ignore_errors=True)
    for name in KEPT:
        s3.get(f"{BUCKET}/{name}/", f"{folder}/{name}/", recursive=True)


def shrink(scenes: Path) -> None:
    """A quarter of the size: kilobytes, not megabytes."""
    from PIL import Image

    for path in scenes.rglob("*.png"):
        with Image.open(path) as image:
            image.resize((48, 36), Image.Resampling.NEAREST).save(path)


def job(name: str, *arguments: str) -> None:
    subprocess.run([sys.executable, str(PROJECT / "jobs" / f"{name}.py"), *arguments], check=True)


def kill_half_way(name: str, *arguments: str, s3: object) -> None:
    """SIGKILL to the driver as soon as two files are published, and its lease taken away as time would."""
    running = subprocess.Popen([sys.executable, str(PROJECT / "jobs" / f"{name}.py"), *arguments])
    while len(s3.glob(f"{BUCKET}/killed/predictions/*")) < 2:
        assert running.poll() is None, "ended before it could be killed"
        s3.invalidate_cache()
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    s3.invalidate_cache()
    assert not s3.exists(f"{BUCKET}/killed/_SUCCESS"), "it had ended already; record again"
    s3.rm(f"{BUCKET}/killed/_lease.json")


if __name__ == "__main__":
    main(sys.argv[1])
