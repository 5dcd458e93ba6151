"""A video file, frame by number: the same number is the same picture, whatever was read before and by whom."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from wardpose.shared.data.records import Frame
from wardpose.shared.data.video_index import LOST, NO_STAMP, WHOLE, VideoIndex, make_index, read_index
from wardpose.shared.data.video_stream import fingerprint, open_stream, picture, steps
from wardpose.shared.errors import DataError

_KEPT_BYTES = 64 << 20
_WORTH_A_SEEK = 4  # frames that a seek costs
_STRAYING = 64  # frames that a demuxer may land before a key


class Video:
    """An open video file; frames by number, in any order, from any thread or process.

    Attributes:
        path: the file.
        index: its frames.
        frame_count: how many there are; the numbers are 0 to `frame_count - 1`.
        height: of the first frame, upright.
        width: of the first frame, upright.

    """

    path: Path
    index: VideoIndex
    frame_count: int
    height: int
    width: int

    def __init__(self, path: Path, *, index_folder: Path | None = None) -> None:
        """Open a video, and decode it once where it is not known yet.

        Args:
            path: the file.
            index_folder: where the indexes of videos are kept between processes.

        Raises:
            DataError: the file is missing, is no video, or none of its frames decodes.

        """
        self._open(path, read_index(path, index_folder))

    def frame(self, number: int) -> Frame:
        """Decode frame `number`, from 0: (h, w, 3) uint8 RGB, upright.

        Raises:
            DataError: there is no such frame, or it is damaged; names file, number and what is allowed.

        """
        self.check(number)
        if self.index.states[number] != WHOLE:
            raise DataError(
                f"{self.path}: frame {number} is corrupt (allowed: a frame that decodes, of {self.frame_count})"
            )
        reader = self._reader()
        with reader.lock:
            found = reader.find(number)
            if found is None:
                # Damage that FFmpeg does not own up to can look otherwise with another number of threads.
                self.index = reader.index = self._again()
                found = reader.find(number)
            if found is None:
                raise DataError(
                    f"{self.path}: frame {number} is corrupt: it does not decode to the same picture twice "
                    f"(allowed: a frame that decodes, of {self.frame_count})"
                )
            return picture(found)  # a frame's converter is not for two threads at once either

    def check(self, number: int) -> None:
        """See that there is a frame of this number.

        Raises:
            DataError: there is none.

        """
        if not 0 <= number < self.frame_count:
            why = f"; {'; '.join(self.index.losses)}" if self.index.losses else ""
            raise DataError(f"{self.path}: frame is {number} (allowed: 0 to {self.frame_count - 1}{why})")

    def size(self, number: int) -> tuple[int, int]:
        """(height, width) of a frame, upright."""
        height, width = self.index.sizes[number].tolist()
        return height, width

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self._absolute, "index": self.index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._open(state["path"], state["index"])

    def _open(self, path: Path, index: VideoIndex) -> None:
        self.path, self.index, self.frame_count = path, index, len(index)
        self._absolute = path.absolute()
        self.height, self.width = index.sizes[0].tolist()
        self._readers: dict[int, _Reader] = {}

    def _reader(self) -> "_Reader":
        # A forked process shares its parent's place in the file, and perhaps a lock that nobody opens: it reads anew.
        process = os.getpid()
        if process not in self._readers:
            self._readers.setdefault(process, _Reader(self._absolute, self.index))
        return self._readers[process]

    def _again(self) -> VideoIndex:
        index = make_index(self._absolute, threads=1)
        if not all(
            np.array_equal(getattr(index, of), getattr(self.index, of)) for of in ("origin", "stamps", "states")
        ):
            raise DataError(f"{self.path}: changed since it was opened (allowed: a file that stays as it is)")
        return index


class _Reader:
    """A decoder, where it stands, and the frames it gave out last; for one process."""

    def __init__(self, path: Path, index: VideoIndex) -> None:
        self.lock = threading.Lock()
        self.index = index
        self._path = path
        self._opened: tuple[InputContainer, VideoStream] | None = None
        self._coming: Iterator[VideoFrame] = iter(())
        self._next: int | None = None
        self._kept: OrderedDict[int, VideoFrame] = OrderedDict()
        self._kept_bytes = 0
        self._attempt = 0  # what served last time

    def find(self, number: int) -> VideoFrame | None:
        """Return the frame that the index describes; `None` when even the file read from its beginning has another."""
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        keys = self.index.keys
        key = int(np.searchsorted(keys, number, side="right")) - 1  # the last one that is not after it
        if self._next is not None and self._next <= number:
            nearest = int(keys[key]) if key >= 0 else 0
            if nearest <= self._next + _WORTH_A_SEEK:
                found = self._read_on(number, number - self._next + 1)
                if found is not None:
                    return found
        for attempt in range(self._attempt, 2 * len(keys)):
            # Each second time from further back: 0, 1, 3, 7 ... keys. What comes after a key may refer to what lies
            # before it; and some demuxers seek by the time of decoding, others by that of showing.
            begin = key - 2 ** (attempt // 2) + 1
            if begin < 0:
                break
            if self._seek(int((self.index.seeks if attempt % 2 else self.index.stamps[keys])[begin])):
                found = self._read_on(number, number - int(keys[begin]) + _STRAYING)
                if found is not None:
                    self._attempt = min(attempt, 2)  # one hard place is no reason to begin far back everywhere
                    return found
        self._rewind()
        return self._read_on(number, number + 1)

    def _read_on(self, number: int, most: int) -> VideoFrame | None:
        """Decode at most so many frames up to `number` and compare each with the index; `None` when it is not there."""
        for frame in islice(self._coming, most):
            at = self._place(frame, number) if self._next is None else self._next
            if at is None:
                continue  # decoded without what it refers to
            if at > number or not self._is(at, frame):
                break
            self._next = self._following(at)
            self._keep(at, frame)
            if at == number:
                return frame
        self._next, self._coming = None, iter(())
        return None

    def _place(self, frame: VideoFrame, number: int) -> int | None:
        """Find a frame's number by time stamp and fingerprint; one after `number` where it is past it."""
        if frame.pts is None:
            return None
        places = np.flatnonzero(self.index.stamps == frame.pts)
        fitting = [int(place) for place in places if self.index.states[place] == WHOLE and self._is(int(place), frame)]
        return fitting[0] if fitting else None

    def _is(self, number: int, frame: VideoFrame) -> bool:
        index = self.index
        if index.stamps[number] != (NO_STAMP if frame.pts is None else frame.pts):
            return False
        return bool(index.states[number] != WHOLE or index.prints[number] == fingerprint(frame))

    def _following(self, number: int) -> int | None:
        """Return the next frame that the decoder will give out; `None` after the last."""
        number += 1
        while number < len(self.index) and self.index.states[number] == LOST:
            number += 1
        return number if number < len(self.index) else None

    def _seek(self, stamp: int) -> bool:
        if self._opened is None:
            self._opened = open_stream(self._path)
        container, stream = self._opened
        self._next = None
        try:
            container.seek(stamp, stream=stream)
        except (av.FFmpegError, OSError, ValueError):
            return False
        self._coming = _frames(container, stream)
        return True

    def _rewind(self) -> None:
        if self._opened is not None:
            self._opened[0].close()
        self._opened = open_stream(self._path)
        self._coming = _frames(*self._opened)
        self._next = self._following(-1)

    def _keep(self, number: int, frame: VideoFrame) -> None:
        self._kept[number] = frame
        self._kept_bytes += _bytes(frame)
        while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
            self._kept_bytes -= _bytes(self._kept.popitem(last=False)[1])


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    for step in steps(container, stream):
        yield from step.frames


def _bytes(frame: VideoFrame) -> int:
    return sum(plane.buffer_size for plane in frame.planes)
