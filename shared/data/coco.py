"""COCO person keypoints: native JSON with several persons an image, crowd boxes and masks as polygons or RLE.

Left out, and said in the notes: crowd boxes (`iscrowd`), people without a labelled joint, other categories.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as masks

from wardpose.shared.data.dataset import ImageFile, ListDataset
from wardpose.shared.data.patients import PatientRule
from wardpose.shared.data.reading import CheckImages, OnBadRecord, Reading, field, numbers, read_json, short
from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import COCO17, Skeleton


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
        person = _person_category(content)
        image_list = field(content, "images", list)
        known = {field(image, "id", int): image for image in image_list}
        entries = field(content, "annotations", list)
        if len(known) < len(image_list):
            numbers_seen = [image["id"] for image in image_list]
            twice = next(number for number in numbers_seen if numbers_seen.count(number) > 1)
            raise DataError(f"image id {twice} appears twice (allowed: each id once)")
    except DataError as error:
        raise DataError(f"{annotations}: {error}") from error
    crowds = without_joints = 0
    for position, entry in enumerate(entries):
        label = entry.get("id", f"#{position}") if isinstance(entry, dict) else f"#{position}"
        with reading.record(str(label)):
            if field(entry, "category_id", int) != person:
                continue
            if entry.get("iscrowd", 0):
                crowds += 1
                continue
            keypoints = numbers(field(entry, "keypoints", list), "keypoints", 3 * len(COCO17)).reshape(-1, 3)
            if not keypoints[:, 2].any():
                without_joints += 1
                continue
            number = field(entry, "image_id", int)
            if number not in known:
                raise DataError(f"image_id {number} is not among the images (allowed: {len(known)} ids)")
            image = known[number]
            name = field(image, "file_name", str)
            size = (field(image, "height", int), field(image, "width", int))
            reading.add(
                str(field(entry, "id", int)),
                joints=keypoints[:, :2].astype(np.float32),
                visibility=_visibility(keypoints[:, 2]),
                box=numbers(field(entry, "bbox", list), "bbox", 4).astype(np.float32),
                frame=ImageFile(root=images, name=name),
                frame_name=name,
                stated_size=size,
                area=_area(entry, size),
            )
    if crowds:
        reading.note(f"{annotations}: {crowds} crowd boxes left out")
    if without_joints:
        reading.note(f"{annotations}: {without_joints} people without labelled joints left out")
    return reading.finish()


def segmentation_mask(segmentation: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw a COCO segmentation (polygons, RLE or compressed RLE) as a mask (height, width) of 0 and 1.

    Raises:
        DataError: it is none of the three.

    """
    height, width = size
    try:
        if isinstance(segmentation, dict) and isinstance(segmentation["counts"], list):
            runs = masks.frPyObjects(segmentation, height, width)
        elif isinstance(segmentation, dict):
            runs = segmentation
        else:
            runs = masks.merge(masks.frPyObjects(segmentation, height, width))
        return np.asarray(masks.decode(runs), np.uint8)
    except Exception as error:  # pycocotools' C code raises whatever it likes
        raise DataError(f"segmentation is {short(segmentation)} (allowed: polygons or RLE): {error}") from error


def _area(entry: dict[str, Any], size: tuple[int, int]) -> float | None:
    if entry.get("area") is not None:
        return float(field(entry, "area", (int, float)))
    if entry.get("segmentation"):
        return float(segmentation_mask(entry["segmentation"], size).sum())
    return None


def _visibility(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    if not np.isin(values, (0, 1, 2)).all():
        raise DataError(f"keypoints have visibility {values[~np.isin(values, (0, 1, 2))][0]} (allowed: 0, 1, 2)")
    return values.astype(np.uint8)


def _person_category(content: Any) -> int:
    for category in field(content, "categories", list):
        if field(category, "name", str) == "person":
            joints = tuple(field(category, "keypoints", list))
            if joints != COCO17.joints:
                raise DataError(f"categories: person has keypoints {short(joints)} (allowed: COCO's 17, in order)")
            return int(field(category, "id", int))
    raise DataError("categories: no person (allowed: a category named person with 17 keypoints)")
