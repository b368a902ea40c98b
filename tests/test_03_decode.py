"""Decoding: every mode, the way the camera was held, raw label values, and a child whose death costs one picture."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.decode import DecodeError, DecodeTimeout, TooLarge, read_header
from pipeline.decode.child import DecodeChild
from pipeline.decode.picture import decode, decode_label

pytestmark = [  # Pillow's remarks about odd pictures; the child silences them
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning"),
]

RAMP = np.arange(24, dtype=np.uint8).reshape(4, 6)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def child():
    with DecodeChild() as child:
        yield child


# --- modes ---


def test_rgb_jpeg_is_what_pillow_makes_of_it():
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((161, 119))
    for subsampling in (0, 1, 2):
        data = encoded(smooth, "JPEG", quality=80, subsampling=subsampling)
        assert np.array_equal(decode(data), np.array(Image.open(io.BytesIO(data))))


def test_grey_and_cmyk_jpeg():
    grey = encoded(Image.new("L", (9, 5), 77), "JPEG")
    assert decode(grey).shape == (5, 9, 3)
    assert np.unique(decode(grey)).tolist() == [77]
    red = decode(encoded(Image.new("CMYK", (9, 5), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(red.astype(int) - (255, 0, 0)).max() < 4


def test_alpha_and_palette():
    assert decode(encoded(Image.new("RGBA", (3, 2), (9, 8, 7, 0)), "PNG"))[0, 0].tolist() == [9, 8, 7]
    assert decode(encoded(Image.new("LA", (3, 2), (50, 0)), "PNG"))[0, 0].tolist() == [50, 50, 50]
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    for options in ({}, {"transparency": 0}, {"transparency": b"\x00\x80"}):
        assert decode(encoded(palette, "PNG", **options))[0].tolist() == [[10, 20, 30], [40, 50, 60]]


def test_one_bit():
    image = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    data = encoded(image, "PNG")
    assert decode(data)[..., 0].tolist() == [[0, 255], [255, 0]]
    assert decode_label(data).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 65535]], np.uint16), [0, 255]),
        (np.array([[0, 4095]], np.uint16), [0, 255]),  # a 12-bit sensor
        (np.array([[0, 200]], np.uint16), [0, 200]),  # 8-bit values in a wide file
        (np.array([[-100, 0, 100]], np.int32), [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[np.nan, 0, 200]], np.float32), [0, 0, 200]),
        (np.array([[-1e30, np.inf, 1.1e30]], np.float32), [0, 121, 255]),
        (np.array([[7, 7]], np.int32), [7, 7]),
    ],
)
def test_deep_values_are_scaled(values, expected):
    pixels = decode(encoded(Image.fromarray(values), "TIFF"))
    assert pixels.dtype == np.uint8
    assert pixels[0, :, 0].tolist() == expected
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_lab_becomes_rgb():
    white = decode(encoded(Image.new("LAB", (2, 2), (255, 128, 128)), "TIFF"))
    assert white.min() > 245


# --- the way the camera was held ---


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_as_pillow_turns_it(format, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.kron(RAMP, np.full((16, 16), 10, np.uint8)))
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(image.convert("RGB"), format, exif=exif, **options)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(decode(data), expected)
    header = read_header(data)
    assert (header.height, header.width) == expected.shape[:2]


# --- headers and limits ---


def test_header():
    data = encoded(Image.new("RGB", (30, 20)), "GIF", save_all=True, append_images=[Image.new("RGB", (30, 20), "red")])
    header = read_header(data)
    assert (header.format, header.width, header.height, header.frames) == ("GIF", 30, 20, 2)
    assert decode(data).shape == (20, 30, 3)
    assert decode(data).max() == 0  # the first frame
    assert read_header(encoded(Image.new("RGBA", (3, 2)), "PNG")).bands == 4


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


# --- broken, and only odd ---


def test_reasons():
    photo = encoded(Image.effect_noise((64, 48), 50).convert("RGB"), "JPEG")
    with pytest.raises(DecodeError, match="truncated"):
        decode(photo[: len(photo) // 2])
    with pytest.raises(DecodeError, match="empty file"):
        decode(b"")
    with pytest.raises(DecodeError, match=r"not a known picture \(20 bytes, begins b'<html>"):
        decode(b"<html>no such object")
    assert np.array_equal(decode(photo + b"junk" * 100), decode(photo))


# --- labels ---


def test_palette_indices_and_values_stay_raw():
    palette = Image.fromarray(RAMP, "P")
    palette.putpalette(list(range(255, 255 - 72, -1)))
    assert np.array_equal(decode_label(encoded(palette, "PNG")), RAMP)
    assert np.array_equal(decode_label(encoded(Image.fromarray(RAMP), "PNG")), RAMP)
    deep = RAMP.astype(np.uint16) * 1000
    assert np.array_equal(decode_label(encoded(Image.fromarray(deep), "PNG")), deep)
    wide = RAMP.astype(np.int32) * 100_000
    assert np.array_equal(decode_label(encoded(Image.fromarray(wide), "TIFF")), wide)
    assert np.array_equal(decode_label(encoded(Image.fromarray(RAMP.astype(np.float32)), "TIFF")), RAMP)
    with pytest.raises(DecodeError, match="whole numbers"):
        decode_label(encoded(Image.fromarray(RAMP + np.float32(0.5)), "TIFF"))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_low_depth_grey_labels_keep_their_values(bits):
    """A grey PNG of 1, 2 or 4 bits, written by hand: Pillow spreads such values over 0..255."""
    import struct
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    values = np.arange(8) % (1 << bits)
    row = np.unpackbits(values.astype(np.uint8)[:, None], axis=1)[:, -bits:]
    head = struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" + np.packbits(row.ravel()).tobytes())
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert decode_label(data).tolist() == [values.tolist()]


def test_colour_labels(child):
    colors = np.zeros((3, 4, 3), np.uint8)
    colors[1] = (128, 0, 64)
    assert np.array_equal(child.decode(encoded(Image.fromarray(colors), "PNG"), "label"), colors)


# --- the child ---


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
