"""Joint layouts and the mapping between them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A joint layout.

    Attributes:
        name: key in `SKELETONS`.
        joints: joint names in order; equal names mean equal points across skeletons.
        flip_pairs: pairs of joint indices that a horizontal mirror exchanges.
        limbs: pairs of joint indices to draw as segments.
        oks_sigmas: per-joint standard deviations of object keypoint similarity (COCO).

    """

    name: str
    joints: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    limbs: tuple[tuple[int, int], ...]
    oks_sigmas: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.joints)

    def index(self, joint: str) -> int:
        """Index of the named joint; `ValueError` when the skeleton has none of that name."""
        return self.joints.index(joint)

    @property
    def flip_order(self) -> NDArray[np.int64]:
        """(J,) permutation that a horizontal mirror applies to the joints."""
        order = np.arange(len(self))
        for left, right in self.flip_pairs:
            order[left], order[right] = right, left
        return order


_SIGMA = {
    "nose": 0.026, "eye": 0.025, "ear": 0.035, "shoulder": 0.079, "elbow": 0.072, "wrist": 0.062,
    "hip": 0.107, "knee": 0.087, "ankle": 0.089, "pelvis": 0.107, "thorax": 0.079, "neck": 0.079, "head_top": 0.079,
}  # fmt: skip


def _skeleton(name: str, joints: str, limbs: str) -> Skeleton:
    names = tuple(joints.split())
    index = {joint: i for i, joint in enumerate(names)}
    pairs = tuple(
        (index[joint], index["right_" + joint.removeprefix("left_")]) for joint in names if joint.startswith("left_")
    )
    segments = [segment.split("-") for segment in limbs.split()]
    return Skeleton(
        name=name,
        joints=names,
        flip_pairs=pairs,
        limbs=tuple((index[a], index[b]) for a, b in segments),
        oks_sigmas=tuple(_SIGMA[joint.removeprefix("left_").removeprefix("right_")] for joint in names),
    )


_BODY_LIMBS = (
    "right_ankle-right_knee right_knee-right_hip left_hip-left_knee left_knee-left_ankle "
    "right_wrist-right_elbow right_elbow-right_shoulder left_shoulder-left_elbow left_elbow-left_wrist "
)

LSP14 = _skeleton(
    "lsp14",
    "right_ankle right_knee right_hip left_hip left_knee left_ankle right_wrist right_elbow right_shoulder "
    "left_shoulder left_elbow left_wrist neck head_top",
    _BODY_LIMBS + "right_hip-left_hip right_shoulder-neck neck-left_shoulder neck-head_top right_hip-right_shoulder "
    "left_hip-left_shoulder",
)
"""Leeds Sports Pose; also the set of joints common to all layouts with a neck and a head top."""

MPII16 = _skeleton(
    "mpii16",
    "right_ankle right_knee right_hip left_hip left_knee left_ankle pelvis thorax neck head_top right_wrist "
    "right_elbow right_shoulder left_shoulder left_elbow left_wrist",
    _BODY_LIMBS + "right_hip-pelvis pelvis-left_hip pelvis-thorax thorax-neck neck-head_top right_shoulder-thorax "
    "thorax-left_shoulder",
)
"""MPII Human Pose."""

COCO17 = _skeleton(
    "coco17",
    "nose left_eye right_eye left_ear right_ear left_shoulder right_shoulder left_elbow right_elbow left_wrist "
    "right_wrist left_hip right_hip left_knee right_knee left_ankle right_ankle",
    _BODY_LIMBS + "left_shoulder-right_shoulder left_hip-right_hip left_shoulder-left_hip right_shoulder-right_hip "
    "nose-left_eye nose-right_eye left_eye-left_ear right_eye-right_ear",
)
"""COCO keypoints."""

SKELETONS = {skeleton.name: skeleton for skeleton in (LSP14, MPII16, COCO17)}


def get_skeleton(name: str) -> Skeleton:
    """Look a skeleton up by name.

    Raises:
        ConfigError: no such skeleton.

    """
    if name not in SKELETONS:
        raise ConfigError(f'skeleton "{name}" is unknown (allowed: {", ".join(sorted(SKELETONS))})')
    return SKELETONS[name]


def convert(
    joints: NDArray[np.float32], visibility: NDArray[np.uint8], *, source: Skeleton, target: Skeleton
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Express joints (J_source, 2) and visibility (J_source,) in another skeleton.

    Joints are matched by name. `pelvis`, `thorax` and `neck` are taken as the middle of hips or shoulders where the
    source lacks them and both ends are labelled; whatever else the source lacks has visibility 0.
    """
    out_joints = np.zeros((len(target), 2), np.float32)
    out_visibility = np.zeros(len(target), np.uint8)
    middles = {"pelvis": "hip", "thorax": "shoulder", "neck": "shoulder"}
    for i, joint in enumerate(target.joints):
        if joint in source.joints:
            parts = [source.index(joint)]
        elif joint in middles:
            parts = [source.index(f"{side}_{middles[joint]}") for side in ("left", "right")]
        else:
            continue
        if (visibility[parts] > 0).all():
            out_joints[i] = joints[parts].mean(axis=0)
            out_visibility[i] = visibility[parts].min()
    return out_joints, out_visibility
