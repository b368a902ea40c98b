"""Decoding: every mode, the way the camera was held, and raw label values."""

from __future__ import annotations

import io

import numpy as np
import pytest
from encoded import encoded
from PIL import Image

from pipeline.decode import DecodeError, read_header
from pipeline.decode.picture import decode, decode_label

RAMP = np.arange(24, dtype=np.uint8).reshape(4, 6)


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


@pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")  # Pillow's
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


# --- headers ---


def test_header():
    data = encoded(Image.new("RGB", (30, 20)), "GIF", save_all=True, append_images=[Image.new("RGB", (30, 20), "red")])
    header = read_header(data)
    assert (header.format, header.width, header.height, header.frames) == ("GIF", 30, 20, 2)
    assert decode(data).shape == (20, 30, 3)
    assert decode(data).max() == 0  # the first frame
    assert read_header(encoded(Image.new("RGBA", (3, 2)), "PNG")).bands == 4


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
