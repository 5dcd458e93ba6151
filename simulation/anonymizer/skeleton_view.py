"""The floor of what attackers get: a view that shows the true skeleton and the box, and nothing else.

Every figure of a certificate is measured on this view too, by the same code. A public view that is worth its name shows
a pose; whoever relinks people by their pose alone does so from here, and only what a view gives beyond is a leak.
"""

import cv2
import numpy as np

from wardpose.shared.data.records import Frame
from wardpose.shared.skeleton import LSP14
from wardpose.simulation.anonymizer.feed import Sample

_BOX = (70, 70, 70)
_RIGHT, _LEFT, _MIDDLE = (255, 60, 60), (60, 60, 255), (60, 255, 60)
_SUBPIXEL = 4


def skeleton_and_box(one: Sample) -> Frame:
    """Draw the labelled limbs of a crop and the person's box on black, (H, W, 3); nothing where nothing is labelled."""
    height, width = one.image.shape[:2]
    canvas = np.zeros((height, width, 3), np.uint8)
    thick = max(1, round(height / 64))
    x, y, w, h = (float(value) for value in one.box)
    cv2.rectangle(canvas, _point(x, y), _point(x + w, y + h), _BOX, thick, cv2.LINE_AA, shift=_SUBPIXEL)
    for a, b in LSP14.limbs:
        if one.visibility[a] and one.visibility[b]:
            colour = _colour(LSP14.joints[a], LSP14.joints[b])
            cv2.line(canvas, _point(*one.joints[a]), _point(*one.joints[b]), colour, thick, cv2.LINE_AA, _SUBPIXEL)
    return canvas


def _colour(first: str, second: str) -> tuple[int, int, int]:
    sides = {name.split("_")[0] for name in (first, second)}
    if sides == {"right"}:
        return _RIGHT
    return _LEFT if sides == {"left"} else _MIDDLE


def _point(x: float, y: float) -> tuple[int, int]:
    return round(float(x) * 2**_SUBPIXEL), round(float(y) * 2**_SUBPIXEL)
