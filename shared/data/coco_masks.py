"""COCO's segmentations: polygons, run lengths, and run lengths packed into a text."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as masks

from wardpose.shared.data.fields import short
from wardpose.shared.errors import DataError


def segmentation_mask(segmentation: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw a COCO segmentation as a mask (height, width) of 0 and 1.

    Raises:
        DataError: it is none of the three, or not of a picture of this size.

    """
    height, width = size
    if isinstance(segmentation, dict):
        counts = _counts(segmentation, height, width)
        inside = np.arange(len(counts)) % 2
        return np.repeat(inside, counts).astype(np.uint8).reshape(width, height).T
    polygons = _polygons(segmentation, height, width)
    return np.asarray(masks.decode(masks.merge(masks.frPyObjects(polygons, height, width))), np.uint8)


def _counts(segmentation: dict[str, Any], height: int, width: int) -> list[int]:
    """Lengths of runs outside and inside by turns, down the columns."""
    counts = segmentation.get("counts")
    if segmentation.get("size") != [height, width]:
        raise DataError(f"segmentation is {short(segmentation)} (allowed: of size [{height}, {width}])")
    if isinstance(counts, str):
        counts = _unpacked(counts)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise DataError(f"segmentation is {short(segmentation)} (allowed: counts of pixels)")
    if sum(counts) != height * width:
        raise DataError(f"segmentation has counts of {sum(counts)} pixels (allowed: {height * width})")
    return counts


def _unpacked(text: str) -> list[int]:
    """Unpack counts: 6 bits a character, lowest first, and from the fourth on the difference to the one before last."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise DataError(f"segmentation has counts {short(text)} (allowed: packed run lengths)")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def _polygons(segmentation: Any, height: int, width: int) -> list[list[float]]:
    """Check polygons, before C code draws whatever length they have."""
    limit = 2 * max(height, width)
    try:
        polygons = [[float(value) for value in polygon] for polygon in segmentation]
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"segmentation is {short(segmentation)} (allowed: polygons or counts)") from error
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2 or not all(-limit <= value <= limit for value in polygon):
            raise DataError(
                f"segmentation has the polygon {short(polygon)} (allowed: three or more points near the frame)"
            )
    if not polygons:
        raise DataError("segmentation is empty (allowed: polygons or counts)")
    return polygons
