"""COCO results JSON: what pycocotools and everybody who scores on COCO reads.

One object a person: `image_id`, `category_id` 1, `keypoints` (17 x x, y, score), `bbox`, `score` (mean of the joints'
scores). `image_id` is the picture's number, where its name is one as COCO's are, else its name without the ending; of a
video it is `clip#12`. The joints are COCO's 17; what the model does not have is 0, 0, 0. Further keys say what COCO
has no place for: `file_name`, `frame`, `time`, `person`.
"""

import json
from collections.abc import Sequence
from pathlib import PurePosixPath

from wardpose.client.joints.formats.layouts import COCO, arranged
from wardpose.client.joints.people import Found
from wardpose.shared.skeleton import Skeleton


def coco_results(found: Sequence[Found], skeleton: Skeleton) -> str:
    """Write the people of all frames."""
    rows = []
    for frame in found:
        for person in frame.people:
            keypoints = arranged(person.joints, person.scores, skeleton, COCO)
            rows.append(
                {
                    "image_id": image_id(frame),
                    "category_id": 1,
                    "keypoints": [round(float(value), 3) for value in keypoints.ravel()],
                    "bbox": [round(value, 3) for value in person.box],
                    "score": round(float(person.scores.mean()), 5),
                    "file_name": frame.source,
                    "frame": frame.number,
                    "time": None if frame.time is None else round(float(frame.time), 6),
                    "person": person.number,
                }
            )
    return "[" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "]\n"


def image_id(frame: Found) -> int | str:
    """Return what an image is called in COCO results."""
    path = PurePosixPath(frame.source)
    if frame.number is None:
        return int(path.stem) if path.stem.isascii() and path.stem.isdecimal() else str(path.with_suffix(""))
    return f"{path.with_suffix('')}#{frame.number}"
