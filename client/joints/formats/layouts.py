"""Joints in the order that a format has: what the model does not predict is left out, and never made up."""

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.skeleton import COCO17, Skeleton

COCO = list(COCO17.joints)
"""COCO's 17 joints."""

BODY_25 = [
    "nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
    "mid_hip", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "right_eye",
    "left_eye", "right_ear", "left_ear", "left_big_toe", "left_small_toe", "left_heel", "right_big_toe",
    "right_small_toe", "right_heel",
]  # fmt: skip
"""OpenPose's 25 joints, in its order (its documentation, "Output format", BODY_25)."""

_MIDDLES = {"mid_hip": "hip", "pelvis": "hip", "neck": "shoulder", "thorax": "shoulder"}


def arranged(
    joints: NDArray[np.float32], scores: NDArray[np.float32], skeleton: Skeleton, wanted: list[str]
) -> NDArray[np.float64]:
    """Return x, y and score of the wanted joints, (K, 3); zeros where the skeleton does not have one.

    The middle of the hips, and neck and thorax where the skeleton lacks them, are the middle of both sides, and as sure
    as the less sure one.

    Args:
        joints: (J, 2).
        scores: (J,).
        skeleton: of the joints.
        wanted: names.

    """
    out = np.zeros((len(wanted), 3))
    for row, name in enumerate(wanted):
        if name in skeleton.joints:
            parts = [skeleton.index(name)]
        elif name in _MIDDLES:
            parts = [skeleton.index(f"{side}_{_MIDDLES[name]}") for side in ("left", "right")]
        else:
            continue
        out[row] = [*joints[parts].mean(axis=0), scores[parts].min()]
    return out
