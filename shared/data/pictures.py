"""Pictures from files."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, ImageSequence

from wardpose.shared.data.records import Frame
from wardpose.shared.errors import DataError

PICTURE_ENDINGS: frozenset[str] = frozenset(
    (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
)
"""Endings of the pictures that can be read here, lower case."""

_DOCUMENTS = {".csv", ".docx", ".html", ".json", ".md", ".pdf", ".txt", ".xlsx", ".xml", ".yaml", ".yml"}


def read_picture(path: Path) -> Frame:
    """Read an RGB picture (h, w, 3) uint8 from a file, upright.

    Raises:
        DataError: missing or broken, or of several pages.

    """
    pages = read_pages(path)
    if len(pages) > 1:
        raise DataError(f"{path}: has {len(pages)} pages (allowed: a picture of one)")
    return pages[0]


def read_pages(path: Path) -> list[Frame]:
    """Read every page of a picture, or every frame of an animation; one or more.

    Raises:
        DataError: missing or broken.

    """
    try:
        with Image.open(path) as image:
            return [_pixels(page) for page in ImageSequence.Iterator(image)]
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable picture ({error})") from error


def is_picture(path: Path) -> bool:
    """Whether a file is a picture that can be read here, by its ending or by its content."""
    if path.suffix.lower() in PICTURE_ENDINGS:
        return True
    try:
        with Image.open(path):
            return True
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def why_not(path: Path) -> str:
    """Say in a phrase why a file that is not read is not."""
    if path.suffix.lower() in _DOCUMENTS:
        return "a document, not a picture"
    return "not a picture or a video that can be read here"


def _pixels(image: Image.Image) -> Frame:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.array(ImageOps.exif_transpose(image).convert("RGB"), np.uint8)
