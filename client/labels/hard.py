"""Which frames are worth labelling first: where the model is unsure, or says another thing of the mirrored frame.

A frame's score is the larger of two parts from 0 to 1 of its hardest person: one less the mean confidence, and how far
the joints move when the crop is mirrored, in fifths of the box. The choice follows from patients' frames, so it tells
something about them: it stays at the site, as the frames do.
"""

from collections.abc import Sequence

import numpy as np

from wardpose.client.joints.people import Person
from wardpose.shared.data.crops import box_to_affine, invert, transform, warp
from wardpose.shared.data.records import Frame
from wardpose.shared.pose.estimators import Estimator

_FAR = 0.2  # of the box: PCK's threshold


def disagreement(estimator: Estimator, frame: Frame, person: Person) -> float:
    """Mean distance between a person's joints and those of the mirrored crop, in parts of the box's long side."""
    box = np.array(person.box)
    affine = box_to_affine(box, estimator.input_size, padding=estimator.padding, flip=True)
    found = estimator(warp(frame, affine, estimator.input_size)[None])
    mirrored = transform(found.joints[0], invert(affine))[estimator.skeleton.flip_order]
    return float(np.linalg.norm(mirrored - person.joints, axis=-1).mean() / max(box[2], box[3]))


def hardness(people: Sequence[Person], apart: Sequence[float]) -> float:
    """How much a frame is worth, from 0 to 1: that of its hardest person; 1 where nobody was found."""
    if not people:
        return 1.0
    unsure = [1 - float(person.scores.mean()) for person in people]
    moved = [min(1.0, part / _FAR) for part in apart]
    return max(max(pair) for pair in zip(unsure, moved, strict=True))


def hardest(scores: Sequence[float], owners: Sequence[str], count: int) -> list[int]:
    """Choose frames: the hardest of each patient first, then the second of each, and so on.

    Args:
        scores: of the frames.
        owners: patient of each frame.
        count: how many.

    Returns:
        their places, the most worth first.

    """
    order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
    turn: dict[str, int] = {}
    rank = {}
    for place in order:
        turn[owners[place]] = turn.get(owners[place], -1) + 1
        rank[place] = turn[owners[place]]
    return sorted(order, key=lambda place: rank[place])[:count]
