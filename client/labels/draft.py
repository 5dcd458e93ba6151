"""Drafts of labels: a model looks at frames, and people only have to correct what it got wrong.

    drafted = draft(DraftRequest(sources=(Path("frames"),), out=Path("draft.xml"), format="cvat", estimator=estimator))

A video's frames are written as pictures into a folder, because labelling tools label pictures. What was looked at when
a run was interrupted lies in a hidden folder beside the draft; the same command goes on from there.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wardpose.client.anonymize.job import LeftOut, Progress
from wardpose.client.anonymize.picture import encode_picture
from wardpose.client.anonymize.unfinished import clear, work_folder, working_in
from wardpose.client.joints.boxes import GivenBoxes
from wardpose.client.joints.detector import Detector
from wardpose.client.joints.looking import InBoxes, Look, OnePatient
from wardpose.client.joints.people import Found
from wardpose.client.joints.pieces import piece_length, read_piece, write_piece
from wardpose.client.joints.reels import OnBad, Reel, Shot, open_reels
from wardpose.client.labels import formats
from wardpose.client.labels.formats import Drafted
from wardpose.client.labels.hard import disagreement, hardest, hardness
from wardpose.shared.data.patients import PatientLookup, PatientRule
from wardpose.shared.data.records import Frame
from wardpose.shared.errors import ConfigError, DataError, StorageError, WardposeError
from wardpose.shared.files import ASKED_FOR, sha256_file, storing, write_bytes, write_text
from wardpose.shared.pose.estimators import Estimator

_PIECE = 8  # frames between two places to go on from


@dataclass(frozen=True, kw_only=True)
class DraftRequest:
    """What to draft.

    Attributes:
        sources: folders of pictures, pictures, videos.
        out: file to write.
        format: coco, cvat or label-studio.
        estimator: the teacher.
        frames_to: folder for the frames of videos.
        every: take each so-manieth frame of a video.
        hard: only so many frames, those worth labelling first; all when absent.
        patients: whose frames they are.
        boxes: where people are.
        detector: who finds people; else the one patient in view is searched for.
        least: confidence below which a joint is drafted as hidden.
        prefix: before a picture's name in Label Studio's address.
        on_bad: what cannot be read.
        force: overwrite what exists.
        progress: called with what is done and what there is in all.

    """

    sources: tuple[Path, ...]
    out: Path
    format: str
    estimator: Estimator
    frames_to: Path | None = None
    every: int = 1
    hard: int | None = None
    patients: PatientRule | None = None
    boxes: Path | None = None
    detector: Detector | None = None
    least: float = 0.3
    prefix: str = "/data/local-files/?d="
    on_bad: OnBad = "error"
    force: bool = False
    progress: Progress | None = None


@dataclass(kw_only=True)
class DraftOutcome:
    """What was drafted.

    Attributes:
        frames: in the draft.
        people: in them.
        looked_at: frames in all.
        chosen: names of the frames and how much each is worth, where frames were chosen.
        resumed: frames that an earlier run had looked at.
        lost: joints that the format has no place for.
        skipped: sentences on what could not be read.
        left_out: what of the sources was not looked at.

    """

    frames: int = 0
    people: int = 0
    looked_at: int = 0
    resumed: int = 0
    chosen: list[tuple[str, float]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Looked:
    drafted: Drafted
    reel: Reel
    entry: int
    worth: float


def draft(request: DraftRequest) -> DraftOutcome:
    """Look at the frames and write the draft.

    Raises:
        ConfigError: an option is not allowed, or a file exists.
        DataError: a frame cannot be read and `on_bad` is `error`, or there is none.

    """
    _check(request)
    reels = open_reels(request.sources, rate=None, on_bad=request.on_bad)
    if any(reel.video is not None for reel in reels.reels) and request.frames_to is None:
        raise ConfigError(
            "labelling tools label pictures: a video needs --frames-to (allowed: a folder for its frames)"
        )
    outcome = DraftOutcome(left_out=list(reels.left_out))
    boxes = None if request.boxes is None else GivenBoxes(request.boxes)
    if boxes is not None:
        boxes.check(reels)
    owners = None if request.patients is None else PatientLookup(request.patients)
    out = request.out.resolve()
    with storing(out, "what was looked at stays, run the same command again to go on"):
        work = work_folder(out, _identity(request, reels.reels))
        with working_in(work):
            looked = list(_looked_at(request, reels.reels, boxes, owners, work, outcome))
            if not looked:
                why = "; ".join(outcome.skipped[:1]) or "none"
                raise DataError(f"{request.sources[0]}: no frame can be used ({why})")
            outcome.looked_at = len(looked)
            if request.hard is not None:
                names = [one.drafted.patient or one.drafted.name for one in looked]
                chosen = hardest([one.worth for one in looked], names, request.hard)
                outcome.chosen = [(looked[place].drafted.name, round(looked[place].worth, 4)) for place in chosen]
                looked = [looked[place] for place in sorted(chosen)]
            _write(request, looked, outcome)
        clear(out)
    return outcome


def _check(request: DraftRequest) -> None:
    if request.format not in formats.FORMATS:
        raise ConfigError(f'--format "{request.format}" is not allowed ({", ".join(formats.FORMATS)})')
    if request.hard is not None and request.hard < 1:
        raise ConfigError(f"--hard {request.hard} is not allowed (at least 1)")
    if request.every < 1:
        raise ConfigError(f"--every {request.every} is not allowed (at least 1)")
    if not 0 <= request.least <= 1:
        raise ConfigError(f"--hidden-below {request.least} is not allowed (0 to 1)")
    if request.boxes is not None and request.detector is not None:
        raise ConfigError("--boxes and --detector both say where people are (allowed: one of them)")
    if request.out.exists() and not request.force:
        raise ConfigError(f"{request.out}: exists already (--force overwrites)")


def _step(request: DraftRequest, reel: Reel) -> int:
    return request.every if reel.video is not None else 1


def _look(request: DraftRequest, boxes: GivenBoxes | None, *, alone: bool) -> Look:
    estimator, detector = request.estimator, request.detector
    if boxes is not None:

        def given(shot: Shot, frame: Frame) -> list[Any]:
            return boxes.of(shot, (frame.shape[0], frame.shape[1]), alone=alone)

        return InBoxes(estimator, given, linked=False, batch_size=8)
    if detector is not None:
        return InBoxes(estimator, lambda _, frame: detector(frame), linked=False, batch_size=8)
    return OnePatient(estimator, linked=False, batch_size=8)


def _looked_at(
    request: DraftRequest,
    reels: Sequence[Reel],
    boxes: GivenBoxes | None,
    owners: PatientLookup | None,
    work: Path,
    outcome: DraftOutcome,
) -> Iterator[_Looked]:
    """Look at what no earlier run has looked at, a few frames at a time."""
    total = sum(len(range(0, reel.entries, _step(request, reel))) for reel in reels)
    done = 0
    for number, reel in enumerate(reels):
        look = _look(request, boxes, alone=len(reels) == 1)
        entries = range(0, reel.entries, _step(request, reel))
        length = min(_PIECE, piece_length(reel))
        for piece in (entries[start : start + length] for start in range(0, len(entries), length)):
            path = work / f"{number:03d}-{piece[0]:09d}.people"
            before = read_piece(path)
            if before is None:
                found, worths = _look_at(request, reel, piece, look)
                write_piece(path, found, {"worths": worths})
            else:
                found, worths = before[0], before[1]["worths"]
                outcome.resumed += len(found)
            outcome.skipped += [frame.skipped for frame in found if frame.skipped]
            for entry, frame, worth in zip(piece, found, worths, strict=True):
                if not frame.skipped:
                    yield _Looked(_drafted(reel, frame, entry, owners), reel, entry, worth)
            done += len(piece)
            if request.progress is not None:
                request.progress(done, total)


def _look_at(request: DraftRequest, reel: Reel, piece: range, look: Look) -> tuple[list[Found], list[float]]:
    """Return what is in each frame of a piece, and how much the frame is worth."""
    read = [_read(request, reel, entry) for entry in piece]
    shown = [frame for frame in read if not isinstance(frame, str)]
    people = iter(look(shown) if shown else [])
    found, worths = [], []
    for entry, this in zip(piece, read, strict=True):
        if isinstance(this, str):
            shot = reel.shot(entry)
            found.append(Found(source=shot.source, number=shot.number, time=None, size=reel.size(entry), skipped=this))
            worths.append(0.0)
            continue
        (shot, frame), those = this, next(people)
        size = (frame.shape[0], frame.shape[1])
        found.append(Found(source=shot.source, number=shot.number, time=None, size=size, people=those))
        apart = [disagreement(request.estimator, frame, person) for person in those] if request.hard else []
        worths.append(hardness(those, apart) if request.hard else 0.0)
    return found, worths


def _read(request: DraftRequest, reel: Reel, entry: int) -> tuple[Shot, Frame] | str:
    """Return a frame, or why it cannot be read."""
    try:
        shown = reel.load(entry)
    except WardposeError as error:
        if request.on_bad == "error" or isinstance(error, StorageError):
            raise
        return str(error)
    if len(shown) > 1:
        raise DataError(f"{shown[0][0].source}: has {len(shown)} pages (allowed: one; labelling tools show the first)")
    return shown[0]


def _drafted(reel: Reel, frame: Found, entry: int, owners: PatientLookup | None) -> Drafted:
    name = frame.source if reel.video is None else f"{reel.name}_{entry:06d}.png"
    patient = ""
    if owners is not None:
        patient = owners.owners(name, frame.source if frame.number is None else str(frame.number)).patient_id
    return Drafted(name=name, size=frame.size, people=frame.people, patient=patient)


def _identity(request: DraftRequest, reels: Sequence[Reel]) -> str:
    """Everything that decides what is seen in the frames; the format and whose they are is decided afterwards."""
    facts = [reel.identity for reel in reels]
    facts += [request.estimator.identity(), str(request.every), str(request.hard is not None), request.on_bad]
    facts += ["" if request.boxes is None else sha256_file(request.boxes)]
    facts += ["" if request.detector is None else request.detector.identity(), str(request.out.resolve()), "1"]
    return hashlib.sha256("|".join(facts).encode()).hexdigest()[:16]


def _write(request: DraftRequest, looked: list[_Looked], outcome: DraftOutcome) -> None:
    for one in looked:
        if one.reel.video is not None and request.frames_to is not None:
            _write_frame(request, request.frames_to / one.drafted.name, one.reel.load(one.entry)[0][1])
    frames, skeleton = [one.drafted for one in looked], request.estimator.skeleton
    if request.format == "coco":
        text = formats.coco(frames, skeleton, least=request.least)
        outcome.lost = formats.lost_in_coco(skeleton)
    elif request.format == "cvat":
        text = formats.cvat(frames, skeleton, least=request.least)
    else:
        model = request.estimator.name
        text = formats.label_studio(frames, skeleton, least=request.least, prefix=request.prefix, model=model)
    write_text(request.out, text, mode=ASKED_FOR)
    outcome.frames = len(frames)
    outcome.people = sum(len(frame.people) for frame in frames)


def _write_frame(request: DraftRequest, path: Path, frame: Frame) -> None:
    """Write a frame as PNG, unless this very picture is there, which an interrupted run has written."""
    content = encode_picture(frame, ".png")
    if path.is_file() and path.read_bytes() == content:
        return
    if path.exists() and not request.force:
        raise ConfigError(f"{path}: exists already and is another picture (--force overwrites)")
    write_bytes(path, content, mode=ASKED_FOR)
