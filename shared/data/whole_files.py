"""Is a picture file all there? Decoders forgive a missing end, and fill what they do not find with grey.

Every format says in its own way where it ends; a file that stops before is cut. Formats without an end mark give their
length; those that do neither are checked by their decoders.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from wardpose.shared.errors import DataError

_ZEROS = 1024  # no compressed data end in so many: the file's room was kept, but not filled


class CutFileError(DataError):
    """A picture file ends before its content does."""

    def __init__(self, what: str) -> None:
        super().__init__(f"the file is cut: {what}")


def check_whole(kind: str, content: bytes) -> None:
    """See that the file of this kind (as `kind_of` names it) is complete.

    Raises:
        CutFileError: says what is missing.

    """
    check = _CHECKS.get(kind)
    if check is not None:
        check(content)
    if kind in ("WebP", "AVIF", "HEIC") and content.endswith(bytes(_ZEROS)):
        raise CutFileError("its end is empty")


def check_scan(content: bytes) -> None:
    """See that the pixels of a JPEG are there up to its end mark, which whoever closes a cut file may have added.

    The usual decoder fills what is missing with one colour; FFmpeg's can be told to stop.

    Raises:
        CutFileError: they are not.

    """
    import av

    decoder = av.CodecContext.create("mjpeg", "r")
    decoder.options, decoder.thread_count = {"err_detect": "explode"}, 1
    try:
        decoder.decode(av.Packet(content))
        decoder.decode(None)
    except av.error.InvalidDataError as error:
        raise CutFileError("JPEG's pixels end before its end mark") from error
    except (av.FFmpegError, OSError, ValueError, MemoryError):
        return  # of a sort that this decoder does not know


def png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Give name, start and size of each chunk's data, up to the end mark, without reading the data.

    Raises:
        CutFileError: the end mark does not come.

    """
    length, at = file.seek(0, 2), 8
    while at + 12 <= length:
        file.seek(at)
        size, name = struct.unpack(">I4s", file.read(8))
        if at + 12 + size > length:
            break
        yield name, at + 8, size
        if name == b"IEND":
            return
        at += 12 + size
    raise CutFileError("PNG's end mark is missing")


def gif_frames(content: bytes) -> int:
    """Count the frames of a GIF by walking its blocks.

    Raises:
        CutFileError: the trailer does not come.

    """
    try:
        at, frames = 13 + _colours(content[10]), 0
        while (mark := content[at]) != 0x3B:
            if mark == 0x2C:
                at += 11 + _colours(content[at + 9])
                frames += 1
            elif mark == 0x21:
                at += 2
            else:
                raise DataError(f"GIF has an unknown block {mark:#04x}")
            while content[at]:
                at += 1 + content[at]
            at += 1
    except IndexError as error:
        raise CutFileError("GIF's trailer is missing") from error
    return frames


def _colours(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _jpeg(content: bytes) -> None:
    if content.endswith(b"\xff\xd9"):
        return  # the usual case; thumbnails in the header end so too, but then the decoder finds no scan
    at = 2
    while at + 4 <= len(content):
        if content[at] != 0xFF or content[at + 1] in (0x00, 0xFF):
            at += 1  # decoders pass over stray bytes between segments
        elif content[at + 1] == 0xDA:
            if content.find(b"\xff\xd9", at) < 0:  # within a scan 0xFF is always escaped
                raise CutFileError("JPEG's end mark is missing")
            return
        elif content[at + 1] == 0x01 or 0xD0 <= content[at + 1] <= 0xD9:
            at += 2
        else:
            at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    raise CutFileError("JPEG has no scan")


def _png(content: bytes) -> None:
    view = memoryview(content)
    for name, start, size in png_chunks(io.BytesIO(content)):
        if name[:1].isupper():  # critical: without it the picture is wrong
            (stated,) = struct.unpack_from(">I", content, start + size)
            if zlib.crc32(view[start - 4 : start + size]) != stated:
                raise DataError(f"the checksum of PNG's chunk {name.decode('latin-1')} is wrong")


def _gif(content: bytes) -> None:
    gif_frames(content)


def _bmp(content: bytes) -> None:
    (size,) = struct.unpack_from("<I", content, 2)
    if size > len(content):
        raise CutFileError(f"BMP says {size} bytes, there are {len(content)}")


def _webp(content: bytes) -> None:
    (size,) = struct.unpack_from("<I", content, 4)
    if size + 8 > len(content):
        raise CutFileError(f"WebP says {size + 8} bytes, there are {len(content)}")


def _boxes(content: bytes) -> None:
    """Walk the boxes of an ISO base media file (HEIC, AVIF, JPEG 2000)."""
    at = 0
    while at < len(content):
        if at + 8 > len(content):
            raise CutFileError("its last box is incomplete")
        (size,) = struct.unpack_from(">I", content, at)
        if size == 1 and at + 16 <= len(content):
            (size,) = struct.unpack_from(">Q", content, at + 8)
        if size == 0:
            return  # to the end of the file
        if size < 8 or at + size > len(content):
            raise CutFileError("its last box is incomplete")
        at += size


def _jpeg2000(content: bytes) -> None:
    if not content.startswith(b"\xff\x4f"):
        _boxes(content)
    start = content.find(b"\xff\x93")  # of the pixels; within them 0xFF is never followed by so large a byte
    if start < 0 or content.rfind(b"\xff\xd9") < start:
        raise CutFileError("JPEG 2000's end mark is missing")


_CHECKS = {
    "JPEG": _jpeg,
    "PNG": _png,
    "GIF": _gif,
    "BMP": _bmp,
    "WebP": _webp,
    "HEIC": _boxes,
    "AVIF": _boxes,
    "JPEG 2000": _jpeg2000,
}
