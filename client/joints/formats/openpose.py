"""OpenPose JSON, the lingua franca of Pose2Sim: one file a frame, `clip_000000000012_keypoints.json`.

`people` are in the order of their numbers, and who is not in a frame keeps the place with zeros, so that a column is a
person. `pose_keypoints_2d` is x, y, confidence in the order of BODY_25, or COCO's 17; joints that the model does not
have are 0, 0, 0, which is how OpenPose itself writes what it did not see.
"""

import json
from typing import Any

import numpy as np

from wardpose.client.joints.formats.layouts import arranged
from wardpose.client.joints.people import Found
from wardpose.shared.skeleton import Skeleton

_EMPTY = [
    "face_keypoints_2d", "hand_left_keypoints_2d", "hand_right_keypoints_2d", "pose_keypoints_3d",
    "face_keypoints_3d", "hand_left_keypoints_3d", "hand_right_keypoints_3d",
]  # fmt: skip


def openpose_frame(frame: Found, skeleton: Skeleton, order: list[str]) -> str:
    """Write one frame; `order` is that of the joints."""
    there = {person.number: person for person in frame.people}
    people: list[dict[str, Any]] = []
    for number in range(max(there, default=-1) + 1):
        keypoints = np.zeros((len(order), 3))
        if number in there:
            keypoints = arranged(there[number].joints, there[number].scores, skeleton, order)
        values = [round(float(value), 4) for value in keypoints.ravel()]
        people.append({"person_id": [number], "pose_keypoints_2d": values, **{name: [] for name in _EMPTY}})
    return json.dumps({"version": 1.3, "people": people})
