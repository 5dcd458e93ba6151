"""Small videos whose every frame shows its own number, in the containers and codecs that cameras use."""

import struct
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE = 30
HEIGHT, WIDTH = 96, 128


def card(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Draw a picture that carries `number` in eight blocks over a moving texture."""
    frame = np.zeros((height, width, 3), np.uint8)
    rows = np.arange(height - height // 3)[:, None, None]
    frame[height // 3 :] = (np.arange(width)[None, :, None] + rows + 3 * number) % 200
    for block in range(8):
        frame[: height // 3, block * width // 8 : (block + 1) * width // 8] = 220 if number >> block & 1 else 30
    return frame


def number_of(frame: np.ndarray) -> int:
    """Read the number of a card."""
    height, width = frame.shape[:2]
    blocks = [frame[6 : height // 3 - 4, b * width // 8 + 4 : (b + 1) * width // 8 - 4].mean() > 125 for b in range(8)]
    return sum(int(bright) << block for block, bright in enumerate(blocks))


def film(
    path: Path,
    codec: str = "libx264",
    *,
    count: int = 30,
    stamps: Sequence[int] | None = None,
    unit: Fraction = Fraction(1, 30_000),
    key_every: int = 8,
    b_frames: int = 0,
    pixels: str = "yuv420p",
    options: Mapping[str, str] | None = None,
    muxing: Mapping[str, str] | None = None,
    container: str | None = None,
    height: int = HEIGHT,
    width: int = WIDTH,
    flags: int = 0,
    picture: Callable[[int], np.ndarray] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a film of `count` cards; frame n is shown at `stamps[n]` units, or at n / 30 s."""
    shown_at = [n * unit.denominator // RATE for n in range(count)] if stamps is None else stamps
    with av.open(str(path), "w", format=container, options=dict(muxing or {})) as out:
        out.metadata.update(metadata or {})
        stream = out.add_stream(codec, rate=RATE, options=dict(options or {}))
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        context = stream.codec_context
        context.gop_size, context.max_b_frames = key_every, b_frames
        context.flags |= flags
        if stamps is not None:
            context.time_base = unit
        for n, stamp in enumerate(shown_at):
            pixels_in = card(n, height, width) if picture is None else picture(n)
            frame = av.VideoFrame.from_ndarray(pixels_in, format="rgb24").reformat(format=pixels, threads=1)
            frame.pts, frame.time_base = stamp, unit
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def remux(source: Path, target: Path, *, start: int = 0, container: str | None = None, **muxing: str) -> Path:
    """Copy packets from packet `start` on into another container, as cutting without re-encoding does."""
    with av.open(str(source)) as read, av.open(str(target), "w", format=container, options=muxing) as out:
        stream = out.add_stream_from_template(read.streams.video[0])
        for number, packet in enumerate(read.demux(video=0)):
            if packet.size and number >= start:
                packet.stream = stream
                out.mux(packet)
    return target


def turned(path: Path, degrees: int) -> Path:
    """Write a display matrix into an MP4 as a phone held upright does: to be shown turned clockwise by `degrees`."""
    one = 1 << 16
    a, b, c, d = {90: (0, one, -one, 0), 180: (-one, 0, 0, -one), 270: (0, -one, one, 0)}[degrees]
    content = bytearray(path.read_bytes())
    track = content.index(b"tkhd")
    at = track + 4 + (40 if content[track + 4] == 0 else 52)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def truth(path: Path) -> list[np.ndarray]:
    """Decode a file from its beginning to its end in one thread, as a player does; pictures as they are stored."""
    shown = []
    with av.open(str(path), metadata_errors="replace") as read:
        read.streams.video[0].codec_context.thread_count = 1
        for packet in read.demux(video=0):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue  # a player goes on
            shown += [frame.reformat(format="rgb24", threads=1).to_ndarray() for frame in frames]
    return shown


def times(path: Path) -> list[Fraction]:
    """Seconds at which each frame of a file is shown."""
    with av.open(str(path)) as read:
        return [frame.pts * frame.time_base for frame in read.decode(video=0)]
