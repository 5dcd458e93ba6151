"""Frames become packets, a few frames at a time, and the packets one video with the time stamps that it is given."""

import errno
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream

from wardpose.shared.data.records import Frame
from wardpose.shared.errors import ConfigError

_SEGMENT_FRAMES = 32
_SEGMENT_BYTES = 128 << 20


@dataclass(frozen=True)
class Storage:
    """How a video is stored.

    Attributes:
        container: FFmpeg's name of it.
        codec: FFmpeg's name of the encoder.
        pixels: FFmpeg's name of the pixel format.
        options: of the encoder.
        even: the encoder takes only sides of even length.
        unit: seconds of the container's unit of time; `None`: as the source has it.

    """

    container: str
    codec: str
    pixels: str
    options: dict[str, str] = field(default_factory=dict)
    even: bool = False
    unit: Fraction | None = None


# Every frame of FFV1 stands alone and carries checksums; RGB as it is, so that nothing is rounded.
_LOSSLESS = ("ffv1", "bgr0", {"level": "3", "slicecrc": "1", "g": "1"})
# Without frames that refer to later ones a packet is a frame, whatever segment it comes from.
_H264 = ("libx264", "yuv420p", {"preset": "medium", "crf": "18", "bf": "0"})
_MPEG4 = ("mpeg4", "yuv420p", {"qscale": "2", "bf": "0"})
_VP9 = (
    *("libvpx-vp9", "yuv420p"),
    {
        "crf": "20",
        "b": "0",
        "deadline": "good",
        "cpu-used": "4",
        "row-mt": "1",
        "lag-in-frames": "0",
        "auto-alt-ref": "0",
    },
)
_MILLISECOND = Fraction(1, 1000)
_STORAGES: dict[str, Storage] = {
    ".mkv": Storage("matroska", *_LOSSLESS, unit=_MILLISECOND),
    ".avi": Storage("avi", *_LOSSLESS),
    ".mp4": Storage("mp4", *_H264, even=True),
    ".m4v": Storage("mp4", *_H264, even=True),
    ".mov": Storage("mov", *_H264, even=True),
    ".webm": Storage("webm", *_VP9, unit=_MILLISECOND),
}


def storage_for(destination: Path, *, source: Path, lossless: bool) -> Storage:
    """Choose how a video is stored, by the ending of its name.

    Raises:
        ConfigError: the ending says nothing, or cannot hold a result without loss.

    """
    storage = _STORAGES.get(destination.suffix.lower())
    fitting = [ending for ending, other in _STORAGES.items() if other.codec == "ffv1" or not lossless]
    if storage is None or (lossless and storage.codec != "ffv1"):
        allowed = f"{', '.join(fitting)}{', stored without loss' if lossless else ''}"
        raise ConfigError(f"{source} is a video: {destination} cannot hold it (allowed: the ending {allowed})")
    if storage.codec == "libx264" and "libx264" not in av.codecs_available:
        return Storage(storage.container, *_MPEG4, even=True)
    return storage


@dataclass
class Segment:
    """A few frames of one size and rate, encoded together; afterwards nothing depends on the frames around them.

    Attributes:
        storage: how.
        height: of the frames.
        width: of the frames.
        aspect: width of a pixel by its height; H.264 and FFV1 keep it.
        frames: so far.
        skipped: sentences on those of them that are black.

    """

    storage: Storage
    height: int
    width: int
    aspect: Fraction
    frames: int = 0
    skipped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._buffer = io.BytesIO()
        self._out: OutputContainer = av.open(self._buffer, "w", format="matroska")
        stream = cast("VideoStream", self._out.add_stream(self.storage.codec, options=self.storage.options))
        stream.width, stream.height = _sides(self.height, self.width, self.storage)[::-1]
        stream.pix_fmt = self.storage.pixels
        context = stream.codec_context
        context.time_base, context.framerate = _MILLISECOND, Fraction(25)
        context.sample_aspect_ratio = self.aspect
        if self.storage.codec != "ffv1":
            context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
            context.color_range = 1
        self._stream = stream

    @property
    def full(self) -> bool:
        """Whether it is time to begin another."""
        return self.frames >= min(_SEGMENT_FRAMES, max(1, _SEGMENT_BYTES // (3 * self.height * self.width)))

    def add(self, frame: Frame, skipped: str = "") -> None:
        """Encode the next frame, (height, width, 3) uint8 RGB; `skipped` says why it is black."""
        height, width = _sides(self.height, self.width, self.storage)
        padding = ((0, height - self.height), (0, width - self.width), (0, 0))
        pixels = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.pad(frame, padding, mode="edge")), format="rgb24")
        if self.storage.codec == "ffv1":
            picture = pixels.reformat(format=self.storage.pixels, threads=1)
        else:
            picture = pixels.reformat(
                format=self.storage.pixels, dst_colorspace="ITU709", dst_color_range="MPEG", threads=1
            )
        picture.pts, picture.time_base = self.frames, _MILLISECOND
        self._out.mux(self._stream.encode(picture))
        self.frames += 1
        if skipped:
            self.skipped.append(skipped)

    def content(self) -> bytes:
        """Finish, and return what `read_segment` reads."""
        self._out.mux(self._stream.encode(None))
        self._out.close()
        packets = self._buffer.getvalue()
        head = {"frames": self.frames, "skipped": self.skipped, "sha256": hashlib.sha256(packets).hexdigest()}
        return json.dumps(head).encode() + b"\n" + packets


@dataclass(frozen=True)
class Stored:
    """A finished segment.

    Attributes:
        path: where it lies.
        frames: how many.
        skipped: sentences on those of them that are black.

    """

    path: Path
    frames: int
    skipped: list[str]

    def packets(self) -> io.BytesIO:
        """Return its Matroska file."""
        return io.BytesIO(self.path.read_bytes().partition(b"\n")[2])


def read_segment(path: Path) -> Stored | None:
    """Look at a segment; `None` where there is none, or a spoiled one."""
    try:
        head, _, packets = path.read_bytes().partition(b"\n")
        facts = json.loads(head)
    except (OSError, ValueError):
        return None
    if facts.get("sha256") != hashlib.sha256(packets).hexdigest():
        return None
    return Stored(path, facts["frames"], facts["skipped"])


def assemble(segments: Sequence[Stored], target: Path, storage: Storage, stamps: Sequence[int], unit: Fraction) -> None:
    """Write the packets of all segments as one video.

    Args:
        segments: in their order.
        target: the file to be.
        storage: of all segments.
        stamps: when each frame is shown, rising, in `unit`.
        unit: seconds of one unit of the stamps.

    Raises:
        OSError: there is no room, or the file read back is not what was written.

    """
    ends = [
        *stamps[1:],
        2 * stamps[-1] - stamps[-2] if len(stamps) > 1 else stamps[-1] + max(1, round(1 / (25 * unit))),
    ]
    # The clock in which an MP4 says when it begins.
    clock = {"movie_timescale": str(unit.denominator)} if storage.container in ("mp4", "mov") else {}
    number = 0
    with target.open("wb", buffering=0) as raw:
        file = _Whole(raw)
        try:
            with av.open(file, "w", format=storage.container, options=clock) as out:
                stream: VideoStream | None = None
                for segment in segments:
                    with av.open(segment.packets(), "r") as read:
                        if stream is None:
                            stream = out.add_stream_from_template(read.streams.video[0])
                            stream.time_base = unit
                        for packet in read.demux(video=0):
                            if packet.size:
                                packet.stream, packet.time_base = stream, unit
                                packet.pts = packet.dts = stamps[number]
                                packet.duration = ends[number] - stamps[number]
                                out.mux(packet)
                                number += 1
        except (av.FFmpegError, OSError):
            if file.error is not None:  # FFmpeg makes something of its own of it
                raise file.error from None
            raise
    with av.open(f"file:{target}") as written:
        count = sum(packet.size > 0 for packet in written.demux(video=0))
    if number != len(stamps) or count != number:
        raise OSError(errno.EIO, f"{count} of {len(stamps)} frames were written")


class _Whole:
    """A file that writes all or raises, and remembers what it raised."""

    def __init__(self, file: io.FileIO) -> None:
        self.error: OSError | None = None
        self._file = file
        self.seek, self.tell, self.name = file.seek, file.tell, str(file.name)

    def write(self, content: bytes) -> int:
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.error = self.error or error
            raise
        return len(content)


def _sides(height: int, width: int, storage: Storage) -> tuple[int, int]:
    """Add a row or column where the encoder would take one away."""
    return (height + height % 2, width + width % 2) if storage.even else (height, width)
