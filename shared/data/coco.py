"""COCO person keypoints: native JSON with several persons an image, and what annotation tools export in its form.

A category with COCO's 17 joints, in whatever order and whatever it is called, is a person; merged exports have several,
and Roboflow and CVAT add categories without joints. Ids are numbers or texts. Left out, and counted in the notes: crowd
boxes (`iscrowd`), people without a labelled joint, other categories, and annotations that repeat another one. Patients
are those of the patient rule, or else of `patient` (and `also`, a list) in an annotation or its `attributes`.
"""

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.data.coco_masks import segmentation_mask
from wardpose.shared.data.dataset import ImageFile, ListDataset
from wardpose.shared.data.fields import field, flag, identifier, keypoints, numbers, read_json, short, size, visibility
from wardpose.shared.data.patients import Owners, PatientRule
from wardpose.shared.data.picture_folder import PictureFolder
from wardpose.shared.data.reading import CheckImages, OnBadRecord, Reading
from wardpose.shared.data.tool_joints import joint_name
from wardpose.shared.errors import DataError
from wardpose.shared.patient_ids import PatientError, strip
from wardpose.shared.skeleton import COCO17, Skeleton

_Id = int | str


def read_coco(
    annotations: Path,
    *,
    images: Path,
    skeleton: Skeleton | None = None,
    patients: PatientRule | None = None,
    on_bad_record: OnBadRecord = "error",
    check_images: CheckImages = "header",
) -> ListDataset:
    """Read a keypoints JSON whose images lie in `images`. Record ids are the annotations' ids.

    The area is the annotation's, or the mask's where it gives none; boxes are x, y, width, height.

    Raises:
        DataError: a file is missing or malformed, joints are not COCO's 17, or a record is bad and `on_bad_record` is
            `error`.
        PatientError: it is not certain which records are of one patient.

    """
    reading = Reading(
        name=annotations.stem,
        file=annotations,
        source=COCO17,
        target=skeleton,
        patients=patients,
        on_bad_record=on_bad_record,
        check_images=check_images,
    )
    content = read_json(annotations)
    try:
        people = _People(content, reading, reading.folder(images))
        entries = field(content, "annotations", list)
    except DataError as error:
        raise DataError(f"{annotations}: {error}") from error
    for position, entry in enumerate(entries):
        label = entry.get("id", f"#{position}") if isinstance(entry, dict) else f"#{position}"
        with reading.record(str(label)):
            people.add(entry)
    people.finish()
    return reading.finish()


class _People:
    """The people of one file, and what of it was left out."""

    def __init__(self, content: Any, reading: Reading, images: PictureFolder) -> None:
        self._reading = reading
        self._folder = images
        self._orders, self._names = _categories(content)
        self._images: dict[_Id, Any] = {}
        for image in field(content, "images", list):
            number = identifier(image, "id")
            if number in self._images:
                raise DataError(f"image id {number} appears twice (allowed: each id once)")
            self._images[number] = image
        self._used: set[_Id] = set()
        self._seen: dict[tuple[str, bytes], Owners | None] = {}
        self._others: Counter[str] = Counter()
        self._crowds = self._without_joints = self._repeated = 0

    def add(self, entry: Any) -> None:
        """Keep an annotation, or count why not."""
        try:
            self._add(entry)
        except PatientError:
            raise
        except DataError:
            with contextlib.suppress(DataError):
                self._bystander(entry)
            raise

    def _add(self, entry: Any) -> None:
        category = identifier(entry, "category_id")
        if category not in self._orders:
            self._others[self._names.get(category, f"of id {category}")] += 1
            return
        if flag(entry, "iscrowd"):
            self._crowds += 1
            self._bystander(entry)
            return
        joints = self._joints(entry, self._orders[category])
        if joints is None:
            self._without_joints += 1
            self._bystander(entry)
            return
        number = identifier(entry, "image_id")
        if number not in self._images:
            raise DataError(f"image_id {number} is not among the images (allowed: {len(self._images)} ids)")
        image = self._images[number]
        name = field(image, "file_name", str)
        frame = self._folder.find(name)
        person = (frame.name, joints.tobytes())  # merged exports list a picture several times
        self._used.add(number)
        owners = _owners(entry)
        if person in self._seen:
            if owners != self._seen[person]:
                raise DataError(
                    f"it repeats an annotation of {frame.name}, but names other patients (allowed: the same)"
                )
            self._repeated += 1
            self._bystander(entry)
            return
        self._reading.add(
            str(identifier(entry, "id")),
            joints=joints[:, :2].astype(np.float32),
            visibility=visibility(joints[:, 2], "keypoints"),
            box=_box(entry),
            frame=frame,
            frame_name=name.replace("\\", "/"),
            stated_size=size(image),
            area=_area(entry, frame),
            owners=owners,
        )
        self._seen[person] = owners

    def _bystander(self, entry: Any) -> None:
        """Note a person who is in the picture although their joints are not used."""
        image = self._images.get(identifier(entry, "image_id"))
        if image is None or not isinstance(image.get("file_name"), str):
            return
        name, owners = image["file_name"], _owners(entry)
        frame = self._folder.find(name)
        self._reading.bystander(str(entry.get("id")), frame=frame, frame_name=name.replace("\\", "/"), owners=owners)

    def finish(self) -> None:
        """Say what was left out."""
        for number, image in self._images.items():
            if number not in self._used and isinstance(image.get("file_name"), str):
                self._folder.mention(image["file_name"])
        others = ", ".join(f"{name}: {count}" for name, count in sorted(self._others.items()))
        for count, what in (
            (self._crowds, "crowd boxes"),
            (self._without_joints, "people without labelled joints"),
            (self._repeated, "annotations that repeat another one of the same picture"),
            (self._others.total(), f"annotations of other categories ({others})"),
        ):
            if count:
                self._reading.note(f"{self._reading.file}: {count} {what} left out")

    @staticmethod
    def _joints(entry: Any, order: list[int]) -> NDArray[np.float64] | None:
        """Joints (17, 3) in COCO's order; `None` where none is labelled."""
        count = entry.get("num_keypoints")
        if not entry.get("keypoints") and ("keypoints" in entry or count is not None):
            if count not in (None, 0, "0"):
                raise DataError(f"num_keypoints is {short(count)}, but keypoints is empty (allowed: both or neither)")
            return None
        joints = keypoints(field(entry, "keypoints", list), "keypoints", len(COCO17))[order]
        return joints if joints[:, 2].any() else None


def _box(entry: dict[str, Any]) -> NDArray[np.float32] | None:
    """Return the box that was drawn; `None` where COCO Annotator writes zeros for people without one."""
    box = numbers(field(entry, "bbox", list), "bbox", 4).astype(np.float32)
    return box if box.any() else None


def _area(entry: dict[str, Any], frame: ImageFile) -> float | None:
    if entry.get("area"):
        return float(field(entry, "area", (int, float)))
    if entry.get("segmentation"):
        return float(segmentation_mask(entry["segmentation"], frame.size()).sum()) or None
    return None


def _owners(entry: dict[str, Any]) -> Owners | None:
    notes = entry.get("attributes")
    notes = {**notes, **entry} if isinstance(notes, dict) else entry
    patient, also = notes.get("patient"), notes.get("also") or []
    if patient is None or (isinstance(patient, str) and not strip(patient)):
        if also:
            raise DataError(f"also is {short(also)}, but patient is missing (allowed: both)")
        return None
    if not isinstance(patient, str | int) or isinstance(patient, bool):
        raise DataError(f"patient is {short(patient)} (allowed: a text)")
    if not isinstance(also, list) or not all(isinstance(other, str) for other in also):
        raise DataError(f"also is {short(also)} (allowed: a list of patients)")
    return Owners(str(patient), tuple(also))


def _categories(content: Any) -> tuple[dict[_Id, list[int]], dict[_Id, str]]:
    """For each category of people, where COCO's joints are in its list; and all categories' names."""
    orders: dict[_Id, list[int]] = {}
    names: dict[_Id, str] = {}
    refused = ""
    for category in field(content, "categories", list):
        number, name = identifier(category, "id"), field(category, "name", str)
        if number in names:
            raise DataError(f"category id {number} appears twice (allowed: each id once)")
        names[number] = name
        joints = category.get("keypoints") or []
        if not isinstance(joints, list):
            raise DataError(f'categories: "{name}" has keypoints {short(joints)} (allowed: a list of names)')
        given = [joint_name(joint) for joint in joints]
        if sorted(given) == sorted(COCO17.joints):
            orders[number] = [given.index(joint) for joint in COCO17.joints]
        elif given or name.strip().lower() == "person":
            refused = refused or f'"{name}" has keypoints {short(tuple(joints))}'
    if not orders:
        found = refused or "no person"
        raise DataError(f"categories: {found} (allowed: a category, as person, with COCO's 17 joints)")
    return orders, names
