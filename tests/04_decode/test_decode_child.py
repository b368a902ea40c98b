"""The process that decodes: its limits, its death, which costs one picture, and every hostile file."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from encoded import encoded
from PIL import Image

from pipeline.decode import DecodeError, DecodeTimeout, TooLarge, read_header
from pipeline.decode.child import DecodeChild
from pipeline.decode.picture import decode, decode_label


@pytest.fixture(scope="module")
def child():
    with DecodeChild() as child:
        yield child


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # Pillow's; the child silences it
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_limit_is_judged_from_the_header(format, child):
    data = encoded(Image.new("L", (1000, 1001)), format)
    assert decode(data, max_pixels=1_001_000).shape == (1001, 1000, 3)
    for function in (decode, decode_label, child.decode, read_header, child.header):
        with pytest.raises(TooLarge, match="1001000 pixels"):
            function(data, max_pixels=1_000_999)


def test_an_enormous_header_allocates_nothing(child):
    data = bytearray(encoded(Image.new("1", (8, 8)), "BMP"))
    data[18:26] = (2**30).to_bytes(4, "little") * 2
    with pytest.raises(TooLarge):
        child.decode(bytes(data))


def test_colour_labels(child):
    colors = np.zeros((3, 4, 3), np.uint8)
    colors[1] = (128, 0, 64)
    assert np.array_equal(child.decode(encoded(Image.fromarray(colors), "PNG"), "label"), colors)


def test_child_gives_what_the_function_gives(child):
    rng = np.random.default_rng(0)
    for shape in ((5, 7, 3), (480, 360, 3), (2000, 3000, 3)):
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
        got = child.decode(encoded(Image.fromarray(pixels), "BMP"))
        assert np.array_equal(got, pixels)
        assert got.flags.writeable
    deep = rng.integers(0, 65536, (30, 40), dtype=np.uint16)
    assert np.array_equal(child.decode(encoded(Image.fromarray(deep), "PNG"), "label"), deep)


def test_a_crash_costs_one_picture():
    data = encoded(Image.new("RGB", (8, 8)), "PNG")
    with DecodeChild() as child:
        child.decode(data)
        pid = child.pid
        os.kill(pid, signal.SIGSTOP)  # so that it dies while the picture is its own
        timer = threading.Timer(0.3, lambda: (os.kill(pid, signal.SIGSEGV), os.kill(pid, signal.SIGCONT)))
        timer.start()
        with pytest.raises(DecodeError, match="SIGSEGV"):
            child.decode(data)
        assert child.decode(data).shape == (8, 8, 3)
        assert child.pid != pid


def test_a_death_between_two_pictures_costs_none():
    data = encoded(Image.new("RGB", (8, 8)), "PNG")
    with DecodeChild() as child:
        child.decode(data)
        os.kill(child.pid, signal.SIGKILL)
        time.sleep(0.2)
        assert child.decode(data).shape == (8, 8, 3)


def test_a_hang_ends_at_the_deadline():
    data = encoded(Image.new("RGB", (8, 8)), "PNG")
    with DecodeChild() as child:
        child.decode(data)
        pid = child.pid
        os.kill(pid, signal.SIGSTOP)
        start = time.monotonic()
        with pytest.raises(DecodeTimeout, match="0.5 s"):
            child.decode(data, deadline_s=0.5)
        assert time.monotonic() - start < 3
        assert not Path(f"/proc/{pid}").exists()
        assert child.decode(data).shape == (8, 8, 3)


def test_a_picture_that_needs_too_much_memory():
    data = encoded(Image.new("1", (12000, 8000)), "PNG")  # 12 KB that want 384 MB
    with DecodeChild(memory_limit_bytes=400 << 20) as child:
        with pytest.raises(DecodeError, match="memory"):
            child.decode(data)
        assert child.decode(encoded(Image.new("RGB", (8, 8)), "PNG")).shape == (8, 8, 3)


def test_threads_take_turns():
    pictures = [encoded(Image.new("RGB", (20 + i, 10), (i, 0, 0)), "PNG") for i in range(8)]
    wrong = []
    with DecodeChild() as child:

        def work(i: int) -> None:
            for _ in range(20):
                pixels = child.decode(pictures[i])
                if pixels.shape != (10, 20 + i, 3) or (pixels[..., 0] != i).any():
                    wrong.append(i)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_child_outlives_the_thread_that_started_it():
    data = encoded(Image.new("RGB", (8, 8)), "PNG")
    with DecodeChild() as child:
        thread = threading.Thread(target=child.decode, args=(data,))
        thread.start()
        thread.join()
        pid = child.pid
        time.sleep(0.3)
        child.decode(data)
        assert child.pid == pid


def test_the_child_dies_with_its_parent():
    program = (
        "import os, signal\n"
        "from pipeline.decode.child import DecodeChild\n"
        "child = DecodeChild()\n"
        "try: child.decode(b'x')\n"
        "except Exception: pass\n"
        "print(child.pid, flush=True)\n"
        "os.kill(child.pid, signal.SIGSTOP)\n"  # cannot read the closed pipe
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    run = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, timeout=60)
    pid = int(run.stdout)
    end = time.monotonic() + 5
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_the_child_loads_neither_torch_nor_ray(child):
    child.decode(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    maps = Path(f"/proc/{child.pid}/maps").read_text()
    assert "simplejpeg" in maps
    assert "libtorch" not in maps and "/ray/" not in maps


# --- real hostile files ---


def test_every_hostile_file(data_dir):
    """manifest.csv says what Pillow alone makes of each; a failure has a reason, and none kills or hangs the caller."""
    hostile = data_dir / "hostile"
    with open(hostile / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    wrong = []
    with DecodeChild() as child:
        for row in rows:
            data = (hostile / "files" / row["file"]).read_bytes()
            width, height = map(int, (row["size"] or "0x0").split("x"))
            if row["format"] != "TIFF" and row["exif_orientation"] in ("5", "6", "7", "8"):
                width, height = height, width
            try:
                pixels = child.decode(data, deadline_s=15)
                header = child.header(data, deadline_s=15)
                got: object = (row["loads"], pixels.shape, (header.height, header.width))
                ok = got == ("1", (height, width, 3), (height, width))
            except DecodeError as error:
                got = f"{type(error).__name__}: {error}"
                # "not loaded: over 60 Mpixel" is what the probe declined; a decoder may go further
                ok = row["loads"] == "0" and len(str(error)) > 10
            if not ok:
                wrong.append((row["file"], row["size"], got))
        label_errors = 0
        for row in rows:
            try:
                child.decode((hostile / "files" / row["file"]).read_bytes(), "label", deadline_s=15)
            except DecodeError:
                label_errors += 1
    assert not wrong
    assert len(rows) > 200
    assert label_errors < len(rows) / 2
