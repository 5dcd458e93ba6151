"""Joints and boxes of one record: what is accepted, and what a box says about where it came from."""

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.errors import DataError
from wardpose.shared.skeleton import Skeleton


class OutsideError(DataError):
    """A person, or all of its joints, lies outside its frame."""


BOX_TOLERANCE = 2.0
"""Pixels by which a box may stick out of its frame (rounding); it is clipped."""

_MARGIN = 0.12
"""Parts of the long side by which a box around joints is larger on each side."""

_SAME_BOX = 1.0
"""Pixels by which the sides of equal boxes may differ (rounding)."""


def box_of_joints(joints: NDArray[np.float32], visibility: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Box (4,) around the labelled joints (J, 2), larger by `_MARGIN` of its long side on each side."""
    points = joints[visibility > 0]
    low, high = points.min(axis=0), points.max(axis=0)
    margin = _MARGIN * max(float((high - low).max()), 1.0)
    return np.concatenate([low - margin, high - low + 2 * margin]).astype(np.float32)


def clipped(box: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Cut a box (4,) at the border of its frame."""
    limit = np.array([width, height], np.float32)
    low, high = np.clip(box[:2], 0, limit), np.clip(box[:2] + box[2:], 0, limit)
    return np.concatenate([low, high - low]).astype(np.float32)


def is_of_joints(
    box: NDArray[np.float32], joints: NDArray[np.float32], visibility: NDArray[np.uint8], height: int, width: int
) -> bool:
    """Tell whether a box (4,) that a file gives was computed from its joints (J, 2), and not drawn around a person.

    Annotation tools (CVAT, Label Studio) write the joints' hull, this project's own data the hull and a margin.
    """
    points = joints[visibility > 0]
    if len(points) < 2:
        return False
    left, top = points.min(axis=0).tolist()
    right, bottom = points.max(axis=0).tolist()
    x, y, wide, high = box.tolist()
    for margin in (0.0, _MARGIN * max(right - left, bottom - top, 1.0)):
        sides = max(left - margin, 0), max(top - margin, 0), min(right + margin, width), min(bottom + margin, height)
        given = (x, y, x + wide, y + high)
        if all(abs(side - other) <= _SAME_BOX for side, other in zip(sides, given, strict=True)):
            return True
    return False


def check_joints(joints: NDArray[np.float32], visibility: NDArray[np.uint8], skeleton: Skeleton) -> None:
    """Accept joints (J, 2) and marks (J,) of a layout.

    Raises:
        DataError: another number of joints, an unknown mark, a labelled joint that is nowhere, or numbers that are
            shares of the picture and no pixels.

    """
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

    points = joints[visibility > 0]
    if len(points) > 2 and (np.abs(points) <= 1).all():  # from -1 where a file counts pixels from 1
        raise DataError(
            f"all {len(points)} labelled joints lie within the first pixel (allowed: pixels, not shares of the picture)"
        )


def check_box(box: NDArray[np.float32], height: int, width: int, *, may_stick_out: bool) -> NDArray[np.float32]:
    """Accept a box (4,) in its frame, clipped to it, or as it is where only its centre must lie inside.

    Raises:
        DataError: it is empty, not finite or outside.

    """
    if box.shape != (4,) or not np.isfinite(box).all() or box[2] <= 0 or box[3] <= 0:
        raise DataError(f"box is {box.tolist()} (allowed: finite x, y and width, height above 0)")
    low, high = box[:2], box[:2] + box[2:]
    limit = np.array([width, height], np.float32)
    if may_stick_out:
        centre = (low + high) / 2
        if (centre < 0).any() or (centre > limit).any():
            raise OutsideError(f"box {box.tolist()} has its centre outside the frame of {width} x {height} pixels")
        return box.astype(np.float32)
    if (low < -BOX_TOLERANCE).any() or (high > limit + BOX_TOLERANCE).any():
        raise OutsideError(
            f"box {box.tolist()} lies outside the frame of {width} x {height} pixels (allowed: inside it)"
        )
    inside = clipped(box, height, width)
    if (inside[2:] <= 0).any():
        raise OutsideError(
            f"box {box.tolist()} lies outside the frame of {width} x {height} pixels (allowed: inside it)"
        )
    return inside
