"""Pictures of phones in HEIC, through pillow-heif (the extra `heic`); the container turns them upright."""

import io
from typing import BinaryIO

import numpy as np

from wardpose.shared.data import pixels
from wardpose.shared.data.records import Frame


def heic_shape(file: BinaryIO) -> tuple[int, int, int]:
    """Count the pictures, and give the height and width of the largest."""
    import pillow_heif

    pages = list(pillow_heif.open_heif(file))
    width, height = max((page.size for page in pages), key=lambda size: size[0] * size[1])
    return len(pages), height, width


def heic_pages(content: bytes) -> list[Frame]:
    """Decode every picture; thumbnails, depth and gain maps are none."""
    import pillow_heif

    return [pixels.frame(np.asarray(page)) for page in pillow_heif.open_heif(io.BytesIO(content))]
