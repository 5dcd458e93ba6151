"""MPII Human Pose: the JSON list that top-down code bases use, and the official `.mat` (`RELEASE`), told by content.

A person's box is the square of 200 `scale` pixels around `center`, moved down by 15 `scale` so that feet are inside
(the convention of the literature's MPII crops). The head size is 0.6 of the head box's diagonal, where there is one.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.data.dataset import ListDataset
from wardpose.shared.data.fields import field, numbers, read_json, short
from wardpose.shared.data.matlab import is_matlab, read_matlab
from wardpose.shared.data.patients import PatientRule
from wardpose.shared.data.reading import CheckImages, OnBadRecord, Reading
from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import MPII16, Skeleton

HEAD_OF_BOX = 0.6
"""Head size in parts of the head box's diagonal (the benchmark's own rule)."""

_PIXELS_OF_SCALE = 200.0
_DOWN = 15.0


def read_mpii(
    annotations: Path,
    *,
    images: Path,
    index_base: int = 1,
    skeleton: Skeleton | None = None,
    patients: PatientRule | None = None,
    on_bad_record: OnBadRecord = "error",
    check_images: CheckImages = "header",
) -> ListDataset:
    """Read MPII's JSON or the official MATLAB file.

    Record ids are the image's name without ending and the person's place in it, as `005808361:0`.

    Args:
        annotations: the file.
        images: folder of the images.
        index_base: number of the first pixel in the file, subtracted from joints and centres.
        skeleton: layout wanted; MPII's 16 joints when `None`.
        patients: where patient ids come from.
        on_bad_record: stop, or skip and list.
        check_images: headers only, or decode every frame.

    Raises:
        DataError: a file is missing or malformed, or a record is bad and `on_bad_record` is `error`.

    """
    reading = Reading(
        name=annotations.stem,
        file=annotations,
        source=MPII16,
        target=skeleton,
        patients=patients,
        on_bad_record=on_bad_record,
        check_images=check_images,
    )
    people = _People(reading, images, index_base)
    if is_matlab(annotations):
        _read_mat(annotations, reading, people)
    else:
        content = read_json(annotations)
        if not isinstance(content, list):
            raise DataError(f"{annotations}: holds a {type(content).__name__} (allowed: a list of people)")
        for position, entry in enumerate(content):
            name = entry.get("image", "") if isinstance(entry, dict) else ""
            with reading.record(f"#{position} {name}".rstrip()):
                _read_json_entry(entry, people)
    return reading.finish()


class _People:
    """Adds people, numbering those of one image."""

    def __init__(self, reading: Reading, images: Path, index_base: int) -> None:
        self._reading = reading
        self._images = images
        self._base = index_base
        self._people: dict[str, list[bytes]] = {}

    def add(
        self,
        name: str,
        *,
        joints: NDArray[np.float64],
        visibility: NDArray[np.uint8],
        centre: NDArray[np.float64],
        scale: float,
        head_size: float | None,
    ) -> None:
        """Add one person; the same joints twice in one image are a duplicate."""
        frame = self._reading.folder(self._images).find(name)
        people = self._people.setdefault(frame.name, [])
        number = len(people)
        person = joints.tobytes() + visibility.tobytes()
        if person in people and visibility.any():
            raise DataError(f"the same person is listed twice in {name} (allowed: once)")
        people.append(person)
        if not (np.isfinite(scale) and scale > 0):
            raise DataError(f"scale is {scale} (allowed: a finite number above 0)")
        side = _PIXELS_OF_SCALE * scale
        middle = centre - self._base + [0.0, _DOWN * scale]
        self._reading.add(
            f"{Path(frame.name).stem}:{number}",
            joints=(joints - self._base).astype(np.float32),
            visibility=visibility,
            box=np.concatenate([middle - side / 2, [side, side]]).astype(np.float32),
            box_may_stick_out=True,
            frame=frame,
            frame_name=name.replace("\\", "/"),
            head_size=head_size,
            view_key=f"{Path(frame.name).stem}:{centre.tolist()}:{scale}",  # numbers change when somebody is taken away
        )


def _read_json_entry(entry: Any, people: _People) -> None:
    points = field(entry, "joints", list)
    labelled = numbers(field(entry, "joints_vis", list), "joints_vis", len(MPII16))
    if len(points) == len(MPII16):  # a joint that is not labelled needs no place
        points = [point if mark else [0, 0] for point, mark in zip(points, labelled, strict=True)]
    joints = numbers(points, "joints", 2 * len(MPII16)).reshape(-1, 2)
    if not np.isin(labelled, (0, 1)).all():
        raise DataError(f"joints_vis holds {labelled[~np.isin(labelled, (0, 1))][0]} (allowed: 0, 1)")
    head_size = None
    if entry.get("head_size") is not None:
        head_size = float(field(entry, "head_size", (int, float))) or None
    elif entry.get("headbox") is not None:
        head_size = _head_size(numbers(entry["headbox"], "headbox", 4))
    people.add(
        field(entry, "image", str),
        joints=joints,
        visibility=np.where(labelled > 0, 2, 0).astype(np.uint8),
        centre=numbers(field(entry, "center", list), "center", 2),
        scale=float(field(entry, "scale", (int, float))),
        head_size=head_size,
    )


def _read_mat(path: Path, reading: Reading, people: _People) -> None:
    release = read_matlab(path, "RELEASE")
    for part in ("annolist", "img_train"):
        if not hasattr(release, part):
            raise DataError(f"{path}: RELEASE.{part} is missing (allowed: MPII's official .mat)")
    entries = _listed(release.annolist)
    train = np.atleast_1d(np.asarray(release.img_train)).astype(bool)
    if len(train) != len(entries):
        raise DataError(f"{path}: img_train has {len(train)} entries (allowed: {len(entries)}, one an image)")
    unlabelled = without_joints = 0
    for position, (entry, is_train) in enumerate(zip(entries, train, strict=True)):
        if not is_train:
            unlabelled += 1
            continue
        name: Any = getattr(getattr(entry, "image", None), "name", None)
        if not isinstance(name, str) or not name:
            with reading.record(f"annolist({position + 1})"):
                raise DataError("image.name is missing (allowed: a file name)")
            continue
        for number, rectangle in enumerate(_listed(getattr(entry, "annorect", None))):
            if not _points(rectangle):
                without_joints += 1
                continue
            with reading.record(f"annolist({position + 1}).annorect({number + 1}) {name}"):
                _read_rectangle(rectangle, name, people)
    if unlabelled:
        reading.note(f"{path}: {unlabelled} test images without joints left out")
    if without_joints:
        reading.note(f"{path}: {without_joints} people without labelled joints left out")


def _read_rectangle(rectangle: Any, name: str, people: _People) -> None:
    joints = np.zeros((len(MPII16), 2))
    visibility = np.zeros(len(MPII16), np.uint8)
    for point in _points(rectangle):
        joint = int(_number(point, "id"))
        if not 0 <= joint < len(MPII16):
            raise DataError(f"annopoints.point.id is {joint} (allowed: 0 to 15)")
        if visibility[joint]:
            raise DataError(f"annopoints.point.id {joint} appears twice (allowed: once)")
        joints[joint] = _number(point, "x"), _number(point, "y")
        visibility[joint] = 1 if _is_hidden(point) else 2
    head = None
    corners = ("x1", "y1", "x2", "y2")
    if all(hasattr(rectangle, corner) and np.size(getattr(rectangle, corner)) == 1 for corner in corners):
        head = np.array([_number(rectangle, corner) for corner in corners])
    centre = getattr(rectangle, "objpos", None)
    people.add(
        name,
        joints=joints,
        visibility=visibility,
        centre=np.array([_number(centre, "x"), _number(centre, "y")]),
        scale=_number(rectangle, "scale"),
        head_size=None if head is None else _head_size(head),
    )


def _head_size(corners: NDArray[np.float64]) -> float:
    return HEAD_OF_BOX * float(np.hypot(corners[2] - corners[0], corners[3] - corners[1]))


def _is_hidden(point: Any) -> bool:
    """Hidden joints say 0, as a number or a text; the head's two points carry no mark at all and can be seen."""
    mark: Any = getattr(point, "is_visible", None)
    if mark is None or np.size(mark) == 0 or not str(mark).strip():
        return False
    visible = _number(point, "is_visible")
    if visible not in (0, 1):
        raise DataError(f"is_visible is {visible} (allowed: 0, 1)")
    return visible == 0


def _points(rectangle: Any) -> list[Any]:
    return _listed(getattr(getattr(rectangle, "annopoints", None), "point", None))


def _number(struct: Any, name: str) -> float:
    value: Any = getattr(struct, name, None)
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is {short(value)} (allowed: a number)") from error
    if not np.isfinite(number):
        raise DataError(f"{name} is {number} (allowed: a finite number)")
    return number


def _listed(value: Any) -> list[Any]:
    """List a struct array that `squeeze_me` may have turned into one struct or an empty array."""
    if value is None:
        return []
    return list(value.ravel()) if isinstance(value, np.ndarray) else [value]
