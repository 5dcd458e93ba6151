"""Skeletons drawn on frames: right side blue, left side orange, middle green."""

import cv2
import numpy as np
from numpy.typing import ArrayLike

from wardpose.shared.data.records import Frame
from wardpose.shared.skeleton import Skeleton

_COLOURS = {"left": (255, 140, 0), "right": (30, 110, 255), "middle": (60, 200, 80)}
_FRACTION_BITS = 4
"""OpenCV draws at sixteenths of a pixel."""


def draw_skeleton(
    frame: Frame,
    joints: ArrayLike,
    visibility: ArrayLike,
    skeleton: Skeleton,
    *,
    thickness: int | None = None,
    colour: tuple[int, int, int] | None = None,
) -> Frame:
    """Return a copy of `frame` with limbs and joints on it.

    Args:
        frame: (height, width, 3) RGB.
        joints: (J, 2) pixels; may lie outside the frame.
        visibility: (J,), or scores; a joint is drawn where above 0, a limb where both its ends are.
        skeleton: layout of the joints.
        thickness: of limbs in pixels; a hundredth of the frame's longer side when absent.
        colour: RGB of everything; by side of the body when absent.

    Raises:
        ValueError: shapes do not fit the skeleton.

    """
    points, marks = np.asarray(joints, np.float64), np.asarray(visibility)
    if points.shape != (len(skeleton), 2) or marks.shape != (len(skeleton),):
        raise ValueError(f"joints {points.shape}, visibility {marks.shape} are not {skeleton.name}'s")
    canvas: Frame = np.ascontiguousarray(frame).copy()
    width = max(1, round(max(canvas.shape[:2]) / 100)) if thickness is None else thickness
    drawn = (marks > 0) & np.isfinite(points).all(axis=1)
    # Far outside, the fixed-point coordinates of OpenCV would overflow.
    limit = 10.0 * max(canvas.shape[:2])
    fixed = np.round(np.clip(np.nan_to_num(points), -limit, limit) * 2**_FRACTION_BITS).astype(int)
    for start, end in skeleton.limbs:
        if drawn[start] and drawn[end]:
            paint = colour or _side(skeleton.joints[start], skeleton.joints[end])
            cv2.line(
                canvas,
                tuple(fixed[start].tolist()),
                tuple(fixed[end].tolist()),
                paint,
                width,
                cv2.LINE_AA,
                _FRACTION_BITS,
            )
    for i in np.flatnonzero(drawn):
        paint = colour or _side(skeleton.joints[i])
        radius = round(width * 1.2 * 2**_FRACTION_BITS)
        cv2.circle(canvas, tuple(fixed[i].tolist()), radius, paint, -1, cv2.LINE_AA, _FRACTION_BITS)
    return canvas


def _side(*names: str) -> tuple[int, int, int]:
    sides = {name.split("_")[0] for name in names} & {"left", "right"}
    return _COLOURS[sides.pop()] if len(sides) == 1 else _COLOURS["middle"]
