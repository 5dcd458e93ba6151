"""What is wrong with a data set, before it trains anything: `wardpose data check`.

Every record is read and every picture decoded. Nothing is written but the contact sheet that is asked for, and nothing
leaves the screen of whoever calls it: counts and ids of patients are shown.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from wardpose.client.contact_sheet import write_sheet
from wardpose.client.findings import Finding, finding
from wardpose.client.left_right import swapped_sides
from wardpose.shared.data.dataset import ImageFile, ListDataset, listed
from wardpose.shared.data.records import PoseRecord
from wardpose.shared.data.source import DataSource, WardSource, open_source
from wardpose.shared.errors import DataError, WardposeError
from wardpose.shared.pose.estimators import Estimator
from wardpose.shared.skeleton import Skeleton

_KINDS = {
    "picture": ("unreadable", "pictures cannot be read"),
    "empty": ("empty", "pictures are of one colour all over"),
    "outside": ("out of frame", "records lie outside their picture"),
    "record": ("bad records", "records cannot be used"),
}
_SKIPPED = "bad records skipped"  # the note of what is listed one by one
_FLAT = 4  # levels of grey: a picture whose darkest and brightest pixel differ by less shows nothing


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What was found in a data set.

    Attributes:
        name: of the data set; empty when it could not be opened.
        records: that can be used.
        pictures: that they lie in.
        patients: whom they belong to.
        findings: in the order of the checks.

    """

    name: str
    records: int
    pictures: int
    patients: int
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """What it comes to, on one line."""
        if not self.name:
            return "the data cannot be opened"
        found = f"{self.name}: {self.records} records in {self.pictures} pictures of {self.patients} patients"
        return f"{found}, {'nothing is wrong' if self.ok else 'something is wrong'}"

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return all(found.status != "failure" for found in self.findings)


@dataclass(frozen=True)
class _Picture:
    """One picture and the records in it.

    Attributes:
        name: of the file, with the frame's number in a video.
        rows: of its records.
        digest: of its pixels; empty where it cannot be read.
        flat: whether it shows nothing.
        error: why it cannot be read.

    """

    name: str
    rows: tuple[int, ...]
    digest: str = ""
    flat: bool = False
    error: str = ""


def check_data(
    source: DataSource,
    *,
    skeleton: Skeleton,
    estimator: Estimator | None = None,
    sheet: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DataReport:
    """Open a source and look at every record and picture of it.

    Args:
        source: what YAML would name.
        skeleton: joints that will be trained.
        estimator: a model that is asked which side is left, too.
        sheet: picture to write, with the joints of doubtful records first and of others drawn.
        progress: called with how many pictures are read, and of how many.

    """
    if not isinstance(source, WardSource):
        source = source.model_copy(update={"on_bad_record": "skip"})
    try:
        dataset = listed(open_source(source, skeleton=skeleton))
    except WardposeError as error:
        return DataReport(
            name="", records=0, pictures=0, patients=0, findings=(finding("source", "failure", str(error)),)
        )
    pictures = list(_pictures(dataset, progress))
    records = [dataset.record(index) for index in range(len(dataset))]
    sides = swapped_sides(dataset, estimator)
    swapped = _swapped(records, sides, estimator)
    if sheet is not None:
        marked = dict.fromkeys(sides, "sides?")
        marked |= {row: "empty" for picture in pictures if picture.flat for row in picture.rows}
        unread = {row for picture in pictures if picture.error for row in picture.rows}
        write_sheet(sheet, dataset, marked, unread)
    findings = [
        *_bad_records(dataset, pictures),
        *_duplicates(records, pictures),
        *_patients(dataset, records),
        *_several_people(dataset, records, pictures),
        *_joints(records, skeleton),
        swapped,
        *(finding("note", "warning", note) for note in dataset.notes if _SKIPPED not in note),
    ]
    return DataReport(
        name=dataset.name,
        records=len(records),
        pictures=len(pictures),
        patients=len({record.patient_id for record in records}),
        findings=tuple(findings),
    )


def _pictures(dataset: ListDataset, progress: Callable[[int, int], None] | None) -> Iterator[_Picture]:
    rows: dict[str, list[int]] = defaultdict(list)
    for index in range(len(dataset)):
        rows[dataset.source(index).fingerprint()].append(index)
    for done, mine in enumerate(rows.values(), start=1):
        frame_source = dataset.source(mine[0])
        name = frame_source.name if isinstance(frame_source, ImageFile) else dataset.record(mine[0]).record_id
        try:
            frame = dataset.frame(mine[0])
            digest = hashlib.sha256(f"{frame.shape}".encode() + frame.tobytes()).hexdigest()
            yield _Picture(name, tuple(mine), digest, flat=int(np.ptp(frame)) < _FLAT)
        except DataError as error:
            yield _Picture(name, tuple(mine), error=str(error))
        if progress is not None:
            progress(done, len(rows))


def _bad_records(dataset: ListDataset, pictures: list[_Picture]) -> Iterator[Finding]:
    bad = {kind: [f"{skip.record}: {skip.reason}" for skip in dataset.skipped if skip.kind == kind] for kind in _KINDS}
    bad["picture"] += [picture.error for picture in pictures if picture.error]
    bad["empty"] = [picture.name for picture in pictures if picture.flat]
    for kind, (name, text) in _KINDS.items():
        yield finding(name, "failure" if bad[kind] else "ok", f"{len(bad[kind])} {text}", bad[kind])


def _duplicates(records: list[PoseRecord], pictures: list[_Picture]) -> Iterator[Finding]:
    """Find one picture, or one person, under several names: as different patients they are two privacy units."""
    same: dict[str, list[_Picture]] = defaultdict(list)
    for picture in pictures:
        if picture.digest and not picture.flat:
            same[picture.digest].append(picture)
    repeated = [" = ".join(picture.name for picture in group) for group in same.values() if len(group) > 1]
    split = [
        group
        for group in same.values()
        if len(group) > 1 and len({frozenset(_owners(records, picture)) for picture in group}) > 1
    ]
    yield finding(
        "duplicates",
        "failure" if split else "warning" if repeated else "ok",
        f"{len(repeated)} pictures are there several times, {len(split)} of them for different patients",
        repeated,
    )
    people: dict[tuple[int, bytes, bytes], list[str]] = defaultdict(list)
    for place, picture in enumerate(pictures):
        for row in picture.rows:
            record = records[row]
            people[place, record.joints.tobytes(), record.visibility.tobytes()].append(record.record_id)
    twice = [" = ".join(ids) for ids in people.values() if len(ids) > 1]
    yield finding("repeated", "failure" if twice else "ok", f"{len(twice)} people are annotated several times", twice)


def _owners(records: list[PoseRecord], picture: _Picture) -> set[str]:
    return {records[row].patient_id for row in picture.rows}


def _patients(dataset: ListDataset, records: list[PoseRecord]) -> Iterator[Finding]:
    counts = Counter(record.patient_id for record in records)
    most, count = counts.most_common(1)[0]
    text = f"{len(counts)} patients with {min(counts.values())} to {count} records, median {median(counts.values()):g}"
    if dataset.patients_named:
        yield finding("patients", "ok", f"{text}; most has {most}")
        return
    without = [record.record_id for record in records if record.patient_id == record.record_id]
    if len(without) < len(records):
        yield finding("patients", "failure", f"{text}; {len(without)} records name no patient, others do", without)
    else:
        yield finding(
            "patients", "warning", "no patient is named: a person in several records is several privacy units"
        )


def _several_people(dataset: ListDataset, records: list[PoseRecord], pictures: list[_Picture]) -> Iterator[Finding]:
    shared = [picture for picture in pictures if len(picture.rows) > 1]
    silent = [
        picture.name
        for picture in shared
        if dataset.patients_named
        and any(
            _owners(records, picture) - {records[row].patient_id, *records[row].also_patients} for row in picture.rows
        )
    ]
    text = f"{len(shared)} pictures show several annotated people"
    if silent:
        text += f"; in {len(silent)} of them a record does not name the other patients (also)"
    yield finding("several people", "warning" if silent else "ok", text, silent)


def _swapped(records: list[PoseRecord], sides: dict[int, str], estimator: Estimator | None) -> Finding:
    asked = "" if estimator is None else f", {estimator.name} was asked"
    return finding(
        "left and right",
        "warning" if sides else "ok",
        f"{len(sides)} records have left and right swapped, likely{asked}",
        [f"{records[index].record_id}: {why}" for index, why in sides.items()],
    )


def _joints(records: list[PoseRecord], skeleton: Skeleton) -> Iterator[Finding]:
    labelled = np.sum([record.visibility > 0 for record in records], axis=0)
    hidden = sum(int((record.visibility == 1).sum()) for record in records)
    never = [joint for joint, count in zip(skeleton.joints, labelled, strict=True) if count == 0]
    text = f"{labelled.sum() / len(records):.1f} of {len(skeleton)} joints of {skeleton.name} a record, {hidden} hidden"
    if never:
        text += f"; never labelled: {', '.join(never)}"
    yield finding("skeleton", "warning" if len(never) > len(skeleton) // 2 else "ok", text)
    boxes = Counter(record.box_source for record in records)
    yield finding("boxes", "ok", ", ".join(f"{count} {source}" for source, count in sorted(boxes.items())))
