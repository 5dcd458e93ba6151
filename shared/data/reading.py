"""The border every reader shares: a record is checked here once, and is an error or a listed skip when it is bad."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.data.dataset import FrameSource, ListDataset, Skipped
from wardpose.shared.data.patients import Owners, PatientLookup, PatientRule
from wardpose.shared.data.records import PoseRecord
from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import Skeleton, convert

OnBadRecord = Literal["error", "skip"]
"""What to do with a record that cannot be used: stop with a `DataError`, or leave it out, count and list it."""

CheckImages = Literal["header", "decode"]
"""Whether opening a source reads image headers only (fast), or decodes every frame once (finds truncated files)."""

BOX_TOLERANCE = 2.0
"""Pixels by which a box may stick out of its frame (rounding); it is clipped."""

AREA_OF_BOX = 0.53
"""A person's area in parts of the box where there is no mask (COCO's mean)."""

_NOTED_SKIPS = 5


class Reading:
    """Gather the records of one source.

    Attributes:
        name: of the data set to be.
        file: the annotation file, named in every error.
        source: layout of the file's joints.
        target: layout of the data set to be.

    """

    def __init__(
        self,
        *,
        name: str,
        file: Path,
        source: Skeleton,
        target: Skeleton | None,
        patients: PatientRule | None,
        on_bad_record: OnBadRecord,
        check_images: CheckImages = "header",
    ) -> None:
        self.name = name
        self.file = file
        self.source = source
        self.target = target or source
        self._lookup = PatientLookup(patients)
        self._on_bad_record = on_bad_record
        self._check_images = check_images
        self._records: list[PoseRecord] = []
        self._frames: list[FrameSource] = []
        self._ids: set[str] = set()
        self._skipped: list[Skipped] = []
        self._notes: list[str] = []
        self._outside = 0
        self._unmapped = 0
        self._own_patients = not self._lookup.known

    def note(self, sentence: str) -> None:
        """Add a sentence that the user should read."""
        self._notes.append(sentence)

    @contextmanager
    def record(self, label: str) -> Iterator[None]:
        """Guard the reading of one record: a `DataError` inside names file and record, or becomes a skip."""
        try:
            yield
        except DataError as error:
            if self._on_bad_record == "error":
                raise DataError(f"{self.file}: record {label}: {error}") from error
            self._skipped.append(Skipped(record=label, reason=str(error)))

    def add(
        self,
        record_id: str,
        *,
        joints: NDArray[np.float32],
        visibility: NDArray[np.uint8],
        box: NDArray[np.float32] | None,
        frame: FrameSource,
        frame_name: str,
        stated_size: tuple[int, int] | None = None,
        box_may_stick_out: bool = False,
        head_size: float | None = None,
        area: float | None = None,
        group: str = "",
        owners: Owners | None = None,
    ) -> None:
        """Check one record in the source's layout and keep it.

        Args:
            record_id: unique in this source.
            joints: (J, 2) pixels.
            visibility: (J,) 0, 1 or 2.
            box: (4,) x, y, width, height; `None`: around the labelled joints.
            frame: where its pixels are.
            frame_name: the frame's file name, for the patient rule.
            stated_size: (height, width) that the annotation gives, to be compared with the image.
            box_may_stick_out: the box is a square around a centre, so that only its centre must lie in the frame.
            head_size: pixels, or `None`.
            area: square pixels, or `None`: from the box.
            group: sub-population.
            owners: its patients where the annotation names them; the patient rule goes before.

        Raises:
            DataError: anything is wrong with it.

        """
        if record_id in self._ids:
            raise DataError(f'duplicate record id "{record_id}" (allowed: each id once)')
        height, width = self._frame_size(frame, stated_size)
        _check_joints(joints, visibility, self.source)
        inside = (joints >= -0.5).all(axis=1) & (joints[:, 0] <= width) & (joints[:, 1] <= height)
        outside = (visibility > 0) & ~inside
        visibility = np.where(outside, 0, visibility).astype(np.uint8)
        if not visibility.any():
            raise DataError(f"no labelled joint lies in the frame of {width} x {height} pixels (allowed: one or more)")
        joints = np.where(visibility[:, None] > 0, joints, 0).astype(np.float32)
        box = box_of_joints(joints, visibility) if box is None else box
        box = _check_box(box, height, width, may_stick_out=box_may_stick_out)
        for what, value in (("head_size", head_size), ("area", area)):
            if value is not None and not (np.isfinite(value) and value > 0):
                raise DataError(f"{what} is {value} (allowed: a finite number above 0, or null)")
        if self.target is not self.source:
            joints, visibility = convert(joints, visibility, source=self.source, target=self.target)
        if not visibility.any():
            # The record is sound; the layout asked for has none of its joints (a face alone, for example).
            self._ids.add(record_id)
            self._unmapped += 1
            return
        if owners is None or self._lookup.known:
            owners = self._lookup.owners(record_id, frame_name)
        else:
            self._own_patients = False
        self._ids.add(record_id)
        self._outside += int(outside.sum())
        self._frames.append(frame)
        self._records.append(
            PoseRecord(
                record_id=record_id,
                patient_id=owners.patient_id,
                also_patients=owners.also_patients,
                joints=joints,
                visibility=visibility,
                box=box,
                scale=float(max(box[2], box[3])),
                head_size=head_size,
                area=float(AREA_OF_BOX * box[2] * box[3]) if area is None else area,
                group=group,
                picture=frame.fingerprint(),
            )
        )

    def finish(self) -> ListDataset:
        """Return the data set.

        Raises:
            DataError: no record is left.

        """
        notes = list(self._notes)
        if self._skipped:
            shown = "; ".join(f"{skip.record}: {skip.reason}" for skip in self._skipped[:_NOTED_SKIPS])
            more = "; ..." if len(self._skipped) > _NOTED_SKIPS else ""
            notes.append(f"{self.file}: {len(self._skipped)} bad records skipped ({shown}{more})")
        if self._unmapped:
            notes.append(
                f"{self.file}: {self._unmapped} people without a labelled joint of {self.target.name} left out"
            )
        if not self._records:
            reason = f" ({notes[-1]})" if notes else ""
            raise DataError(f"{self.file}: the set is empty{reason} (allowed: at least one usable record)")
        if self._outside:
            notes.append(f"{self.file}: {self._outside} joints outside their frame taken as not labelled")
        if self._own_patients:
            notes.append(f"{self.name}: patients are not known, so every record counts as its own patient")
        return ListDataset(
            name=self.name,
            skeleton=self.target,
            records=self._records,
            frames=self._frames,
            notes=notes,
            skipped=self._skipped,
        )

    def _frame_size(self, frame: FrameSource, stated: tuple[int, int] | None) -> tuple[int, int]:
        height, width = frame.size() if self._check_images == "header" else frame.load().shape[:2]
        if stated is not None and stated != (height, width):
            raise DataError(
                f"image is {width} x {height} pixels, the annotation says {stated[1]} x {stated[0]} (allowed: the same)"
            )
        return height, width


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        DataError: missing, unreadable or malformed.

    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: file is missing (allowed: an existing JSON file)") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: file cannot be read: {error}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}: malformed JSON: {error}") from error


def field(entry: Any, key: str, allowed: type | tuple[type, ...]) -> Any:
    """Take `entry[key]` of a JSON object, of an allowed type.

    Raises:
        DataError: no object, no such key, or a value of another type (a truth value is no number).

    """
    kinds = allowed if isinstance(allowed, tuple) else (allowed,)
    names = " or ".join(kind.__name__ for kind in kinds)
    if not isinstance(entry, dict):
        raise DataError(f"entry is {short(entry)} (allowed: an object with {key})")
    if key not in entry:
        raise DataError(f"{key} is missing (allowed: {names})")
    value = entry[key]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise DataError(f"{key} is {short(value)} (allowed: {names})")
    return value


def numbers(value: Any, what: str, count: int) -> NDArray[np.float64]:
    """Turn a JSON list (nested or not) into `count` finite numbers.

    Raises:
        DataError: another count, something that is no number, or a number that is not finite.

    """
    try:
        array = np.asarray(value, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} is {short(value)} (allowed: {count} numbers)") from error
    if array.size != count:
        raise DataError(f"{what} has {array.size} numbers (allowed: {count})")
    if not np.isfinite(array).all():
        raise DataError(f"{what} holds {array[~np.isfinite(array)][0]} (allowed: finite numbers)")
    return array


def box_of_joints(joints: NDArray[np.float32], visibility: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Box (4,) around the labelled joints (J, 2), larger by 12 % of its long side on each side."""
    points = joints[visibility > 0]
    low, high = points.min(axis=0), points.max(axis=0)
    margin = 0.12 * max(float((high - low).max()), 1.0)
    return np.concatenate([low - margin, high - low + 2 * margin]).astype(np.float32)


def short(value: Any) -> str:
    """Show a value in an error message, cut at 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_joints(joints: NDArray[np.float32], visibility: NDArray[np.uint8], skeleton: Skeleton) -> None:
    if joints.shape != (len(skeleton), 2) or visibility.shape != (len(skeleton),):
        raise DataError(f"{len(joints)} joints (allowed: the {len(skeleton)} joints of {skeleton.name})")
    bad = visibility > 2
    if bad.any():
        raise DataError(
            f"joint {skeleton.joints[int(bad.argmax())]} has visibility {visibility[bad][0]} (allowed: 0, 1, 2)"
        )
    bad = (visibility > 0) & ~np.isfinite(joints).all(axis=1)
    if bad.any():
        raise DataError(
            f"joint {skeleton.joints[int(bad.argmax())]} is at {joints[bad][0].tolist()} (allowed: finite pixels)"
        )


def _check_box(box: NDArray[np.float32], height: int, width: int, *, may_stick_out: bool) -> NDArray[np.float32]:
    if box.shape != (4,) or not np.isfinite(box).all() or box[2] <= 0 or box[3] <= 0:
        raise DataError(f"box is {box.tolist()} (allowed: finite x, y and width, height above 0)")
    low, high = box[:2], box[:2] + box[2:]
    limit = np.array([width, height], np.float32)
    if may_stick_out:
        centre = (low + high) / 2
        if (centre < 0).any() or (centre > limit).any():
            raise DataError(f"box {box.tolist()} has its centre outside the frame of {width} x {height} pixels")
        return box.astype(np.float32)
    if (low < -BOX_TOLERANCE).any() or (high > limit + BOX_TOLERANCE).any():
        raise DataError(f"box {box.tolist()} lies outside the frame of {width} x {height} pixels (allowed: inside it)")
    low, high = np.clip(low, 0, limit), np.clip(high, 0, limit)
    if (high - low <= 0).any():
        raise DataError(f"box {box.tolist()} lies outside the frame of {width} x {height} pixels (allowed: inside it)")
    return np.concatenate([low, high - low]).astype(np.float32)
