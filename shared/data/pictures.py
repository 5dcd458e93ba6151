"""Pictures from files: one rule for every reader, trainer and anonymiser.

A picture is 8-bit RGB, **upright**: turned as its EXIF orientation says (in HEIC and AVIF, as its container says), for
whoever labels a picture sees it upright. An orientation that only XMP knows is ignored, as browsers do. Depth,
transparency and colour are as `pixels` says, DICOM as `dicom` says. A file that is cut is an error, whatever its
decoder would make of it; so is a file of several pages where one picture is asked for (previews and gain maps of
phones, and reduced copies in TIFF, are no pages).
"""

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from wardpose.shared.data.picture_decoders import Opened, PictureHeader, decode, open_header
from wardpose.shared.data.picture_kinds import (
    HEAD_BYTES,
    PICTURE_ENDINGS,
    is_picture,
    kind_of,
    missing_extra,
    why_not,
)
from wardpose.shared.data.records import Frame
from wardpose.shared.data.whole_files import check_whole
from wardpose.shared.errors import DataError

__all__ = [
    "PICTURE_ENDINGS",
    "PictureError",
    "PictureHeader",
    "is_picture",
    "picture_header",
    "picture_size",
    "read_pages",
    "read_picture",
    "why_not",
]


class PictureError(DataError):
    """A picture file is missing or cannot be used."""


MAX_PIXELS = 178_956_970
"""Most pixels of one page; beyond them a file is taken for a decompression bomb (Pillow's own limit)."""

_MAX_PIXELS_OF_PAGES = 4 * MAX_PIXELS
_T = TypeVar("_T")


def _naming_the_file(read: Callable[[Path], _T]) -> Callable[[Path], _T]:
    """Turn whatever a decoder raises over a damaged file into one line that names it."""

    @functools.wraps(read)
    def named(path: Path) -> _T:
        try:
            return read(path)
        except FileNotFoundError as error:
            raise PictureError(f"{path}: image is missing (allowed: an existing picture)") from error
        except Exception as error:  # decoders raise whatever they like
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PictureError(f"{path}: image is broken: {reason} (allowed: a complete picture)") from error

    return named


@_naming_the_file
def read_picture(path: Path) -> Frame:
    """Read a file of one picture as (H, W, 3) uint8 RGB, upright.

    Raises:
        PictureError: missing, of no known kind, broken, cut, or of more than one page; names the file.

    """
    return _read(path.read_bytes(), one=True)[0]


@_naming_the_file
def read_pages(path: Path) -> list[Frame]:
    """Read every page or animation frame of a file, in order.

    Raises:
        PictureError: as `read_picture`, or the pages together are too large; names the file.

    """
    return _read(path.read_bytes(), one=False)


@_naming_the_file
def picture_header(path: Path) -> PictureHeader:
    """Read what a file says about its one picture, without decoding it; errors as `read_picture`, where it tells."""
    with path.open("rb") as file:
        return _open(file, one=True).header


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width) of the upright picture, as `picture_header`."""
    header = picture_header(path)
    return header.height, header.width


def _read(content: bytes, *, one: bool) -> list[Frame]:
    opened = _open(io.BytesIO(content), one=one)
    check_whole(opened.kind, content)
    pages = decode(content, opened)
    if one and pages[0].shape[:2] != (opened.header.height, opened.header.width):
        raise DataError("its header and its pixels are of different sizes")
    return pages


def _open(file: BinaryIO, *, one: bool) -> Opened:
    head = file.read(HEAD_BYTES)
    kind = kind_of(head)
    if kind is None:
        raise DataError("it is of no kind of picture that is read here" if head else "the file is empty")
    if missing_extra(kind):
        raise DataError(f"it is {missing_extra(kind)}")
    opened = open_header(file, kind)
    header = opened.header
    if one and header.pages > 1:
        raise DataError(f"it has {header.pages} pages, not one (split it into single pictures)")
    pixels = header.height * header.width
    if min(header.height, header.width, header.pages) < 1 or (
        pixels > MAX_PIXELS or pixels * header.pages > _MAX_PIXELS_OF_PAGES
    ):
        size = f"{header.pages} pages of {header.width} x {header.height} pixels"
        raise DataError(f"{size} are too few or too many (allowed: 1 to {MAX_PIXELS} pixels a page)")
    return opened
