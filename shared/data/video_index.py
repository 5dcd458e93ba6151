"""Which frames a video has: decoded once from its beginning to its end, because nothing less can be relied on.

Headers lie about the count (a browser's WebM states none, an MPEG program stream cannot), variable frame rates and
pauses part numbers from times, and what a container calls a key frame need not be one. So a frame's number is its place
in what a player shows from the first picture on; what is kept of each frame (time stamp, fingerprint) finds it again.

A frame that is damaged keeps its number, so that the numbers after it stay what they were, but has no picture. After
the last whole frame nothing is counted.
"""

import io
from bisect import bisect
from contextlib import suppress
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import lru_cache
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from wardpose.shared import files
from wardpose.shared.data.cut_files import cut_off
from wardpose.shared.data.video_stream import (
    Step,
    fingerprint,
    lies_on_its_side,
    open_stream,
    other_tracks,
    steps,
    upright_size,
)
from wardpose.shared.errors import DataError

NO_STAMP = np.iinfo(np.int64).min
"""Stands for a time stamp that the container does not have."""

WHOLE, HOLED, LOST = 0, 1, 2
"""State of a frame: decoded; given out by the decoder with damage painted over; not given out at all."""

_VERSION = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoIndex:
    """What is known of the N frames of a file; arrays are in the order of their numbers.

    Attributes:
        stamps: (N,) presentation time stamps in units of the time base, or `NO_STAMP`.
        prints: (N,) fingerprints; 0 for a frame that is lost.
        states: (N,) `WHOLE`, `HOLED` or `LOST`.
        sizes: (N, 2) height and width upright.
        keys: (K,) numbers of the frames at which decoding may begin, ascending.
        seeks: (K,) time stamps by which a demuxer finds them.
        time_base: (2,) numerator and denominator of the seconds of one unit.
        aspect: (2,) numerator and denominator of an upright pixel's width by its height.
        origin: (2,) size in bytes and time of change in nanoseconds of the file.
        other_tracks: () how many more moving pictures the file holds.
        losses: sentences: what the file shows to be missing of it.
        notes: sentences: what else is odd about it.

    """

    stamps: NDArray[np.int64]
    prints: NDArray[np.uint32]
    states: NDArray[np.uint8]
    sizes: NDArray[np.int32]
    keys: NDArray[np.int64]
    seeks: NDArray[np.int64]
    time_base: NDArray[np.int64]
    aspect: NDArray[np.int64]
    origin: NDArray[np.int64]
    other_tracks: NDArray[np.int64]
    losses: tuple[str, ...]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.stamps)

    def tracks(self) -> str | None:
        """Say that there are more moving pictures in the file than are read."""
        more = int(self.other_tracks)
        return f"{more} other video track{'s are' if more > 1 else ' is'} not read" if more else None

    def sentences(self) -> list[str]:
        """Everything about the file that its reader should know."""
        tracks, damaged = self.tracks(), np.flatnonzero(self.states != WHOLE).tolist()
        sentences = [*self.losses, *self.notes, *([tracks] if tracks else [])]
        if damaged:
            numbers = ", ".join(map(str, damaged[:10])) + (", ..." if len(damaged) > 10 else "")
            sentences.append(f"{len(damaged)} frame{'s do' if len(damaged) > 1 else ' does'} not decode ({numbers})")
        return sentences

    @property
    def unit(self) -> Fraction:
        """Seconds of one unit of the time stamps."""
        return Fraction(int(self.time_base[0]), int(self.time_base[1]))


def read_index(path: Path, folder: Path | None = None) -> VideoIndex:
    """Return the index of a video: from this process, from `folder`, or made now by decoding the file once.

    Args:
        path: the video.
        folder: where indexes are kept between processes; what it holds is as confidential as the time of recording.

    Raises:
        DataError: the file is missing, is no video, or none of its frames decodes.

    """
    size, modified = _state(path)
    return _read_index(path.absolute(), size, modified, folder)


def make_index(path: Path, *, threads: int = 0) -> VideoIndex:
    """Decode a video once and note its frames.

    Args:
        path: the video.
        threads: of the decoder; 0: one a core, as long as nothing is damaged. (How damage looks, depends on them.)

    Raises:
        DataError: as `read_index`.

    """
    state = _state(path)
    container, stream = open_stream(path, threads=threads)
    with container:
        streamed = container.format.name in ("mpegts", "mpeg")
        shown = _Shown(streamed)
        for step in steps(container, stream):
            shown.add(step)
        unit = stream.time_base or Fraction(1, 90_000)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        tracks, stated, name = other_tracks(container, stream), stream.frames, container.format.name
    if threads != 1 and shown.damaged:
        return make_index(path, threads=1)
    cut = cut_off(path, name)
    losses = ([cut] if cut else []) + shown.settle(cut=bool(cut))
    if not shown.frames:
        raise DataError(
            f"{path}: is no video that can be read: not one frame decodes{f'; {losses[0]}' if losses else ''}"
        )
    notes = []
    if stated - shown.discarded > len(shown.frames) and not losses:
        notes.append(f"its header counts {stated} frames, {len(shown.frames)} are there")
    columns = list(zip(*shown.frames, strict=True))
    return VideoIndex(
        stamps=np.array(columns[0], np.int64),
        prints=np.array(columns[1], np.uint32),
        states=np.array(columns[2], np.uint8),
        sizes=np.array(columns[3], np.int32),
        keys=np.array([number for number, _ in shown.keys], np.int64),
        seeks=np.array([seek for _, seek in shown.keys], np.int64),
        time_base=np.array(unit.as_integer_ratio(), np.int64),
        aspect=np.array((1 / aspect if shown.on_its_side else aspect).as_integer_ratio(), np.int64),
        origin=np.array(state, np.int64),
        other_tracks=np.array(tracks, np.int64),
        losses=tuple(losses),
        notes=tuple(notes),
    )


class _Shown:
    """Frames as they come out of the decoder, and what came to nothing in between."""

    def __init__(self, streamed: bool) -> None:
        self.frames: list[tuple[int, int, int, tuple[int, int]]] = []  # stamp, print, state, size
        self.keys: list[tuple[int, int]] = []
        self.discarded = 0
        self.on_its_side = False
        self._broken = ""
        self._failed: list[tuple[int, int, str]] = []  # stamp, frames before it, error
        self._marked: dict[int, int] = {}  # stamp of a packet that is called a key -> where a demuxer finds it
        self._keyed: set[int] = set()
        self._partial: set[int] = set()  # stamps of packets that the container gave in part
        self._streamed = streamed  # the container does not say how long a packet is, and marks whole ones at a splice
        self._last = NO_STAMP

    @property
    def damaged(self) -> bool:
        return bool(self._failed or self._broken) or any(frame[2] == HOLED for frame in self.frames)

    def add(self, step: Step) -> None:
        if step.packet is None:
            self._broken = step.error or ""
            return
        packet, stamp = step.packet, NO_STAMP if step.packet.pts is None else step.packet.pts
        self.discarded += packet.is_discard
        if packet.is_keyframe and stamp != NO_STAMP:
            # Some demuxers seek by the time of decoding, which comes before that of showing.
            self._marked[stamp] = stamp if packet.dts is None else min(stamp, packet.dts)
        if packet.is_corrupt and not self._streamed and stamp != NO_STAMP:
            self._partial.add(stamp)
        if packet.size:
            self._last = stamp
        for frame in step.frames:
            shown = NO_STAMP if frame.pts is None else frame.pts
            if not self.frames:
                self.on_its_side = lies_on_its_side(frame)
            if frame.key_frame:
                self._keyed.add(shown)
            state = HOLED if frame.is_corrupt or shown in self._partial else WHOLE
            self.frames.append((shown, fingerprint(frame), state, upright_size(frame)))
        if step.error and packet.size and (self.frames or packet.is_keyframe):  # nothing is shown before a key frame
            self._failed.append((stamp, len(self.frames), step.error))

    def settle(self, *, cut: bool) -> list[str]:
        """Give lost frames their places, end with the last whole frame, and say what is missing."""
        if cut and self._streamed and self._last != NO_STAMP:  # what came last is a part of itself
            place = max((number for number, frame in enumerate(self.frames) if frame[0] == self._last), default=None)
            if place is not None:
                self.frames[place] = (*self.frames[place][:2], HOLED, self.frames[place][3])
        losses = [f"the container is damaged ({self._broken})"] if self._broken else []
        stamps = [frame[0] for frame in self.frames]
        known = set(stamps)
        rising = NO_STAMP not in known and all(a < b for a, b in pairwise(stamps))
        lost = []
        for stamp, before, error in self._failed:
            if stamp == NO_STAMP or stamp not in known:  # a packet can be faulty and its frame be shown all the same
                lost.append((bisect(stamps, stamp) if rising and stamp != NO_STAMP else before, stamp, error))
        for place, stamp, _ in sorted(lost, reverse=True):
            size = self.frames[min(place, len(self.frames) - 1)][3] if self.frames else (0, 0)
            self.frames.insert(place, (stamp, 0, LOST, size))
        whole = max((number for number, frame in enumerate(self.frames) if frame[2] == WHOLE), default=-1)
        if whole + 1 < len(self.frames):
            rest = len(self.frames) - whole - 1
            why = next((error for _, _, error in reversed(lost)), "damaged")
            losses.append(f"after frame {whole} the rest, {rest} packet{'s' * (rest > 1)}, does not decode ({why})")
        del self.frames[whole + 1 :]
        seeks = {**{stamp: stamp for stamp in self._keyed}, **self._marked}
        self.keys = [
            (number, seeks[stamp])
            for number, (stamp, _, state, _) in enumerate(self.frames)
            if state == WHOLE and stamp != NO_STAMP and stamp in seeks
        ]
        return losses


@lru_cache(maxsize=256)
def _read_index(path: Path, size: int, modified: int, folder: Path | None) -> VideoIndex:
    if folder is None:
        return make_index(path)
    text = f"{path}|{size}|{modified}|{av.__version__}|{_VERSION}"
    kept = folder / f"{sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.npz"
    index = _load(kept, (size, modified))
    if index is None:
        index = make_index(path)
        with suppress(OSError):  # it can be made again
            files.write_bytes(kept, _dump(index), mode=0o600)
    return index


def _dump(index: VideoIndex) -> bytes:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {field.name: np.asarray(getattr(index, field.name)) for field in fields(index)}
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _load(path: Path, state: tuple[int, int]) -> VideoIndex | None:
    """Read a kept index; `None` where there is none, or none that can be relied on."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as kept:
            arrays: dict[str, Any] = {field.name: kept[field.name] for field in fields(VideoIndex)}
    except Exception:  # whatever zip and numpy make of broken bytes
        return None
    for name in ("losses", "notes"):
        arrays[name] = tuple(str(sentence) for sentence in arrays[name])
    index = VideoIndex(**arrays)
    count = len(index.stamps)
    fits = all(len(column) == count for column in (index.prints, index.states, index.sizes)) and count > 0
    return index if fits and tuple(index.origin.tolist()) == state else None


def _state(path: Path) -> tuple[int, int]:
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"{path}: is missing (allowed: a video file)") from error
    return facts.st_size, facts.st_mtime_ns
