"""The directories of a TIFF file: how many pages it really has, how each is stored, and whether the file is cut.

Layout after TIFF 6.0 and BigTIFF. Reduced copies and masks (NewSubfileType) are no pages.
"""

import struct
from dataclasses import dataclass
from typing import BinaryIO

from wardpose.shared.data.whole_files import CutFileError
from wardpose.shared.errors import DataError

_MOST_PAGES = 100_000
_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_SIZES = {2: 1, 5: 8, 7: 1, 10: 8, 11: 4, 12: 8} | {kind: struct.calcsize(code) for kind, code in _NUMBERS.items()}
_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION = 254, 255, 256, 257, 258, 262, 274
_STARTS, _LENGTHS, _TILE_STARTS, _TILE_LENGTHS = 273, 279, 324, 325
_DNG_VERSION, _SUB_DIRECTORIES = 50706, 330
_KEPT = {
    _SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _STARTS, _LENGTHS, _TILE_STARTS,
    _TILE_LENGTHS, _DNG_VERSION, _SUB_DIRECTORIES,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TiffPage:
    """How one page is stored.

    Attributes:
        index: of its directory in the file, reduced copies counted.
        height: in pixels, as stored.
        width: in pixels, as stored.
        orientation: as in EXIF, 1 to 8.
        bits: of one colour.
        samples: colours of a pixel.
        white_is_zero: numbers count from white.

    """

    index: int
    height: int
    width: int
    orientation: int
    bits: int
    samples: int
    white_is_zero: bool


def tiff_pages(file: BinaryIO) -> list[TiffPage]:
    """Read the directories of a file.

    Raises:
        CutFileError: a directory or its pixels lie beyond the end.
        DataError: the file is no TIFF, holds no page, or is a camera's raw file.

    """
    directories = _directories(file)
    if any(_DNG_VERSION in tags for tags in directories):
        raise DataError("it is a camera's raw file (DNG)")
    full = [(index, tags) for index, tags in enumerate(directories) if not _reduced(tags)]
    if not full:
        if any(_SUB_DIRECTORIES in tags for tags in directories):
            raise DataError("it is a camera's raw file: its pages are previews")
        full = list(enumerate(directories))
    return [_page(index, tags) for index, tags in full]


def _directories(file: BinaryIO) -> list[dict[int, tuple[int, ...]]]:
    size = file.seek(0, 2)
    order, big, at = _header(file)
    word = "Q" if big else "I"
    seen: set[int] = set()
    out = []
    while at:
        if at in seen or len(seen) >= _MOST_PAGES:
            raise DataError("TIFF's directories go round in a circle")
        seen.add(at)
        (count,) = _read(file, order + ("Q" if big else "H"), at)
        if count * 12 > size:
            raise CutFileError("a TIFF directory is incomplete")
        at += 8 if big else 2
        step = 20 if big else 12
        rows = _read_bytes(file, at, count * step)
        tags = {}
        for row in range(0, count * step, step):
            tag, kind, length = struct.unpack_from(order + "HH" + word, rows, row)
            value = rows[row + (12 if big else 8) : row + step]
            needed = length * _SIZES.get(kind, 0)
            if needed > len(value):
                (place,) = struct.unpack(order + word, value)
                if place + needed > size:
                    raise CutFileError("a TIFF directory's values lie beyond its end")
                value = _read_bytes(file, place, needed) if tag in _KEPT else b""
            if tag in _KEPT and kind in _NUMBERS:
                tags[tag] = struct.unpack(f"{order}{length}{_NUMBERS[kind]}", value[:needed])
        _check_pixels(tags, size)
        out.append(tags)
        (at,) = _read(file, order + word, at + count * step)
    if not out:
        raise DataError("TIFF has no directory")
    return out


def _header(file: BinaryIO) -> tuple[str, bool, int]:
    head = _read_bytes(file, 0, 8)
    order = "<" if head[:2] == b"II" else ">"
    (version,) = struct.unpack_from(order + "H", head, 2)
    if version == 43:
        return order, True, _read(file, order + "Q", 8)[0]
    return order, False, struct.unpack_from(order + "I", head, 4)[0]


def _check_pixels(tags: dict[int, tuple[int, ...]], size: int) -> None:
    for starts, lengths in ((_STARTS, _LENGTHS), (_TILE_STARTS, _TILE_LENGTHS)):
        for start, length in zip(tags.get(starts, ()), tags.get(lengths, ()), strict=False):
            if start + length > size:
                raise CutFileError("a TIFF page's pixels lie beyond its end")


def _reduced(tags: dict[int, tuple[int, ...]]) -> bool:
    return bool(_first(tags, _SUBFILE, 0) & 5) or _first(tags, _OLD_SUBFILE, 0) == 2


def _page(index: int, tags: dict[int, tuple[int, ...]]) -> TiffPage:
    orientation = _first(tags, _ORIENTATION, 1)
    return TiffPage(
        index=index,
        height=_first(tags, _HEIGHT, 0),
        width=_first(tags, _WIDTH, 0),
        orientation=orientation if 1 <= orientation <= 8 else 1,
        bits=max(tags.get(_BITS) or (1,)),
        samples=len(tags.get(_BITS) or (1,)),
        white_is_zero=_first(tags, _PHOTOMETRIC, 1) == 0,
    )


def _first(tags: dict[int, tuple[int, ...]], tag: int, otherwise: int) -> int:
    return (tags.get(tag) or (otherwise,))[0]


def _read(file: BinaryIO, code: str, at: int) -> tuple[int, ...]:
    return struct.unpack(code, _read_bytes(file, at, struct.calcsize(code)))


def _read_bytes(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    content = file.read(count)
    if len(content) < count:
        raise CutFileError("a TIFF directory lies beyond its end")
    return content
