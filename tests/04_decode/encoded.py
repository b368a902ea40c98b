"""A drawn picture as the bytes of a file."""

from __future__ import annotations

import io

from PIL import Image


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()
