"""Pictures and label pictures of any format and mode -> arrays.

JPEG goes through simplejpeg (libjpeg-turbo straight into the array); everything else, and every JPEG that simplejpeg
finds odd, goes through Pillow, whose word is final on what can be loaded.
"""

from __future__ import annotations

import numpy as np
import simplejpeg
from PIL import Image, ImageCms

from pipeline.decode.header import DecodeError, open_picture, orientation, read_header

__all__ = ["MAX_PIXELS", "decode", "decode_label", "read_header"]

MAX_PIXELS = 100_000_000


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The picture as people see it: uint8, H x W x 3, RGB, EXIF orientation applied, first frame of several.

    Transparency is dropped (the stored colours stay). Depths above 8 bits are scaled, see `_to_bytes`.
    Raises DecodeError with the reason, TooLarge above `max_pixels` before anything is allocated.
    """
    with open_picture(data, max_pixels=max_pixels) as image:
        turn = 0
        pixels = None
        if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
            turn = orientation(image)
            try:
                pixels = simplejpeg.decode_jpeg(data, colorspace="RGB")
            except ValueError:  # strict: also raised for what Pillow shrugs at, such as junk between markers
                pixels = None
        if pixels is None:
            image.load()
            turn = orientation(image)  # after loading: Pillow turns TIFF itself
            pixels = _to_rgb(image)
        return _turned(pixels, turn)


def decode_label(data: bytes, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The raw values of a label picture: H x W of uint8, uint16 or int32, or H x W x 3 uint8 where it holds colours
    (H x W x 4, with alpha, where some of it is transparent).

    Palette indices stay indices, values of any depth stay what is stored. Raises as `decode` does, and DecodeError
    for values that are not whole numbers.
    """
    with open_picture(data, max_pixels=max_pixels) as image:
        image.load()
        turn = orientation(image)
        if image.mode in ("LA", "PA", "La"):
            values = np.array(image.getchannel(0))
        elif image.mode == "1" or image.mode in ("L", "P"):
            values = np.array(image).astype(np.uint8) // _spread(image, data)
        elif image.mode.startswith("I;16"):
            values = np.array(image).astype(np.uint16)
        elif image.mode == "I":
            values = np.array(image)
        elif image.mode == "F":
            values = _whole_numbers(np.array(image))
        else:
            values = _to_rgb(image)
            if image.mode == "RGBA" and image.getchannel("A").getextrema()[0] == 0:
                values = np.dstack([values, np.array(image.getchannel("A"))])
        return _turned(values, turn)


def _to_rgb(image: Image.Image) -> np.ndarray:
    """A loaded image of any mode -> uint8, H x W x 3."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.repeat(_to_bytes(np.array(image))[..., None], 3, axis=2)
    if image.mode == "LAB":  # the one mode Pillow's convert does not know
        image = (
            ImageCms.profileToProfile(
                image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            or image
        )
    if image.mode in ("La", "RGBa"):  # colours multiplied by alpha
        image = image.convert(image.mode[:-1] + "A")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _to_bytes(values: np.ndarray) -> np.ndarray:
    """Deep grey values, H x W, -> uint8.

    Whole numbers: the depth is 8, 12 or 16 bits, the least that holds the picture's largest value (12-bit sensors
    write into 16-bit files). Floats in 0..1 are spread over 0..255. Negative and larger values: least to largest are
    spread over 0..255. NaN and infinities are 0.
    """
    values = np.where(np.isfinite(values), values, 0)
    least, largest = float(values.min()), float(values.max())
    if values.dtype.kind == "f" and least >= 0 and largest <= 1:
        top = 1.0
    elif least >= 0 and largest <= 65535:
        top = next(float(top) for top in (255, 4095, 65535) if largest <= top)
    else:
        values, top = values.astype(np.float64) - least, (largest - least) or 1.0
    return np.rint(values.astype(np.float32) * np.float32(255 / top)).astype(np.uint8)


def _whole_numbers(values: np.ndarray) -> np.ndarray:
    whole = np.where(np.isfinite(values), np.rint(values), -1)
    if not np.array_equal(whole, values) or np.abs(whole).max() > 2**31 - 1:
        raise DecodeError("label values are not whole numbers")
    return whole.astype(np.int32)


def _spread(image: Image.Image, data: bytes) -> int:
    """By how much Pillow multiplied 2- and 4-bit grey values to fill 0..255 (palette indices it leaves alone)."""
    if image.mode != "L":
        return 1
    bits = 8
    if image.format == "PNG" and len(data) > 25:
        bits = data[24]  # IHDR: signature 8, length 4, name 4, width 4, height 4, bit depth
    elif image.format == "TIFF":
        bits = image.tag_v2.get(258, (8,))[0]  # type: ignore[attr-defined]
    return {2: 85, 4: 17}.get(bits, 1)


def _turned(pixels: np.ndarray, exif_orientation: int) -> np.ndarray:
    """Undo the way the camera was held: EXIF 2.3, tag 0x0112."""
    if exif_orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if exif_orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if exif_orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
