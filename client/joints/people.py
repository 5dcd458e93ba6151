"""What is found: the people of each frame, and who of them is the same from one frame to the next."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

Box = tuple[float, float, float, float]
"""x, y, width, height in pixels of the frame."""

_SAME_OVERLAP = 0.3
_FORGOTTEN_AFTER = 25  # frames in which somebody is not seen
_MARGIN = 0.12  # of the joints' long side: a head's top and hands lie outside the joints


@dataclass(frozen=True, kw_only=True, eq=False)
class Person:
    """One person in one frame.

    Attributes:
        number: the same person has the same one in all frames of a film; from 0, in the order of appearance.
        box: where the person was looked for.
        joints: (J, 2) float32 pixels.
        scores: (J,) float32 from 0 to 1.

    """

    number: int
    box: Box
    joints: NDArray[np.float32]
    scores: NDArray[np.float32]

    def to_json(self) -> dict[str, Any]:
        """Return the form that is stored; numbers come back exactly."""
        return {
            "number": self.number,
            "box": list(self.box),
            "joints": self.joints.tolist(),
            "scores": self.scores.tolist(),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Person":
        """Read what `to_json` returned."""
        x, y, width, height = content["box"]
        return cls(
            number=content["number"],
            box=(x, y, width, height),
            joints=np.array(content["joints"], np.float32).reshape(-1, 2),
            scores=np.array(content["scores"], np.float32),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What was found in one frame.

    Attributes:
        source: name of the file, relative to what was given.
        number: of the frame in a video or of the page in a picture of several; `None` in a picture of one.
        time: seconds at which it is shown; `None` for a picture.
        size: (height, width) of the upright frame.
        people: in the order of their numbers.
        skipped: why it could not be read; empty where it was.

    """

    source: str
    number: int | None
    time: Fraction | None
    size: tuple[int, int]
    people: tuple[Person, ...] = ()
    skipped: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the form that is stored."""
        return {
            "source": self.source,
            "number": self.number,
            "time": None if self.time is None else str(self.time),
            "size": list(self.size),
            "people": [person.to_json() for person in self.people],
            "skipped": self.skipped,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Found":
        """Read what `to_json` returned."""
        height, width = content["size"]
        return cls(
            source=content["source"],
            number=content["number"],
            time=None if content["time"] is None else Fraction(content["time"]),
            size=(height, width),
            people=tuple(Person.from_json(person) for person in content["people"]),
            skipped=content["skipped"],
        )


@dataclass(frozen=True)
class _Known:
    number: int
    box: Box
    missed: int = 0  # frames since


@dataclass
class Identities:
    """Who is who, by how much boxes overlap from frame to frame (the assignment of largest overlap in all).

    Attributes:
        linked: whether the frames are of one film; else everybody is new in each.

    """

    linked: bool = True
    _known: list[_Known] = field(default_factory=list)
    _next: int = 0

    def number(self, boxes: Sequence[Box]) -> list[int]:
        """Return the number of the person in each box of the next frame."""
        if not self.linked:
            return list(range(len(boxes)))
        shared = np.array([[overlap(known.box, box) for box in boxes] for known in self._known])
        numbers: dict[int, int] = {}
        if shared.size:
            for row, column in zip(*linear_sum_assignment(-shared), strict=True):
                if shared[row, column] >= _SAME_OVERLAP:
                    numbers[int(column)] = self._known[row].number
        for place in range(len(boxes)):
            if place not in numbers:
                numbers[place] = self._next
                self._next += 1
        seen = [_Known(numbers[place], box) for place, box in enumerate(boxes)]
        unseen = [
            replace(known, missed=known.missed + 1)
            for known in self._known
            if known.number not in numbers.values() and known.missed < _FORGOTTEN_AFTER
        ]
        self._known = [*seen, *unseen]
        return [numbers[place] for place in range(len(boxes))]

    def to_json(self) -> dict[str, Any]:
        """Return what has to be known to go on."""
        return {"known": [[known.number, list(known.box), known.missed] for known in self._known], "next": self._next}

    def restore(self, content: dict[str, Any]) -> None:
        """Go on from what `to_json` returned."""
        self._known = [_Known(number, (x, y, w, h), missed) for number, (x, y, w, h), missed in content["known"]]
        self._next = content["next"]


def overlap(a: Box, b: Box) -> float:
    """Intersection of two boxes over their union."""
    wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    high = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if wide <= 0 or high <= 0:
        return 0.0
    shared = wide * high
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def box_around(joints: NDArray[np.floating], scores: NDArray[np.floating], size: tuple[int, int]) -> Box | None:
    """Return the box of a person whose joints are known, within the frame; `None` where it would be no box.

    Joints less than half as sure as the median are not counted: one that is guessed far away would blow the box up.

    Args:
        joints: (J, 2) pixels.
        scores: (J,).
        size: (height, width) of the frame.

    """
    sure = np.isfinite(joints).all(axis=1) & (scores >= 0.5 * np.median(scores))
    if sure.sum() < 2:
        return None
    low, high = joints[sure].min(axis=0), joints[sure].max(axis=0)
    margin = _MARGIN * max(float((high - low).max()), 1.0)
    left, top = max(0.0, float(low[0]) - margin), max(0.0, float(low[1]) - margin)
    right, bottom = min(float(size[1]), float(high[0]) + margin), min(float(size[0]), float(high[1]) + margin)
    return (left, top, right - left, bottom - top) if right - left >= 2 and bottom - top >= 2 else None
