"""The video stream of a file, decoded as a player shows it.

FFmpeg (through PyAV) does the decoding. Only containers that can say whether they were cut off are opened, and nothing
but the file itself: no play list, no stream of the network, no other file that a file may name.
"""

import errno
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from wardpose.shared.data.cut_files import unfinished
from wardpose.shared.data.records import Frame
from wardpose.shared.errors import DataError

VIDEO_ENDINGS = frozenset(
    f".{ending}"
    for ending in (
        *("3g2", "3gp", "asf", "avi", "dv", "f4v", "flv", "m2t", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg"),
        *("mpg", "mts", "mxf", "ogg", "ogv", "qt", "ts", "vob", "webm", "wmv"),
    )
)
"""Usual endings of videos, lower case. What a file is, its content says."""

_CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,mxf,dv"
_ALLOWED = " (allowed: MP4, QuickTime, 3GP, Matroska, WebM, AVI, MPEG, AVCHD, WMV, FLV, Ogg, MXF, DV)"
_MAX_PIXELS = 1 << 27
_STILL_BRANDS = {"heic", "heix", "heim", "heis", "mif1", "miaf", "avif"}
_STILL = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
_PATIENCE: tuple[dict[str, str], ...] = ({}, {"probesize": "100000000", "analyzeduration": "120000000"})
_DEMUX_ERRORS = 50


@dataclass(frozen=True)
class Step:
    """What one packet of the stream brought.

    Attributes:
        packet: as the container holds it; an empty one at the end, `None` where the container itself is damaged.
        frames: that the decoder gave out, in the order they are shown.
        error: what the decoder says is wrong with the packet.

    """

    packet: "Packet[VideoStream] | None"
    frames: list[VideoFrame]
    error: str | None = None


def open_stream(path: Path, *, threads: int = 1) -> tuple[InputContainer, VideoStream]:
    """Open a file and choose the stream that a player shows; the caller closes the container.

    Args:
        path: the file.
        threads: of the decoder; 0: one a core.

    Raises:
        DataError: the file is missing, or no video that can be read.

    """
    if not path.is_file():
        raise DataError(f"{path}: is missing (allowed: a video file)")
    why = "it holds no video"
    for patience in _PATIENCE:
        try:
            container = _open(path, patience)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise _no_video(path, unfinished(path) or _not_opened(path, error)) from error
        streams = [stream for stream in container.streams.video if not stream.disposition & _STILL]
        if _STILL_BRANDS & {container.metadata.get("major_brand", "").strip()}:
            why, streams = "it is a picture (HEIF or AVIF)", []
        usable = [stream for stream in streams if stream.codec_context is not None and stream.codec_context.width > 0]
        if usable:
            stream = next((stream for stream in usable if stream.disposition & Disposition.default), usable[0])
            stream.codec_context.thread_count = threads
            stream.thread_type = "AUTO" if threads != 1 else "SLICE"
            stream.codec_context.options = {"max_pixels": str(_MAX_PIXELS)}
            return container, stream
        container.close()
        if not streams:
            break
        why = "its codec is not known, or nothing of it decodes"
    raise _no_video(path, why)


def other_tracks(container: InputContainer, stream: VideoStream) -> int:
    """Count the moving pictures of a file besides the one that is read."""
    return sum(not other.disposition & _STILL and other.index != stream.index for other in container.streams.video)


def other_contents(container: InputContainer) -> list[str]:
    """Name what a file holds beside moving pictures: sound, subtitles, data (of places, of times), attachments."""
    kinds = {"audio": "sound", "subtitle": "subtitles", "data": "data", "attachment": "attachments"}
    found = [kinds[other.type] for other in container.streams if other.type in kinds]
    return list(dict.fromkeys(found))


def why_no_video(path: Path) -> str | None:
    """Say in a phrase why a file is no video that can be read; `None` when it is one."""
    try:
        open_stream(path)[0].close()
    except DataError as error:
        return str(error).removeprefix(f"{path}: ").removesuffix(_ALLOWED)
    return None


def steps(container: InputContainer, stream: VideoStream) -> Iterator[Step]:
    """Decode from where the container stands, to its end. Damage does not end it."""
    failures = 0
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.FFmpegError, OSError) as error:
            failures += 1
            if failures > _DEMUX_ERRORS:
                return
            yield Step(None, [], _reason(error))
            packets = container.demux(stream)
            continue
        try:
            yield Step(packet, packet.decode())
        except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
            yield Step(packet, [], _reason(error))


def picture(frame: VideoFrame) -> Frame:
    """Return a frame upright, (h, w, 3) uint8 RGB: turned as its display matrix says, in its own colour space."""
    pixels = _rgb(frame)
    a, b, c, d = _matrix(frame)
    if abs(a) >= abs(b):
        rows, columns = d < 0, a < 0
    else:
        pixels, rows, columns = pixels.transpose(1, 0, 2), b < 0, c < 0
    return np.ascontiguousarray(pixels[:: -1 if rows else 1, :: -1 if columns else 1], np.uint8)


def upright_size(frame: VideoFrame) -> tuple[int, int]:
    """(height, width) of `picture(frame)`."""
    return (frame.width, frame.height) if lies_on_its_side(frame) else (frame.height, frame.width)


def lies_on_its_side(frame: VideoFrame) -> bool:
    """Whether `picture(frame)` has the frame's rows as columns."""
    a, b, _, _ = _matrix(frame)
    return abs(a) < abs(b)


def fingerprint(frame: VideoFrame) -> int:
    """Tell one decoded frame from any other: 32 bits over the sums of the rows and columns of its samples' bytes.

    It guards against frames that were found in the wrong place or decoded without what they refer to, not against a
    forger.
    """
    value = 0
    for samples in _samples(frame):
        words = np.zeros(-(-samples.size // 4096) * 512, np.uint64)
        words.view(np.uint8)[: samples.size] = samples.reshape(-1)
        grid = words.reshape(-1, 512)
        for axis in (0, 1):
            value = zlib.crc32(grid.sum(axis=axis, dtype=np.uint64).tobytes(), value)
    return value


def _open(path: Path, patience: dict[str, str]) -> InputContainer:
    # The prefix keeps FFmpeg from taking a colon in a name for a protocol.
    return av.open(
        f"file:{path}",
        options={"max_pixels": str(_MAX_PIXELS)},
        container_options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "file", **patience},
        metadata_errors="replace",
    )


def _no_video(path: Path, why: str) -> DataError:
    return DataError(f"{path}: is no video that can be read: {why}{_ALLOWED}")


def _not_opened(path: Path, error: BaseException) -> str:
    if path.stat().st_size == 0:
        return "the file is empty"
    if getattr(error, "errno", None) == errno.EINVAL:  # FFmpeg's word for what `format_whitelist` does not name
        return "it is of a format that is not read here"
    return _reason(error)


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _matrix(frame: VideoFrame) -> tuple[int, int, int, int]:
    """Return a, b, c, d of the display matrix: a sample (x, y) is shown at (a x + c y, b x + d y), y downwards."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 1, 0, 0, 1
    numbers = np.frombuffer(data, np.int32)
    return int(numbers[0]), int(numbers[1]), int(numbers[3]), int(numbers[4])


def _rgb(frame: VideoFrame) -> Frame:
    # A converter's threads do not come along into a forked process, which would wait for them when it lets go of it.
    return np.asarray(frame.reformat(format="rgb24", threads=1).to_ndarray(), np.uint8)


def _samples(frame: VideoFrame) -> Iterator[NDArray[np.uint8]]:
    """Bytes of each plane (rows, bytes a row) without the padding behind the rows."""
    layout = frame.format
    components = layout.components
    planar = len({component.plane for component in components}) > 1 or len(components) == 1
    if not planar or layout.has_palette or layout.is_bit_stream or layout.is_bayer:
        yield _rgb(frame)
        return
    widths: dict[int, int] = {}
    for component in components:
        widths[component.plane] = widths.get(component.plane, 0) + component.width * -(-component.bits // 8)
    for number, plane in enumerate(frame.planes):
        content: Any = plane  # it has a buffer, which its type does not say
        rows = np.frombuffer(content, np.uint8).reshape(-1, plane.line_size)
        yield rows[: plane.height, : widths.get(number, plane.line_size)]
