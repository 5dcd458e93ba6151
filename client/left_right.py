"""Which records have left and right swapped, likely: by what joints say of each other, and by what a model sees.

Two signs need no model. Seen from one side, shoulders and hips of a person have left on the same side: a trunk that is
crossed, and wide enough above and below to be sure, is one pair that was swapped. And where a forearm or shank of one
side ends at both joints of the other, the sides changed within a limb. A model adds a third: labels that agree with it
far better with the sides exchanged. All are signs, and no proof: people twist and cross their legs.
"""

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.data.dataset import ListDataset
from wardpose.shared.data.records import PoseRecord
from wardpose.shared.errors import DataError
from wardpose.shared.pose.estimators import Estimator, estimate_boxes
from wardpose.shared.skeleton import Skeleton

_WIDE = 0.07  # of the box, from left to right
_FAR = 0.1  # mean error in parts of the box, beyond which labels and model do not agree
_BETTER = 0.5  # error with exchanged sides in parts of that without


def swapped_sides(dataset: ListDataset, estimator: Estimator | None = None) -> dict[int, str]:
    """Return the rows of doubtful records and why, in their order.

    Args:
        dataset: the records; pictures are read only where a model is asked.
        estimator: the model, in the skeleton of the data set.

    """
    found: dict[int, str] = {}
    for index in range(len(dataset)):
        record = dataset.record(index)
        why = _crossed(record, dataset.skeleton)
        if not why and estimator is not None:
            why = _seen_otherwise(dataset, index, record, estimator)
        if why:
            found[index] = why
    return found


def _crossed(record: PoseRecord, skeleton: Skeleton) -> str:
    spans = [_span(record, skeleton, part) for part in ("shoulder", "hip")]
    if all(span is not None and abs(span) > _WIDE * record.scale for span in spans):
        above, below = spans
        if above is not None and below is not None and above * below < 0:
            return "shoulders and hips have left on opposite sides"
    return ""


def _span(record: PoseRecord, skeleton: Skeleton, part: str) -> float | None:
    """How far left is from right, along the longer way across the trunk; `None` where either is not labelled."""
    ends = [skeleton.index(f"{side}_{part}") for side in ("left", "right")]
    if not (record.visibility[ends] > 0).all():
        return None
    across = _across(record, skeleton)
    return None if across is None else float((record.joints[ends[0]] - record.joints[ends[1]]) @ across)


def _across(record: PoseRecord, skeleton: Skeleton) -> NDArray[np.float64] | None:
    """Direction across the trunk, which may lie or stand."""
    middles = []
    for part in ("shoulder", "hip"):
        ends = [skeleton.index(f"{side}_{part}") for side in ("left", "right")]
        if not (record.visibility[ends] > 0).all():
            return None
        middles.append(record.joints[ends].mean(axis=0).astype(np.float64))
    along = middles[1] - middles[0]
    length = float(np.linalg.norm(along))
    return None if length < 1e-6 else np.array([along[1], -along[0]]) / length


def _seen_otherwise(dataset: ListDataset, index: int, record: PoseRecord, estimator: Estimator) -> str:
    try:
        frame = dataset.frame(index)
    except DataError:
        return ""  # said elsewhere
    joints = estimate_boxes(estimator, [frame], [record.box], batch_size=1)[0][0]
    order = dataset.skeleton.flip_order
    both = (record.visibility > 0) & (record.visibility[order] > 0) & (order != np.arange(len(order)))
    if not both.any():
        return ""
    as_is = float(np.linalg.norm(joints - record.joints, axis=-1)[both].mean())
    exchanged = float(np.linalg.norm(joints - record.joints[order], axis=-1)[both].mean())
    if as_is > _FAR * record.scale and exchanged < _BETTER * as_is:
        return f"the model agrees with exchanged sides ({exchanged / as_is:.0%} of the distance)"
    return ""
