"""A small COCO keypoints file of three people in two pictures, to be changed by tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wardpose.shared.skeleton import COCO17

Content = dict[str, Any]


def content() -> Content:
    people = []
    for number in (1, 2, 3):
        joints = [[10 + number + i, 20 + i, 2] for i in range(17)]
        people.append(
            {
                "id": number,
                "image_id": 7 if number < 3 else 8,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [5, 5, 50, 60],
                "area": 900.0,
                "keypoints": [value for joint in joints for value in joint],
            }
        )
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 80, "height": 70} for i in (7, 8)],
        "annotations": people,
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO17.joints)}],
    }


def write(folder: Path, value: Any) -> Path:
    path = folder / "people.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def edit(path: list[Any], value: Any) -> Callable[[Content], None]:
    def apply(document: Content) -> None:
        target: Any = document
        for key in path[:-1]:
            target = target[key]
        if value is KeyError:
            del target[path[-1]]
        else:
            target[path[-1]] = value

    return apply
