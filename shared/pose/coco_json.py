"""COCO keypoint annotations and results as evaluation needs them, whoever wrote them.

pycocotools takes what it is given: annotation ids of 0 or that repeat make it lose matches, coordinates that are not
numbers count as hits (`nan < threshold` is false), a category or an image written another way silently costs
everything. So both lists are read here first: what can only mean one thing is understood, the rest is refused by name.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.data.fields import flag
from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import Skeleton

MISSED = 1e7
"""Pixels, where a predicted joint without finite coordinates is put: it is wrong, whatever the threshold."""

BOX_SHARE = 0.53
"""Area of a person over that of its box, where no area is given (COCO's convention without masks)."""

Annotation = dict[str, Any]


def people(ground_truth: Mapping[str, Any], skeleton: Skeleton) -> tuple[list[Annotation], dict[str, int]]:
    """Read the annotations, numbered from 1, and the images that they are of, by every name that results may use.

    `num_keypoints` is counted. Where missing or null, `iscrowd` is 0, `area` the box's times 0.53, `bbox` around the
    joints.

    Raises:
        DataError: names the annotation, the key, the value and what is allowed.

    """
    if not isinstance(ground_truth, Mapping):
        raise DataError(f"annotations: {_shown(ground_truth)} (allowed: an object with annotations and images)")
    listed = _listed(ground_truth.get("annotations"), "annotations")
    images = _images(_listed(ground_truth.get("images", []), "images"), listed)
    found = []
    for index, entry in enumerate(listed):
        where = f"annotations: entry {index}"
        triples = np.zeros((len(skeleton), 3)) if _is_empty(entry) else _triples(entry, skeleton, where)
        labelled = triples[:, 2] > 0
        if not np.isfinite(triples[labelled]).all():
            raise DataError(f"{where}: keypoints has a labelled joint that is not finite (allowed: pixels)")
        triples[~labelled] = 0.0
        box = _box(entry, triples[labelled, :2], where)
        found.append(
            {
                "id": index + 1,
                "image_id": images[_name(entry.get("image_id"), f"{where}: image_id")],
                "category_id": _name(entry.get("category_id", 1), f"{where}: category_id"),
                "keypoints": triples.ravel().tolist(),
                "num_keypoints": int(labelled.sum()),
                "bbox": box,
                "area": BOX_SHARE * box[2] * box[3]
                if entry.get("area") is None
                else _number(entry["area"], f"{where}: area", least=0.0),
                "iscrowd": _crowd(entry, where),
            }
        )
    return found, images


def detections(
    results: Sequence[Mapping[str, Any]], truth: Sequence[Annotation], images: Mapping[str, int], skeleton: Skeleton
) -> list[Annotation]:
    """Read a results list, numbered from 1, against what `people` returned.

    Keypoints may be flat or triples. Joints that are not finite are put far away. Without any `score` all detections
    are equally sure. Where the truth has one category, results that name none, or one other, mean it; detections of
    other categories are left out.

    Raises:
        DataError: names the entry, the key, the value and what is allowed.

    """
    listed = _listed(results, "results")
    scored = sum("score" in entry for entry in listed)
    if scored not in (0, len(listed)):
        missing = next(index for index, entry in enumerate(listed) if "score" not in entry)
        raise DataError(f"results: entry {missing}: score is missing (allowed: a number in every entry, or in none)")
    ours = {entry["category_id"] for entry in truth}
    named = [
        None
        if entry.get("category_id") is None
        else _name(entry["category_id"], f"results: entry {index}: category_id")
        for index, entry in enumerate(listed)
    ]
    alike = len(ours) == 1 and len(set(named) - {None}) <= 1
    with_boxes = all("bbox" in entry for entry in listed)
    found: list[Annotation] = []
    for index, entry in enumerate(listed):
        where = f"results: entry {index}"
        category = next(iter(ours)) if alike or (len(ours) == 1 and named[index] is None) else named[index]
        if category is None:
            raise DataError(f"{where}: category_id is missing (allowed: {', '.join(sorted(ours))})")
        if category not in ours:
            continue
        name = _name(entry.get("image_id"), f"{where}: image_id")
        if name not in images:
            raise DataError(f"{where}: image_id {_shown(entry.get('image_id'))} is no image of the annotations")
        triples = _triples(entry, skeleton, where)
        finite = np.isfinite(triples[:, :2]).all(axis=1) & (np.abs(triples[:, :2]) < MISSED).all(axis=1)
        seen = triples[finite, :2]
        triples[~finite] = MISSED
        box = _box(entry if with_boxes else {}, seen, where)
        found.append(
            {
                "id": len(found) + 1,
                "image_id": images[name],
                "category_id": category,
                "keypoints": triples.ravel().tolist(),
                "score": _number(entry.get("score", 1.0), f"{where}: score"),
                "bbox": box,
                "area": box[2] * box[3],
            }
        )
    return found


def _is_empty(entry: Mapping[str, Any]) -> bool:
    """Tell whether an annotation says that it has no joint, as those of tracks and boxes do."""
    return not entry.get("num_keypoints") and "keypoints" in entry and entry["keypoints"] in (None, [])


def _crowd(entry: Mapping[str, Any], where: str) -> int:
    try:
        return int(flag(dict(entry), "iscrowd"))
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _listed(value: object, what: str) -> list[Mapping[str, Any]]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        raise DataError(f"{what}: {_shown(value)} (allowed: a list of objects)")
    for index, entry in enumerate(value):
        if not isinstance(entry, Mapping):
            raise DataError(f"{what}: entry {index}: {_shown(entry)} (allowed: an object)")
    return list(value)


def _images(listed: Sequence[Mapping[str, Any]], annotations: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Give images numbers from 1, by id and by the stem of their file, which is what some tools write as an id."""
    names = [_name(entry.get("id"), f"images: entry {index}: id") for index, entry in enumerate(listed)]
    names += [_name(e.get("image_id"), f"annotations: entry {index}: image_id") for index, e in enumerate(annotations)]
    images = {name: number for number, name in enumerate(dict.fromkeys(names), start=1)}
    stems: dict[str, set[int]] = {}
    for entry in listed:
        if isinstance(entry.get("file_name"), str):
            stem = PurePosixPath(entry["file_name"].replace("\\", "/")).stem
            stems.setdefault(stem, set()).add(images[_name(entry["id"], "id")])
    return {**{stem: min(numbers) for stem, numbers in stems.items() if len(numbers) == 1}, **images}


def _name(value: object, where: str) -> str:
    """Return 7, "7" and 7.0 as the same name."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise DataError(f"{where} is {_shown(value)} (allowed: a whole number or a name)")
    return str(value)


def _triples(entry: Mapping[str, Any], skeleton: Skeleton, where: str) -> NDArray[np.float64]:
    try:
        numbers = np.asarray(entry.get("keypoints"), dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        numbers = np.empty(0)
    if numbers.size != 3 * len(skeleton) or numbers.ndim not in (1, 2) or (numbers.ndim == 2 and numbers.shape[1] != 3):
        raise DataError(
            f"{where}: keypoints is {_shown(entry.get('keypoints'))} (allowed: {3 * len(skeleton)} numbers: x, y and "
            f"visibility or score of the {len(skeleton)} joints of {skeleton.name})"
        )
    return numbers.reshape(-1, 3).copy()


def _box(entry: Mapping[str, Any], points: NDArray[np.float64], where: str) -> list[float]:
    """Return the entry's own box, else the one around its joints."""
    value = entry.get("bbox")
    if value is not None and value != []:
        if isinstance(value, str | Mapping) or not isinstance(value, Sequence) or len(value) != 4:
            raise DataError(f"{where}: bbox is {_shown(value)} (allowed: x, y, width, height)")
        return [_number(number, f"{where}: bbox") for number in value]
    if not len(points):
        return [0.0, 0.0, 0.0, 0.0]
    low, high = points.min(axis=0), points.max(axis=0)
    return [float(low[0]), float(low[1]), float(high[0] - low[0]), float(high[1] - low[1])]


def _number(value: object, where: str, least: float = -math.inf) -> float:
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)  # type: ignore[arg-type]  # tried
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number < least:
        allowed = "a finite number" if least == -math.inf else f"a finite number, at least {least:g}"
        raise DataError(f"{where} is {_shown(value)} (allowed: {allowed})")
    return number


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
