"""CVAT's own XML ("CVAT for images 1.1" and "CVAT for video 1.1") with skeletons, as CVAT exports it.

A person is a `skeleton` with one `points` a joint, named by its label: `outside="1"` is not labelled, `occluded="1"`
labelled and hidden. In a video's file people are `track`s: CVAT writes every frame of one, and marks it where it is
outside. Patients are those of the patient rule, or else an attribute `patient` of the skeleton (and `also`, with
semicolons between).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from wardpose.shared.data.dataset import FrameSource, ListDataset
from wardpose.shared.data.fields import short, visibility
from wardpose.shared.data.patients import Owners, PatientRule
from wardpose.shared.data.reading import CheckImages, OnBadRecord, Reading
from wardpose.shared.data.tool_joints import in_order, skeleton_of
from wardpose.shared.data.video import VideoFrame
from wardpose.shared.data.video_file import Video
from wardpose.shared.errors import DataError
from wardpose.shared.patient_ids import strip
from wardpose.shared.skeleton import Skeleton


@dataclass(frozen=True)
class _Person:
    record: str
    image: str | int
    size: tuple[int, int] | None
    element: ElementTree.Element


def read_cvat(
    annotations: Path,
    *,
    images: Path,
    skeleton: Skeleton | None = None,
    patients: PatientRule | None = None,
    on_bad_record: OnBadRecord = "error",
    check_images: CheckImages = "header",
    index_folder: Path | None = None,
) -> ListDataset:
    """Read an XML export whose pictures lie in `images`, or whose video is `images`. Record ids are `image:person`.

    Boxes are computed from the joints: CVAT's skeletons have none.

    Raises:
        DataError: a file is missing or malformed, joints fit no layout, or a record is bad and `on_bad_record` is
            `error`.

    """
    root = _parsed(annotations)
    people = list(_people(root))
    names = {label for person in people for label, *_ in _points(person.element)}
    source = skeleton_of(names, file=annotations, none="holds no skeleton (allowed: people as skeletons)")
    reading = Reading(
        name=annotations.stem,
        file=annotations,
        source=source,
        target=skeleton,
        patients=patients,
        on_bad_record=on_bad_record,
        check_images=check_images,
    )
    video = None if images.is_dir() else Video(images, index_folder=index_folder)
    empty = 0
    for person in people:
        with reading.record(person.record):
            empty += not _add(reading, person, images, video, source)
    if empty:
        reading.note(f"{annotations}: {empty} skeletons without a labelled joint left out")
    others = _others(root)
    if others:
        listed = ", ".join(f"{kind}: {count}" for kind, count in sorted(others.items()))
        reading.note(f"{annotations}: {others.total()} shapes that are no skeletons left out ({listed})")
    return reading.finish()


def _parsed(path: Path) -> ElementTree.Element:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if b"<!ENTITY" in content or b"<!DOCTYPE" in content:
        raise DataError(f"{path}: declares entities (allowed: XML as CVAT exports it, without)")
    try:
        root = ElementTree.fromstring(content)  # noqa: S314 (no entities, see above)
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{path}: is no XML ({error})") from error
    if root.tag != "annotations":
        raise DataError(f"{path}: begins with <{root.tag}> (allowed: <annotations>, CVAT for images or for video 1.1)")
    return root


def _people(root: ElementTree.Element) -> Iterator[_Person]:
    for image in root.iter("image"):
        name = image.get("name", "").replace("\\", "/")
        for number, element in enumerate(image.findall("skeleton")):
            yield _Person(f"{name}:{number}", name, _size(image), element)
    for track in root.iter("track"):
        for element in track.findall("skeleton"):
            if element.get("outside") == "1":
                continue
            frame = element.get("frame", "")
            if not frame.isdecimal():
                raise DataError(f'track {track.get("id")}: frame is "{frame}" (allowed: a number from 0)')
            yield _Person(f"{frame}:{track.get('id', '0')}", int(frame), None, element)


def _add(reading: Reading, person: _Person, images: Path, video: Video | None, source: Skeleton) -> bool:
    """Keep a person; `False` where no joint of theirs is labelled."""
    found: dict[str, tuple[float, float, int]] = {}
    for label, text, outside, occluded in _points(person.element):
        if outside:
            continue
        try:
            x, y = (float(part) for part in text.split(","))
        except ValueError as error:
            raise DataError(f'points of {label} are "{short(text)}" (allowed: x,y)') from error
        if label in found:
            raise DataError(f"joint {label} is there twice (allowed: once a skeleton)")
        found[label] = (x, y, 1 if occluded else 2)
    joints = in_order(found, source)
    owners = _owners(person.element)
    frame, name = _frame(reading, person, images, video)
    if not found:
        reading.bystander(person.record, frame=frame, frame_name=name, owners=owners)
        return False
    reading.add(
        person.record,
        joints=joints[:, :2].astype(np.float32),
        visibility=visibility(joints[:, 2], "points"),
        box=None,
        frame=frame,
        frame_name=name,
        stated_size=person.size,
        owners=owners,
    )
    return True


def _frame(reading: Reading, person: _Person, images: Path, video: Video | None) -> tuple[FrameSource, str]:
    if isinstance(person.image, int) or video is not None:
        number = person.image
        if isinstance(number, str):
            digits = Path(number).stem.removeprefix("frame_")
            if not digits.isdecimal():
                raise DataError(f'image is "{number}" (allowed: frame_000012, where the images are a video)')
            number = int(digits)
        if video is None:
            raise DataError(f"{images}: is a folder, the file is of a video's frames (allowed: the video)")
        video.check(number)
        return VideoFrame(video, number), person.record
    frame = reading.folder(images).find(person.image)
    return frame, person.image


def _points(element: ElementTree.Element) -> Iterator[tuple[str, str, bool, bool]]:
    """Label, text, outside and occluded of each joint."""
    for point in element.findall("points"):
        yield (
            point.get("label", ""),
            point.get("points", ""),
            point.get("outside") == "1",
            point.get("occluded") == "1",
        )


def _owners(element: ElementTree.Element) -> Owners | None:
    notes = {entry.get("name", "").lower(): (entry.text or "") for entry in element.findall("attribute")}
    patient = strip(notes.get("patient", ""))
    also = tuple(part for part in notes.get("also", "").split(";") if strip(part))
    if not patient:
        if also:
            raise DataError(f"also is {short(also)}, but patient is missing (allowed: both)")
        return None
    return Owners(patient, also)


def _size(image: ElementTree.Element) -> tuple[int, int] | None:
    width, height = image.get("width", ""), image.get("height", "")
    return (int(height), int(width)) if width.isdecimal() and height.isdecimal() else None


def _others(root: ElementTree.Element) -> Counter[str]:
    """Count the shapes that are no skeletons."""
    kinds = ("box", "polygon", "polyline", "points", "ellipse", "mask", "cuboid", "tag")
    return Counter(shape.tag for image in root.iter("image") for shape in image if shape.tag in kinds)
