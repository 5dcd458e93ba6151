"""Looking for people in the frames of a reel, in batches.

Where boxes are known (a file, a detector), the crops of all people of a few frames go through the network together.
For one patient without boxes the frame itself is searched, then the box of the last frame's joints is followed. So
that following is not one crop at a time, a few frames ahead are cut around the same box; from the first frame on in
which the patient has moved too far for it, they are cut anew. Where confidence falls, the frame is searched again; a
search that only finds the patient where the box is makes the next such doubt wait twice as long. What comes out depends
on the frames alone, not on where a run was interrupted: the state is part of what is kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from wardpose.client.joints.people import Box, Identities, Person, box_around, overlap
from wardpose.client.joints.reels import Shot
from wardpose.shared.data.records import Frame
from wardpose.shared.pose.estimators import Estimator, estimate_boxes

Shown = Sequence[tuple[Shot, Frame]]
"""Frames in their order."""

LEAST_CONFIDENCE = 0.05
"""Mean score below which nobody is said to be there, unless the user knows better. It is low because networks are sure
of themselves on empty frames, too: the bundled one gives 0.37 to an even grey frame, and no more to some people."""

_MOVED = 0.5  # overlap with the box that was cut around
_FALLEN = 0.6  # confidence in parts of what it was when the patient was found
_SEARCH_AGAIN_AFTER = 5  # frames in which nobody was found
_DOUBT_AFTER = 25  # frames from one search to the next because of doubt: searching costs as much as following so many
_DOUBT_MOST = 400  # frames that doubt waits at most, when it was unfounded again and again
_REFINED = 2
_WINDOWS = ((0.9, 3), (0.6, 4))  # height of a window in parts of the frame's, how many beside each other


class Look(Protocol):
    """A way to find the people of a reel's frames, one piece of it after the other."""

    def __call__(self, shown: Shown) -> list[tuple[Person, ...]]:
        """Return the people of each of the next frames."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what has to be known to go on after these frames, as JSON."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        ...


class InBoxes:
    """People whose boxes somebody else finds."""

    def __init__(
        self, estimator: Estimator, boxes: Callable[[Shot, Frame], list[Box]], *, linked: bool, batch_size: int
    ) -> None:
        self._estimator, self._boxes, self._batch_size = estimator, boxes, batch_size
        self._identities = Identities(linked=linked)

    def __call__(self, shown: Shown) -> list[tuple[Person, ...]]:
        """Return the people of each of the next frames."""
        boxes = [self._boxes(shot, frame) for shot, frame in shown]
        numbers = [self._identities.number(those) for those in boxes]
        frames = [frame for (_, frame), those in zip(shown, boxes, strict=True) for _ in those]
        flat = [np.array(box) for those in boxes for box in those]
        joints, scores = estimate_boxes(self._estimator, frames, flat, batch_size=self._batch_size)
        people, at = [], 0
        for those, names in zip(boxes, numbers, strict=True):
            found = [
                Person(number=name, box=box, joints=joints[at + i], scores=scores[at + i])
                for i, (name, box) in enumerate(zip(names, those, strict=True))
            ]
            people.append(tuple(sorted(found, key=lambda person: person.number)))
            at += len(those)
        return people

    def state(self) -> dict[str, Any]:
        """Return who was seen where."""
        return self._identities.to_json()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._identities.restore(state)


@dataclass
class OnePatient:
    """The one patient in view, searched for and then followed.

    Attributes:
        estimator: the network.
        linked: whether the frames are of one film; else each is searched.
        batch_size: crops at a time.
        least: mean score below which nobody is said to be there.

    """

    estimator: Estimator
    linked: bool
    batch_size: int
    least: float = LEAST_CONFIDENCE
    _box: Box | None = None
    _confidence: float = 0.0  # when the patient was found
    _waiting: int = 0  # frames until the next search
    _ahead: int = 1  # frames that are cut around one box
    _since: int = 0  # frames since the search
    _patience: int = _DOUBT_AFTER  # frames before the next doubt

    def __call__(self, shown: Shown) -> list[tuple[Person, ...]]:
        """Return nobody or one person in each of the next frames."""
        people: list[tuple[Person, ...]] = []
        while len(people) < len(shown):
            frame = shown[len(people)][1]
            if self._box is None or not self.linked:
                people.append(self._search(frame))
            else:
                people += self._follow([f for _, f in shown[len(people) : len(people) + self._ahead]], self._box)
        return people

    def state(self) -> dict[str, Any]:
        """Return where the patient was."""
        return {
            "box": None if self._box is None else list(self._box),
            "confidence": self._confidence,
            "waiting": self._waiting,
            "ahead": self._ahead,
            "since": self._since,
            "patience": self._patience,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._box = None
        if state["box"] is not None:
            x, y, width, height = state["box"]
            self._box = (x, y, width, height)
        self._confidence, self._waiting, self._ahead = state["confidence"], state["waiting"], state["ahead"]
        self._since, self._patience = state["since"], state["patience"]

    def _search(self, frame: Frame) -> tuple[Person, ...]:
        """Look where the patient is, and follow from there."""
        if self.linked and self._waiting > 0:
            self._waiting -= 1
            return ()
        best = self._surest(frame)
        self._confidence, self._ahead, self._since, self._patience = _confidence(best), 1, 0, _DOUBT_AFTER
        if self._confidence < self.least:
            self._waiting = _SEARCH_AGAIN_AFTER
            return ()
        self._box = box_around(best.joints, best.scores, (frame.shape[0], frame.shape[1]))
        return (best,)

    def _surest(self, frame: Frame, like: Box | None = None) -> Person:
        """Look through windows over the frame, of the size of a box if there is one, then closer where it is surest."""
        best = self._best(frame, _windows((frame.shape[0], frame.shape[1]), like))
        for _ in range(_REFINED):
            closer = box_around(best.joints, best.scores, (frame.shape[0], frame.shape[1]))
            if closer is not None:
                best = max(best, self._best(frame, [closer]), key=_confidence)
        return best

    def _best(self, frame: Frame, boxes: Sequence[Box]) -> Person:
        joints, scores = estimate_boxes(
            self.estimator, [frame] * len(boxes), [np.array(box) for box in boxes], batch_size=self.batch_size
        )
        found = [
            Person(number=0, box=box, joints=points, scores=sure)
            for box, points, sure in zip(boxes, joints, scores, strict=True)
        ]
        return max(found, key=_confidence)

    def _follow(self, frames: Sequence[Frame], box: Box) -> list[tuple[Person, ...]]:
        """Cut frames around one box; those after the first that shows the patient elsewhere are left for the next."""
        joints, scores = estimate_boxes(
            self.estimator, frames, [np.array(box)] * len(frames), batch_size=self.batch_size
        )
        people: list[tuple[Person, ...]] = []
        for frame, points, sure in zip(frames, joints, scores, strict=True):
            person = Person(number=0, box=box, joints=points, scores=sure)
            if _confidence(person) < self.least:
                self._box = None  # lost: this very frame is searched
                return people
            if self._since >= self._patience and _confidence(person) < _FALLEN * self._confidence:
                person = self._doubted(frame, person)
            people.append((person,))
            self._since += 1
            self._box = box_around(person.joints, person.scores, (frame.shape[0], frame.shape[1]))
            if self._box is None or overlap(self._box, box) < _MOVED:
                self._ahead = max(1, len(people))  # at this pace the patient leaves the next box after as many
                return people
        self._ahead = min(2 * self._ahead, self.batch_size)
        return people

    def _doubted(self, frame: Frame, person: Person) -> Person:
        """Search the frame: return whom was followed, or whoever is surer to be the patient elsewhere."""
        here = box_around(person.joints, person.scores, (frame.shape[0], frame.shape[1]))
        best = max(person, self._surest(frame, here), key=_confidence)
        there = box_around(best.joints, best.scores, (frame.shape[0], frame.shape[1]))
        found_elsewhere = here is None or there is None or overlap(there, here) < _MOVED
        self._since, self._confidence = 0, _confidence(best)
        self._patience = _DOUBT_AFTER if found_elsewhere else min(2 * self._patience, _DOUBT_MOST)
        return best


def _confidence(person: Person) -> float:
    return float(person.scores.mean())


def _windows(size: tuple[int, int], like: Box | None) -> list[Box]:
    """Return the whole frame, and windows that a standing, sitting or lying person (of a box's size) may fill."""
    height, width = size
    boxes: list[Box] = [(0.0, 0.0, float(width), float(height))]
    kinds: Sequence[tuple[float, int]] = _WINDOWS
    if like is not None:
        length = max(like[2:]) / min(height, width)
        kinds = [min(_WINDOWS, key=lambda kind: abs(kind[0] - length))]
    for share, count in kinds:
        side = share * min(height, width)
        for wide, high in ((side / 2, side), (side, side / 2)):
            for row in range(2 if high < 0.7 * height else 1):
                for column in range(count):
                    x = (width - wide) * (column / (count - 1))
                    y = (height - high) * (0.5 if high >= 0.7 * height else 0.15 + 0.7 * row)
                    boxes.append((x, y, wide, high))
    return boxes
