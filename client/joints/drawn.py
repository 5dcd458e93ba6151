"""Skeletons on frames, or on their anonymised view: a film in segments that can be gone on with, or pictures."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from wardpose.client.anonymize import disk
from wardpose.client.anonymize.encoding import Segment, Stored, assemble, read_segment, storage_for
from wardpose.client.anonymize.picture import encode_picture
from wardpose.client.anonymize.timing import shown_at
from wardpose.client.joints.people import Found
from wardpose.client.joints.reels import Reel
from wardpose.shared import files
from wardpose.shared.anonymize.frame_methods import FrameMethod
from wardpose.shared.data.records import Frame
from wardpose.shared.pose.drawing import draw_skeleton
from wardpose.shared.skeleton import Skeleton

_SHOWN_FROM = 0.1
"""Joints less sure than this in parts of the surest joint of the person are not drawn."""

Seen = Sequence[tuple[Frame | None, Found]]
"""Frames and what was found in them; without a picture where it could not be read."""


class Canvas(Protocol):
    """Where the frames of one reel are drawn."""

    def has(self, begin: int) -> bool:
        """Whether the piece that begins with this entry is drawn already."""
        ...

    def draw(self, begin: int, seen: Seen) -> None:
        """Draw a piece."""
        ...

    def finish(self, target: Path) -> None:
        """Make the file, or the files of a folder."""
        ...


class Painter:
    """Draws the people of a frame."""

    def __init__(self, skeleton: Skeleton, over: FrameMethod | None) -> None:
        """Draw on the frame, or on what `over` makes of it around the people."""
        self._skeleton, self._over = skeleton, over

    def __call__(self, frame: Frame, found: Found) -> Frame:
        """Return the drawn frame."""
        if self._over is not None:
            frame = self._over(frame, [person.box for person in found.people] or None)
        for person in found.people:
            shown = np.where(person.scores >= _SHOWN_FROM * person.scores.max(), person.scores, 0)
            frame = draw_skeleton(frame, person.joints, shown, self._skeleton, thickness=_thickness(frame))
        return frame

    def identity(self) -> str:
        """SHA-256 over what decides the drawing."""
        over = "" if self._over is None else self._over.identity()
        return hashlib.sha256(f"{self._skeleton.name}|{over}|1".encode()).hexdigest()


class Film:
    """A video with the frames and times of its source."""

    def __init__(self, reel: Reel, painter: Painter, destination: Path, work: Path, name: str) -> None:
        if reel.video is None:
            raise ValueError(f"{reel.name} is no video")
        self._reel, self._video, self._painter, self._destination = reel, reel.video, painter, destination
        self._work, self._name = work, name
        storage = storage_for(destination, source=self._video.path, lossless=False)
        # A drawing is looked at and thrown away: larger, and encoded beside the network in a third of the time.
        options = {**storage.options, "preset": "veryfast"} if storage.codec == "libx264" else storage.options
        self._storage = replace(storage, options=options)

    def has(self, begin: int) -> bool:
        """Whether the segment is there and whole."""
        return read_segment(self._path(begin)) is not None

    def draw(self, begin: int, seen: Seen) -> None:
        """Draw and encode a segment."""
        height, width = self._video.height, self._video.width
        segment = Segment(self._storage, height, width, Fraction(*self._video.index.aspect.tolist()))
        for frame, found in seen:
            drawn = np.zeros((height, width, 3), np.uint8) if frame is None else self._painter(frame, found)
            segment.add(drawn, found.skipped)
        files.write_bytes(self._path(begin), segment.content(), mode=0o600)

    def finish(self, target: Path) -> None:
        """Put the segments together, with the times of the source."""
        stamps, unit = shown_at(
            self._video.index, self._storage, source=self._video.path, destination=self._destination
        )
        segments: list[Stored] = []
        while (segment := read_segment(self._path(sum(done.frames for done in segments)))) is not None:
            segments.append(segment)
        target.parent.mkdir(parents=True, exist_ok=True)
        with disk.needing(target, sum(done.path.stat().st_size for done in segments)):
            assemble(segments, target, self._storage, stamps, unit)

    def _path(self, begin: int) -> Path:
        return self._work / f"{self._name}-{begin:09d}.segment"


class Album:
    """A picture of each frame."""

    def __init__(self, reel: Reel, painter: Painter, work: Path, name: str, *, ending: str, one: bool) -> None:
        self._reel, self._painter, self._ending, self._one = reel, painter, ending, one
        self._folder = work / f"{name}-pictures"

    def has(self, begin: int) -> bool:
        """Whether the piece is finished."""
        return (self._folder / f"{begin:09d}.done").exists()

    def draw(self, begin: int, seen: Seen) -> None:
        """Draw a picture of each frame that could be read."""
        for frame, found in seen:
            if frame is not None:
                content = encode_picture(self._painter(frame, found), self._ending)
                files.write_bytes(self._folder / "made" / self._name(found), content, mode=0o600)
        files.write_bytes(self._folder / f"{begin:09d}.done", b"")

    def finish(self, target: Path) -> None:
        """Lay the pictures into the folder, or the only one under its name."""
        made = sorted(path for path in (self._folder / "made").rglob("*") if path.is_file())
        for path in made:
            to = target if self._one else target / path.relative_to(self._folder / "made")
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)  # what is drawn stays until everything has its name

    def _name(self, found: Found) -> str:
        number = "" if found.number is None else f"_{found.number:06d}"
        if self._reel.video is not None:
            return f"{self._reel.name}{number}{self._ending}"
        return f"{found.source}{number}{self._ending}" if not found.source.endswith(self._ending) else found.source


def _thickness(frame: Frame) -> int:
    sides: tuple[int, ...] = frame.shape[:2]
    return max(1, max(sides) // 250)
