"""Drafts of labels: a model looks at frames, and people only have to correct what it got wrong.

    drafted = draft(DraftRequest(sources=(Path("frames"),), out=Path("draft.xml"), format="cvat", estimator=estimator))

A video's frames are written as pictures into a folder first, because labelling tools label pictures.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wardpose.client.anonymize.job import LeftOut, Progress
from wardpose.client.anonymize.picture import encode_picture
from wardpose.client.joints.boxes import GivenBoxes
from wardpose.client.joints.detector import Detector
from wardpose.client.joints.looking import InBoxes, Look, OnePatient
from wardpose.client.joints.reels import OnBad, Reel, Shot, open_reels
from wardpose.client.labels import formats
from wardpose.client.labels.formats import Drafted
from wardpose.client.labels.hard import disagreement, hardest, hardness
from wardpose.shared.data.patients import PatientLookup, PatientRule
from wardpose.shared.data.records import Frame
from wardpose.shared.errors import ConfigError, DataError, WardposeError
from wardpose.shared.files import ASKED_FOR, write_bytes, write_text
from wardpose.shared.pose.estimators import Estimator


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
        lost: joints that the format has no place for.
        skipped: sentences on what could not be read.
        left_out: what of the sources was not looked at.

    """

    frames: int = 0
    people: int = 0
    looked_at: int = 0
    chosen: list[tuple[str, float]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Looked:
    drafted: Drafted
    reel: Reel
    entry: int
    page: int
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
    looked: list[_Looked] = []
    total = sum(len(range(0, reel.entries, _step(request, reel))) for reel in reels.reels)
    done = 0
    for reel in reels.reels:
        look = _look(request, boxes, alone=len(reels.reels) == 1)
        for entry in range(0, reel.entries, _step(request, reel)):
            looked += _entry(request, reel, entry, look, owners, outcome)
            done += 1
            if request.progress is not None:
                request.progress(done, total)
    if not looked:
        raise DataError(f"{request.sources[0]}: no frame can be used ({'; '.join(outcome.skipped[:1]) or 'none'})")
    outcome.looked_at = len(looked)
    if request.hard is not None:
        names = [one.drafted.patient or one.drafted.name for one in looked]
        chosen = hardest([one.worth for one in looked], names, request.hard)
        outcome.chosen = [(looked[place].drafted.name, round(looked[place].worth, 4)) for place in chosen]
        looked = [looked[place] for place in sorted(chosen)]
    _write(request, looked, outcome)
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


def _entry(
    request: DraftRequest, reel: Reel, entry: int, look: Look, owners: PatientLookup | None, outcome: DraftOutcome
) -> list[_Looked]:
    try:
        shown = reel.load(entry)
    except WardposeError as error:
        if request.on_bad == "error":
            raise
        outcome.skipped.append(str(error))
        return []
    if reel.video is None and len(shown) > 1:
        raise DataError(f"{shown[0][0].source}: has {len(shown)} pages (allowed: one; labelling tools show the first)")
    looked = []
    for page, ((shot, frame), people) in enumerate(zip(shown, look(shown), strict=True)):
        apart = [disagreement(request.estimator, frame, person) for person in people] if request.hard else []
        worth = hardness(people, apart) if request.hard else 0.0
        name = shot.source if reel.video is None else f"{reel.name}_{entry:06d}.png"
        patient = _patient(owners, shot, name)
        drafted = Drafted(name=name, size=(frame.shape[0], frame.shape[1]), people=people, patient=patient)
        looked.append(_Looked(drafted, reel, entry, page, worth))
    return looked


def _patient(owners: PatientLookup | None, shot: Shot, name: str) -> str:
    if owners is None:
        return ""
    return owners.owners(name, shot.source if shot.number is None else str(shot.number)).patient_id


def _write(request: DraftRequest, looked: list[_Looked], outcome: DraftOutcome) -> None:
    for one in looked:
        if one.reel.video is not None and request.frames_to is not None:
            frame = one.reel.load(one.entry)[one.page][1]
            write_bytes(request.frames_to / one.drafted.name, encode_picture(frame, ".png"), mode=ASKED_FOR)
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
