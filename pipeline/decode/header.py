"""What a picture's file says about itself before any pixel is decoded."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image, UnidentifiedImageError

EXIF_ORIENTATION = 0x0112
# Decoding these starts an interpreter of a programming language on a stranger's file.
REFUSED_FORMATS = {"EPS"}


class DecodeError(Exception):
    """A file that is no picture, or a broken one; the text is the reason. `status` is the row's status."""

    status: ClassVar[str] = "decode_error"


class TooLarge(DecodeError):
    """More pixels than allowed, judged from the header before anything is allocated."""

    status = "too_large"


class DecoderDied(DecodeError):
    """The decoding process ended while the picture was its own."""


class DecodeTimeout(DecodeError):
    """Not decoded by its deadline."""

    status = "timeout"


@dataclass(frozen=True)
class Header:
    """`width` and `height` are those of the decoded picture, so after its EXIF orientation; `bands` as stored."""

    format: str
    width: int
    height: int
    bands: int
    frames: int = 1


def read_header(data: bytes, *, max_pixels: int | None = None) -> Header:
    """Format, size, bands and number of frames of the picture in `data`, without decoding it.

    Raises DecodeError where it is none, TooLarge above `max_pixels` (None = no limit).
    """
    with open_picture(data, max_pixels=max_pixels) as image:
        width, height = image.size
        if orientation(image) >= 5 and image.format != "TIFF":  # Pillow turns TIFF itself
            width, height = height, width
        try:
            frames = int(getattr(image, "n_frames", 1))
        except Exception:  # a broken second frame does not make the first one unreadable
            frames = 1
        return Header(image.format or "", width, height, len(image.getbands()), max(1, frames))


@contextmanager
def open_picture(data: bytes, *, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """The opened, not yet loaded Pillow image of `data`; errors inside the `with` become DecodeError or TooLarge."""
    if not data:
        raise DecodeError("empty file (0 bytes)")
    with _pillow_limit(max_pixels):
        about = ""
        try:
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
                about = f" ({image.format} {width}x{height})"
                if max_pixels is not None and width * height > max_pixels:
                    raise TooLarge(f"{width * height} pixels{about}, limit {max_pixels}")
                if width < 1 or height < 1:
                    raise DecodeError(f"picture without pixels{about}")
                if image.format in REFUSED_FORMATS:
                    raise DecodeError(f"{image.format} is not decoded: it is a program, not a picture{about}")
                yield image
        except DecodeError:
            raise
        except UnidentifiedImageError:
            raise DecodeError(f"not a known picture ({len(data)} bytes, begins {data[:12]!r})") from None
        except Image.DecompressionBombError as error:  # "Image size (N pixels) exceeds limit of M pixels, could be..."
            raise TooLarge(str(error).split(",")[0] + about) from None
        except MemoryError:
            raise DecodeError(f"more memory needed than the decoder may use{about}") from None
        except Exception as error:  # decoders raise whatever they met: struct.error, IndexError, SyntaxError, ...
            raise DecodeError(f"{type(error).__name__}: {error}{about}") from None


def orientation(image: Image.Image) -> int:
    """EXIF (or XMP) orientation 1..8 of an opened image; 1 where there is none or it cannot be read."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # a broken EXIF block does not make the pixels unreadable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


_limit_lock = threading.RLock()


@contextmanager
def _pillow_limit(max_pixels: int | None) -> Iterator[None]:
    """Pillow's own check, which also guards pictures inside pictures (ICO, ICNS), kept in a global: hence the lock.

    Pillow raises above twice its limit and warns above it.
    """
    with _limit_lock:
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None if max_pixels is None else max(1, -(-max_pixels // 2))
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before
