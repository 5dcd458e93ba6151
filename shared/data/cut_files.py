"""Whether a video file was cut off, told by its container alone.

A demuxer comes to the end of a cut file as quietly as to that of a whole one. But containers are made of parts that say
how long they are, and a cut falls into a part. (A stream of packets that is cut exactly between two of them is whole in
itself: nothing in it can tell.)
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_UNKNOWN = 0xFFFFFFFF

_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675

_MXF_PARTITION, _MXF_FILL = bytes.fromhex("02050101 0d01020101"), bytes.fromhex("030102")

_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def cut_off(path: Path, container: str) -> str | None:
    """Say where a file was cut off.

    Args:
        path: the file.
        container: FFmpeg's name of its format.

    Returns:
        A phrase, or `None` where the file ends as it should, or where its format cannot tell.

    Raises:
        OSError: it cannot be read.

    """
    size = path.stat().st_size
    for names, stated_end in _CONTAINERS.items():
        if container.split(",")[0] in names.split():
            with path.open("rb") as file:
                end = stated_end(file, size)
            return (
                None if end <= size else f"the file is cut off: it has {size} bytes, its last part ends at byte {end}"
            )
    return None


def unfinished(path: Path) -> str | None:
    """Say of an MP4 or QuickTime file without an index why it has none; `None` of any other file."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:
        return None
    if head[4:8] not in (b"ftyp", b"mdat", b"wide", b"free", b"skip", b"moov"):
        return None
    return cut_off(path, "mov") or "it has no index, so its recorder never finished it"


def _boxes(file: BinaryIO, size: int) -> int:
    """ISO base media (MP4, QuickTime, 3GP): boxes of a size and a name (ISO/IEC 14496-12, 4.2).

    A fragment's head (moof) is followed by its data; a file cut between two fragments is whole in itself.
    """
    at, name, names = 0, b"", set()
    while at < size:
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return at + 8
        length, name = int.from_bytes(head[:4], "big"), head[4:8]
        names.add(name)
        if length == 0 or not name.isascii():  # to the end of the file, or no box: what lies here is not known
            return size
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        at += max(length, 8)
    return at + 8 if name == b"moof" or (b"moov" in names and b"mdat" not in names) else at


def _elements(file: BinaryIO, size: int) -> int:
    """Matroska and WebM: elements of an id and a size, where a live recorder leaves sizes open (RFC 8794, 9742)."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(12)
        id_length = 9 - head[0].bit_length()
        if not 1 <= id_length <= 4:
            return size  # no element: what lies here is not known
        if len(head) <= id_length or len(head) < id_length + 9 - head[id_length].bit_length():
            return at + 12
        name = int.from_bytes(head[:id_length], "big")
        size_length = 9 - head[id_length].bit_length()
        if size_length > 8:
            return size
        value = int.from_bytes(head[id_length : id_length + size_length], "big")
        length = value & ((1 << 7 * size_length) - 1)
        open_end = length == (1 << 7 * size_length) - 1
        at += id_length + size_length
        if not open_end:
            at += length
        elif name not in (_SEGMENT, _CLUSTER):
            return size
    return at


def _chunks(file: BinaryIO, size: int) -> int:
    """AVI: RIFF chunks, several of them in a large file; a recorder that was stopped hard leaves their sizes open."""
    at, finished = 0, True
    while at < size:
        file.seek(at)
        head = file.read(12)
        name, length, kind = head[:4], int.from_bytes(head[4:8], "little"), head[8:]
        if len(head) < 8:
            return size if finished else at + 8
        if not name.isascii() or not name.strip(b"\0"):
            return size
        if name == b"RIFF" and length in (0, _UNKNOWN):
            finished = False
            at += 12
        elif name == b"LIST" and kind in (b"movi", b"rec "):
            at += 12
        else:
            at += 8 + length + length % 2
    return size if at - size <= 1 else at


def _transport_packets(file: BinaryIO, size: int) -> int:
    """MPEG transport stream: packets of 188 bytes, 192 with a time code before (AVCHD), 204 with parity behind."""
    head = file.read(204 * 6)
    for length, before in ((188, 0), (192, 4), (204, 0)):
        for first in range(length):
            marks = range(first + before, min(len(head), first + 5 * length), length)
            if len(marks) > 1 and all(head[mark] == 0x47 for mark in marks):
                return first + -(-(size - first) // length) * length
    return size


def _program_packets(file: BinaryIO, size: int) -> int:
    """MPEG program stream: packs, and packets of a start code and a length (ISO/IEC 13818-1, 2.5)."""
    at, in_pack = 0, False
    while at < size:
        file.seek(at)
        head = file.read(14)
        if head[:3] != b"\0\0\1"[: len(head)]:
            return size  # padding, or nothing that is known
        in_pack = head[3:4] == b"\xba"
        if len(head) < 6:
            return at + (4 if head[3:4] == b"\xb9" else 6)
        if head[3] == 0xBA:
            at += 14 + (head[-1] & 7) if head[4] >> 6 == 1 else 12
        elif head[3] == 0xB9:
            at += 4
        elif head[3] >= 0xBB:
            at += 6 + int.from_bytes(head[4:6], "big")
        else:
            return size
    return at + 6 if in_pack else at


def _tags(file: BinaryIO, size: int) -> int:
    """FLV: tags of 11 bytes and their data, each followed by its size again; the first may state the file's size."""
    head = file.read(2048)
    at = int.from_bytes(head[5:9], "big") + 4
    mark = head.find(b"\x08filesize\0")
    stated = struct.unpack_from(">d", head, mark + 10)[0] if 0 < mark < len(head) - 18 else 0
    while at < size:
        file.seek(at)
        head = file.read(11)
        at += 11 + int.from_bytes(head[1:4], "big") + 4
    return max(at, int(stated) if 0 < stated < 1 << 62 else 0)


def _pages(file: BinaryIO, size: int) -> int:
    """Ogg: pages whose heads list the lengths of what they hold, and of which the last is marked (RFC 3533, 6)."""
    at, marked = 0, True
    while at < size:
        file.seek(at)
        head = file.read(27 + 255)
        if head[:4] != b"OggS"[: len(head)]:
            return size
        if len(head) < 27 or len(head) < 27 + head[26]:
            return at + 27 + 255
        marked = bool(head[5] & 4)
        at += 27 + head[26] + sum(head[27 : 27 + head[26]])
    return at if marked else at + 1


def _asf_size(file: BinaryIO, size: int) -> int:
    """ASF (WMV): the header says how long the file is, unless it was broadcast."""
    head = file.read(30)
    at = 30
    for _ in range(int.from_bytes(head[24:28], "little")):
        file.seek(at)
        item = file.read(92)
        if item[:16] == _ASF_FILE_PROPERTIES and len(item) == 92:
            return size if item[88] & 1 else max(size, int.from_bytes(item[40:48], "little"))
        at += int.from_bytes(item[16:24], "little") or size
    return size


def _triplets(file: BinaryIO, size: int) -> int:
    """MXF: key, length, value (SMPTE ST 336), in partitions that open with a pack (ST 377-1, 7.1).

    The first pack says where the footer begins, and the footer's how long the metadata and the index behind it are. A
    file whose header is left open and that has no footer was never finished. Behind the footer a file may have a list
    of its partitions or none: a cut before that list takes nothing away, and nothing can tell it.
    """
    at = due = 0
    after_footer = False
    while at < size:
        file.seek(at)
        head = file.read(17 + 8 + 48)
        if head[:4] != b"\x06\x0e\x2b\x34"[: len(head)]:
            return size
        if len(head) < 17:
            return at + 17
        long_form = head[16] & 0x7F if head[16] & 0x80 else 0
        length = int.from_bytes(head[17 : 17 + long_form], "big") if long_form else head[16]
        end, pack = at + 17 + long_form + length, head[17 + long_form :]
        if after_footer and head[4:6] == b"\x01\x01" and head[8:11] == _MXF_FILL:
            due += end - at
        after_footer = head[4:13] == _MXF_PARTITION and head[13] == 4
        if after_footer:
            due = end + int.from_bytes(pack[32:40], "big") + int.from_bytes(pack[40:48], "big")
        elif at == 0 and head[4:13] == _MXF_PARTITION and head[13] == 2:
            footer, left_open = int.from_bytes(pack[24:32], "big"), head[14] in (1, 3)
            due = footer + 1 if footer or not left_open else size + 1
        at = end
    return max(at, due)


def _dv_frames(file: BinaryIO, size: int) -> int:
    """DV: frames of one size, 10 sequences of 12000 bytes in 60 Hz countries and 12 elsewhere (IEC 61834-2)."""
    frame = 144_000 if file.read(4)[3] & 0x80 else 120_000
    return -(-size // frame) * frame


_CONTAINERS: dict[str, Callable[[BinaryIO, int], int]] = {
    "mov": _boxes,
    "matroska": _elements,
    "avi": _chunks,
    "mpegts": _transport_packets,
    "mpeg": _program_packets,
    "flv": _tags,
    "ogg": _pages,
    "asf": _asf_size,
    "mxf": _triplets,
    "dv": _dv_frames,
}
