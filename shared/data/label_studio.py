"""Label Studio's JSON export, with keypoints, as it really is.

A task has `data` (the picture's address), `annotations` (each with `result`, a list of regions) and perhaps
`predictions`. A joint is a region of type `keypointlabels`: x and y in **percent** of the picture, whose size stands
beside. A person is a region of type `rectanglelabels`; joints whose `parentID` is its id are theirs, and where a task
has no rectangle all joints are of one person. Addresses are `/data/local-files/?d=ward/photo.jpg`, or
`/data/upload/7/1a2b3c4d-photo.jpg`, where the letters before the name are Label Studio's. Labelled is visible: Label
Studio has no mark for hidden joints, but for the word `hidden` in a region's `meta.text`. Patients: the patient rule,
or `data.patient`.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from wardpose.shared.data.dataset import ImageFile, ListDataset
from wardpose.shared.data.fields import field as value_of
from wardpose.shared.data.fields import read_json, short, visibility
from wardpose.shared.data.patients import Owners, PatientRule
from wardpose.shared.data.picture_folder import PictureFolder
from wardpose.shared.data.reading import CheckImages, OnBadRecord, Reading
from wardpose.shared.data.tool_joints import in_order, joint_name, skeleton_of
from wardpose.shared.errors import DataError
from wardpose.shared.patient_ids import strip
from wardpose.shared.skeleton import Skeleton


@dataclass
class _Person:
    joints: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    box: tuple[float, float, float, float] | None = None


def read_label_studio(
    annotations: Path,
    *,
    images: Path,
    skeleton: Skeleton | None = None,
    patients: PatientRule | None = None,
    on_bad_record: OnBadRecord = "error",
    check_images: CheckImages = "header",
) -> ListDataset:
    """Read a JSON export whose pictures lie in `images`. Record ids are `task:person`.

    The last annotation of a task counts that was not cancelled; predictions alone are no labels.

    Raises:
        DataError: a file is missing or malformed, joints fit no layout, or a record is bad and `on_bad_record` is
            `error`.

    """
    tasks = read_json(annotations)
    if not isinstance(tasks, list) or not all(_is_task(task) for task in tasks):
        raise DataError(f"{annotations}: {short(tasks)} (allowed: a list of tasks with data, Label Studio's JSON)")
    labels = {
        label
        for task in tasks
        for region in _regions(task)
        if region.get("type") == "keypointlabels"
        for label in _labels(region)
    }
    source = skeleton_of(labels, file=annotations, none="holds no keypoints in annotations (allowed: labelled tasks)")
    reading = Reading(
        name=annotations.stem,
        file=annotations,
        source=source,
        target=skeleton,
        patients=patients,
        on_bad_record=on_bad_record,
        check_images=check_images,
    )
    folder = reading.folder(images)
    unlabelled = 0
    for position, task in enumerate(tasks):
        number = task.get("id", position)
        people: list[_Person] = []
        with reading.record(f"task {number}"):
            people = _people(task)
            unlabelled += not people
        for place, person in enumerate(people):
            with reading.record(f"task {number}"):
                _add(reading, f"{number}:{place}", person, _picture(task, folder), task, source)
    if unlabelled:
        reading.note(f"{annotations}: {unlabelled} tasks without labelled people left out")
    return reading.finish()


def _is_task(task: Any) -> bool:
    return isinstance(task, dict) and isinstance(task.get("data"), dict)


def _regions(task: dict[str, Any]) -> list[dict[str, Any]]:
    given = task.get("annotations") or task.get("completions") or []
    kept = [entry for entry in given if isinstance(entry, dict) and not entry.get("was_cancelled")]
    result = kept[-1].get("result") if kept else []
    return [region for region in result or [] if isinstance(region, dict)]


def _people(task: dict[str, Any]) -> list[_Person]:
    regions = _regions(task)
    people: dict[str, _Person] = defaultdict(_Person)
    boxes = [region for region in regions if region.get("type") == "rectanglelabels"]
    for region in boxes:
        x, y, wide, high = _percent(region, ("x", "y", "width", "height"))
        people[str(region.get("id"))].box = (x, y, wide, high)
    alone = str(boxes[0].get("id")) if len(boxes) == 1 else ""
    for region in regions:
        if region.get("type") != "keypointlabels":
            continue
        owner = str(region.get("parentID") or region.get("parent_id") or alone)
        if owner not in people and boxes:
            raise DataError(f"keypoint {short(region.get('id'))} is of no rectangle (allowed: parentID of one)")
        x, y = _percent(region, ("x", "y"))
        hidden = "hidden" in str((region.get("meta") or {}).get("text", "")).lower()
        for label in _labels(region):
            if label in people[owner].joints:
                raise DataError(f"joint {label} is there twice (allowed: once a person; give each a rectangle)")
            people[owner].joints[label] = (x, y, 1 if hidden else 2)
    return [person for person in people.values() if person.joints]


def _add(
    reading: Reading, record: str, person: _Person, frame: ImageFile, task: dict[str, Any], source: Skeleton
) -> None:
    joints = in_order(person.joints, source)
    sizes = [(region.get("original_height"), region.get("original_width")) for region in _regions(task)]
    height, width = sizes[0] if sizes else (None, None)
    reading.add(
        record,
        joints=joints[:, :2].astype(np.float32),
        visibility=visibility(joints[:, 2], "keypoints"),
        box=None if person.box is None else np.array(person.box, np.float32),
        frame=frame,
        frame_name=frame.name,
        stated_size=(height, width) if isinstance(height, int) and isinstance(width, int) else None,
        owners=_owners(task["data"]),
    )


def _labels(region: dict[str, Any]) -> list[str]:
    value = region.get("value")
    labels = value.get("keypointlabels") if isinstance(value, dict) else None
    return [joint_name(label) for label in labels or []]


def _percent(region: dict[str, Any], keys: tuple[str, ...]) -> list[float]:
    """Numbers of a region in pixels."""
    value = value_of(region, "value", dict)
    if region.get("image_rotation") not in (None, 0):
        raise DataError(f"image_rotation is {short(region['image_rotation'])} (allowed: 0, pictures labelled upright)")
    if value.get("rotation") not in (None, 0, 0.0):
        raise DataError(f"rectangle is turned by {short(value['rotation'])} (allowed: 0)")
    width = float(value_of(region, "original_width", (int, float)))
    height = float(value_of(region, "original_height", (int, float)))
    sides = {"x": width, "width": width, "y": height, "height": height}
    return [float(value_of(value, key, (int, float))) / 100 * sides[key] for key in keys]


def _picture(task: dict[str, Any], folder: PictureFolder) -> ImageFile:
    """Find the picture of a task: by its address, and without the letters that an upload puts before the name."""
    addresses = [value for key, value in task["data"].items() if isinstance(value, str) and key != "patient"]
    if not addresses:
        raise DataError("data has no address of a picture (allowed: one)")
    address = urlsplit(addresses[0])
    named = parse_qs(address.query).get("d", [""])[0] or unquote(address.path)
    named = named.replace("\\", "/").lstrip("/")
    upload = re.fullmatch(r"(?:.*/)?data/upload/(?:\d+/)?[0-9a-f]{8}-(.+)", f"/{named}")
    names = [named, Path(named).name] if upload is None else [upload.group(1)]
    error: DataError | None = None
    for name in dict.fromkeys(names):
        try:
            return folder.find(name)
        except DataError as found:
            error = error or found
    raise error or DataError(f"{named}: is missing")


def _owners(data: dict[str, Any]) -> Owners | None:
    patient = data.get("patient")
    if patient is None or not strip(str(patient)):
        return None
    also = data.get("also") or []
    if not isinstance(also, list):
        also = str(also).split(";")
    return Owners(str(patient), tuple(str(other) for other in also if strip(str(other))))
