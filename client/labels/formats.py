"""Drafts as labelling tools import them: COCO keypoints and XML for CVAT, tasks with predictions for Label Studio."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from wardpose.client.joints.formats.layouts import COCO, arranged
from wardpose.client.joints.people import Person
from wardpose.shared.skeleton import COCO17, Skeleton

FORMATS = ("coco", "cvat", "label-studio")


@dataclass(frozen=True, kw_only=True, eq=False)
class Drafted:
    """One frame and the people that were found in it.

    Attributes:
        name: of its picture, relative to the folder that is labelled.
        size: (height, width).
        people: found in it.
        patient: whose frame it is; empty where nobody says it.

    """

    name: str
    size: tuple[int, int]
    people: tuple[Person, ...]
    patient: str = ""


def lost_in_coco(skeleton: Skeleton) -> list[str]:
    """List the joints that COCO has no place for."""
    return [joint for joint in skeleton.joints if joint not in COCO]


def coco(frames: Sequence[Drafted], skeleton: Skeleton, *, least: float) -> str:
    """Write COCO keypoints: 17 joints, drafted ones visible, those less sure than `least` hidden (1).

    CVAT's import ("COCO Keypoints 1.0") wants a skeleton label called `person` with these joints.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, frame in enumerate(frames, start=1):
        height, width = frame.size
        images.append({"id": number, "file_name": frame.name, "width": width, "height": height})
        for person in frame.people:
            keypoints = arranged(person.joints, person.scores, skeleton, COCO)
            inside = _inside(keypoints, frame.size)
            marks = np.where(inside, np.where(keypoints[:, 2] >= least, 2, 1), 0)
            triples = np.concatenate([np.where(inside[:, None], keypoints[:, :2], 0), marks[:, None]], axis=1)
            if not marks.any():
                continue
            entry: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [round(value, 2) for value in person.box],
                "area": round(person.box[2] * person.box[3], 2),
                "keypoints": [round(float(value), 2) for value in triples.ravel()],
                "num_keypoints": int((marks > 0).sum()),
                "segmentation": [],
                "score": round(float(person.scores.mean()), 4),
            }
            if frame.patient:
                entry["attributes"] = {"patient": frame.patient}
            annotations.append(entry)
    category = {
        "id": 1,
        "name": "person",
        "supercategory": "person",
        "keypoints": COCO,
        "skeleton": [[start + 1, end + 1] for start, end in COCO17.limbs],
    }
    content = {"images": images, "annotations": annotations, "categories": [category]}
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def cvat(frames: Sequence[Drafted], skeleton: Skeleton, *, least: float) -> str:
    """Write "CVAT for images 1.1": a skeleton a person, the model's own joints; those less sure are occluded.

    The task in CVAT wants a skeleton label called `person` with these joints, and a text attribute `patient`.
    """
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>"]
    for number, frame in enumerate(frames):
        height, width = frame.size
        lines.append(f'  <image id="{number}" name={quoteattr(frame.name)} width="{width}" height="{height}">')
        for person in frame.people:
            triples = np.concatenate([person.joints, person.scores[:, None]], axis=1).astype(np.float64)
            inside = _inside(triples, frame.size)
            if not inside.any():
                continue
            lines.append('    <skeleton label="person" source="auto" z_order="0">')
            for joint, (x, y, sure), there in zip(skeleton.joints, triples, inside, strict=True):
                place = f"{x:.2f},{y:.2f}" if there else "0.00,0.00"
                marks = f'outside="{int(not there)}" occluded="{int(there and sure < least)}"'
                lines.append(f'      <points label="{joint}" source="auto" {marks} points="{place}"></points>')
            if frame.patient:
                lines.append(f'      <attribute name="patient">{_text(frame.patient)}</attribute>')
            lines.append("    </skeleton>")
        lines.append("  </image>")
    return "\n".join([*lines, "</annotations>", ""])


def label_studio(frames: Sequence[Drafted], skeleton: Skeleton, *, least: float, prefix: str, model: str) -> str:
    """Write tasks with predictions for Label Studio; `prefix` stands before the picture's name in its address.

    Its interface wants `<RectangleLabels name="person" toName="image">` with the label `person`, and
    `<KeyPointLabels name="joints" toName="image">` with the joints. Joints less sure than `least` say `hidden`.
    """
    tasks = []
    for number, frame in enumerate(frames, start=1):
        height, width = frame.size
        result = []
        for place, person in enumerate(frame.people):
            triples = np.concatenate([person.joints, person.scores[:, None]], axis=1).astype(np.float64)
            inside = _inside(triples, frame.size)
            if not inside.any():
                continue
            owner = f"person-{number}-{place}"
            x, y, wide, high = person.box
            common = {"to_name": "image", "original_width": width, "original_height": height, "image_rotation": 0}
            box = {
                "x": 100 * x / width,
                "y": 100 * y / height,
                "width": 100 * wide / width,
                "height": 100 * high / height,
            }
            result.append(
                {
                    **common,
                    "id": owner,
                    "from_name": "person",
                    "type": "rectanglelabels",
                    "value": {**box, "rotation": 0, "rectanglelabels": ["person"]},
                    "score": round(float(person.scores.mean()), 4),
                }
            )
            for joint, (x, y, sure), there in zip(skeleton.joints, triples, inside, strict=True):
                if there:
                    region = {
                        **common,
                        "id": f"{owner}-{joint}",
                        "parentID": owner,
                        "from_name": "joints",
                        "type": "keypointlabels",
                        "value": {"x": 100 * x / width, "y": 100 * y / height, "width": 0.5, "keypointlabels": [joint]},
                        "score": round(float(sure), 4),
                    }
                    result.append(region if sure >= least else {**region, "meta": {"text": ["hidden"]}})
        data = {"image": prefix + quote(frame.name)}
        if frame.patient:
            data["patient"] = frame.patient
        mean = float(np.mean([person.scores.mean() for person in frame.people])) if frame.people else 0.0
        prediction = {"model_version": model, "score": round(mean, 4), "result": result}
        tasks.append({"data": data, "predictions": [prediction]})
    return json.dumps(tasks, ensure_ascii=False, indent=1) + "\n"


def _inside(triples: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which joints there are, and in the frame: no tool takes one outside."""
    there = np.isfinite(triples).all(axis=1) & (triples[:, 2] > 0) & (triples[:, :2] >= 0).all(axis=1)
    inside: NDArray[np.bool_] = there & (triples[:, 0] <= size[1] - 1) & (triples[:, 1] <= size[0] - 1)
    return inside


def _text(value: str) -> str:
    return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
