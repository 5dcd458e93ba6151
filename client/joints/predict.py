"""From pictures and videos to joints: read ahead, looked at in batches, drawn and stored behind; can be interrupted.

    outcome = predict(Request(sources=(Path("ward.mp4"),), outputs=(Path("joints.csv"),)))

A reel of frames is done piece by piece. A finished piece lies, whole or not at all, in a hidden folder beside the first
output; the next run with the same sources, model and options goes on after the last of them and writes the same
files. Three threads overlap: one decodes, one looks (this one), one draws and stores. An output gets its name when all
of it is complete.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from wardpose.client.anonymize.job import LeftOut, Progress
from wardpose.client.anonymize.unfinished import clear, work_folder, working_in
from wardpose.client.joints.boxes import GivenBoxes
from wardpose.client.joints.detector import Detector
from wardpose.client.joints.drawn import Album, Canvas, Film, Painter, Seen
from wardpose.client.joints.looking import LEAST_CONFIDENCE, InBoxes, Look, OnePatient
from wardpose.client.joints.outputs import Output, plan_outputs
from wardpose.client.joints.people import Found
from wardpose.client.joints.pieces import piece_length, read_piece
from wardpose.client.joints.reels import OnBad, Reel, Reels, Shot, open_reels
from wardpose.client.joints.smoothing import check_cutoff, smoothed
from wardpose.client.joints.threads import Keeper, Read, Reader
from wardpose.client.joints.writing import READY, write_outputs
from wardpose.shared import files
from wardpose.shared.anonymize.frame_methods import FrameMethod
from wardpose.shared.data.records import Frame
from wardpose.shared.errors import ConfigError, DataError
from wardpose.shared.pose.estimators import Estimator

_GO_ON = "what was finished stays, run the same command again to go on"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to do.

    Attributes:
        sources: pictures, videos, folders of them.
        outputs: files or folders to write.
        formats: of the outputs, one for each; by their endings when empty.
        estimator: the network.
        boxes: file that says where people are.
        detector: finds people; without it and `boxes` the one patient in view is followed.
        over: what frames are drawn on: the frame itself when absent.
        smooth: cutoff in Hz of a low pass over time.
        rate: frames a second of folders of pictures, which makes them films.
        metres_per_pixel: for TRC.
        batch_size: crops at a time.
        least: mean score below which the one patient is said not to be there.
        on_bad: what cannot be read: stop there, or go on without it.
        force: overwrite what exists.
        progress: called with what is done and what there is in all.

    """

    sources: tuple[Path, ...]
    outputs: tuple[Path, ...]
    estimator: Estimator
    formats: tuple[str, ...] = ()
    boxes: Path | None = None
    detector: Detector | None = None
    over: FrameMethod | None = None
    smooth: float | None = None
    rate: float | None = None
    metres_per_pixel: float | None = None
    batch_size: int = 16
    least: float = LEAST_CONFIDENCE
    on_bad: OnBad = "error"
    force: bool = False
    progress: Progress | None = None


@dataclass(kw_only=True)
class Outcome:
    """What was done.

    Attributes:
        frames: that were looked at, in earlier runs too.
        people: different ones; in pictures that are no film, everybody counts in each.
        seconds: that this run took.
        outputs: what was written.
        resumed: frames that an earlier run had looked at.
        skipped: sentences on what could not be read.
        left_out: what of the sources was not looked at, and boxes of no frame.

    """

    frames: int = 0
    people: int = 0
    seconds: float = 0.0
    outputs: list[Path] = field(default_factory=list)
    resumed: int = 0
    skipped: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def predict(request: Request) -> Outcome:
    """Find the joints of everybody in the sources, and write them.

    Raises:
        ConfigError: an option or output is not allowed, or an output exists.
        DataError: a source cannot be read, or the disk is full; what was finished before stays.

    """
    begun = monotonic()
    if request.boxes is not None and request.detector is not None:
        raise ConfigError("--boxes and --detector both say where people are (allowed: one of them)")
    if not 0 <= request.least < 1:
        raise ConfigError(f"--min-confidence {request.least} is not allowed (0, or above and below 1)")
    if request.batch_size < 1:
        raise ConfigError(f"--batch {request.batch_size} is not allowed (at least 1)")
    boxes = None if request.boxes is None else GivenBoxes(request.boxes)
    reels = open_reels(request.sources, rate=request.rate, on_bad=request.on_bad)
    outputs = plan_outputs(request.outputs, request.formats, reels.reels)
    if request.over is not None and not any(output.drawn for output in outputs):
        raise ConfigError("--over is for drawn frames (allowed: together with an output of format video or pictures)")
    if boxes is not None:
        boxes.check(reels)
    for reel in reels.reels if request.smooth is not None else ():
        check_cutoff(request.smooth or 0.0, reel.rate, reel.name)
    first = outputs[0].path.resolve()
    work = work_folder(first, _identity(request, reels, outputs))
    _refuse_existing(outputs, work, force=request.force)
    with files.storing(first, _GO_ON):
        outcome = _Work(request, reels, outputs, boxes, work).do()
    outcome.seconds = monotonic() - begun
    return outcome


class _Work:
    """The reels of a request, one after the other."""

    def __init__(
        self, request: Request, reels: Reels, outputs: Sequence[Output], boxes: GivenBoxes | None, work: Path
    ) -> None:
        self._request, self._reels, self._outputs, self._boxes, self._work = request, reels, outputs, boxes, work
        self._outcome = Outcome(left_out=list(reels.left_out))
        self._entries = sum(reel.entries for reel in reels.reels)
        self._done = 0
        self._painter = Painter(request.estimator.skeleton, request.over)

    def do(self) -> Outcome:
        with working_in(self._work):
            found, canvases = [], []
            for place, reel in enumerate(self._reels.reels):
                drawn = self._canvases(reel, f"{place:03d}")
                found.append(self._reel(reel, f"{place:03d}", drawn))
                canvases.append(drawn)
            frames = [frame for frames in found for frame in frames]
            self._outcome.skipped = [frame.skipped for frame in frames if frame.skipped]
            if len(self._outcome.skipped) == len(frames):
                raise DataError(f"not one frame of {len(frames)} can be used ({self._outcome.skipped[0]})")
        self._outcome.frames = len(frames)
        self._outcome.people = sum(_people(reel, those) for reel, those in zip(self._reels.reels, found, strict=True))
        if self._boxes is not None:
            reason = f"named in {self._request.boxes}, but no frame of the sources"
            self._outcome.left_out += [LeftOut(name, reason) for name in self._boxes.unused()]
        self._outcome.outputs = write_outputs(
            self._outputs,
            self._reels.reels,
            found,
            canvases,
            skeleton=self._request.estimator.skeleton,
            metres_per_pixel=self._request.metres_per_pixel,
            work=self._work,
        )
        clear(self._outputs[0].path.resolve())
        return self._outcome

    def _canvases(self, reel: Reel, name: str) -> list[Canvas]:
        canvases: list[Canvas] = []
        for number, output in enumerate(output for output in self._outputs if output.drawn):
            folder = output.is_folder(self._reels.reels)
            if output.format == "video":
                path = output.path / f"{reel.name}.mp4" if folder else output.path
                canvases.append(Film(reel, self._painter, path, self._work, f"{name}-{number}"))
            else:
                ending = ".png" if folder else output.path.suffix.lower()
                canvases.append(
                    Album(reel, self._painter, self._work, f"{name}-{number}", ending=ending, one=not folder)
                )
        return canvases

    def _reel(self, reel: Reel, name: str, canvases: Sequence[Canvas]) -> list[Found]:
        smooth = self._request.smooth is not None and reel.linked
        found = self._looked_at(reel, name, [] if smooth else canvases)
        if smooth:
            flat = [frame for those in found.values() for frame in those]
            coming = iter(smoothed(flat, self._request.smooth or 0.0, rate=reel.rate or 0.0))
            found = {begin: [next(coming) for _ in those] for begin, those in found.items()}
        for begin, those in found.items():  # what was drawn in no earlier run, and behind a smoothed path
            missing = [canvas for canvas in canvases if not canvas.has(begin)]
            if missing:
                seen = _seen_again(reel, begin, those)
                for canvas in missing:
                    canvas.draw(begin, seen)
        return [frame for those in found.values() for frame in those]

    def _looked_at(self, reel: Reel, name: str, canvases: Sequence[Canvas]) -> dict[int, list[Found]]:
        """Return what is found in each piece, by its first entry; pieces of earlier runs are read."""
        look = self._look(reel)
        found: dict[int, list[Found]] = {}
        step = piece_length(reel)
        begin = 0
        while begin < reel.entries and (before := read_piece(self._path(name, begin))) is not None:
            found[begin], state = before
            look.restore(state)
            self._outcome.resumed += len(found[begin])
            begin += step
        self._tell(begin=begin, reel=reel)
        with Reader(reel, begin, self._request.on_bad, ahead=step) as reader, Keeper(canvases) as keeper:
            for start in range(begin, reel.entries, step):
                shown = [shot for _ in range(start, min(start + step, reel.entries)) for shot in reader.next()]
                seen = self._seen(look, shown)
                found[start] = [those for _, those in seen]
                keeper.keep(start, seen, self._path(name, start), look.state())
                self._tell(begin=min(start + step, reel.entries), reel=reel)
        self._done += reel.entries
        return found

    def _seen(self, look: Look, shown: Sequence[Read]) -> Seen:
        whole = [(read.shot, read.frame) for read in shown if read.frame is not None]
        people = iter(look(whole) if whole else [])
        return [
            (
                read.frame,
                Found(
                    source=read.shot.source,
                    number=read.shot.number,
                    time=read.shot.time,
                    size=read.size,
                    people=next(people) if read.frame is not None else (),
                    skipped=read.why,
                ),
            )
            for read in shown
        ]

    def _look(self, reel: Reel) -> Look:
        request = self._request
        finder: Callable[[Shot, Frame], list[Any]] | None = None
        if self._boxes is not None:
            boxes, alone = self._boxes, len(self._reels.reels) == 1

            def given(shot: Shot, frame: Frame) -> list[Any]:
                return boxes.of(shot, (frame.shape[0], frame.shape[1]), alone=alone)

            finder = given
        elif request.detector is not None:
            detector = request.detector

            def detected(_: Shot, frame: Frame) -> list[Any]:
                return detector(frame)

            finder = detected
        if finder is None:
            return OnePatient(request.estimator, reel.linked, request.batch_size, request.least)
        return InBoxes(request.estimator, finder, linked=reel.linked, batch_size=request.batch_size)

    def _path(self, name: str, begin: int) -> Path:
        return self._work / f"{name}-{begin:09d}.people"

    def _tell(self, *, begin: int, reel: Reel) -> None:
        if self._request.progress is not None:
            self._request.progress(self._done + min(begin, reel.entries), self._entries)


def _seen_again(reel: Reel, begin: int, found: Sequence[Found]) -> Seen:
    """Read the frames of a piece once more."""
    frames: list[Frame | None] = []
    entry = begin
    while len(frames) < len(found):
        if found[len(frames)].skipped:
            frames.append(None)
        else:
            frames += [frame for _, frame in reel.load(entry)]
        entry += 1
    return list(zip(frames, found, strict=True))


def _people(reel: Reel, found: Sequence[Found]) -> int:
    if reel.linked:
        return len({person.number for frame in found for person in frame.people})
    return sum(len(frame.people) for frame in found)


def _identity(request: Request, reels: Reels, outputs: Sequence[Output]) -> str:
    """Everything that decides what the pieces hold."""
    facts = [reel.identity for reel in reels.reels]
    facts += [
        request.estimator.identity(),
        str(request.batch_size),
        str(request.least),
        request.on_bad,
        str(request.rate),
    ]
    facts += ["" if request.boxes is None else files.sha256_file(request.boxes)]
    facts += ["" if request.detector is None else request.detector.identity(), str(request.smooth)]
    facts += [f"{output.path.resolve()}:{output.format}" for output in outputs]
    facts += [Painter(request.estimator.skeleton, request.over).identity(), "2"]
    return hashlib.sha256("|".join(facts).encode()).hexdigest()[:16]


def _refuse_existing(outputs: Sequence[Output], work: Path, *, force: bool) -> None:
    """See that nothing is overwritten, but what an interrupted run of the same command wrote."""
    for output in outputs:
        there = any(output.path.iterdir()) if output.path.is_dir() else output.path.exists()
        if there and not force and not (work / READY).exists():
            raise ConfigError(f"{output.path}: exists already (--force overwrites)")
