"""The report of an evaluation as one HTML file that needs nothing else, with the worst and the median frames."""

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from wardpose.client.scoring.evaluate import Measured
from wardpose.shared.data.crops import box_to_affine, transform, warp
from wardpose.shared.data.records import PoseDataset
from wardpose.shared.files import ASKED_FOR, write_text
from wardpose.shared.pose.drawing import draw_skeleton
from wardpose.shared.pose.intervals import Interval

_HEIGHT, _WIDTH = 320, 240


def write_page(path: Path, measured: Measured, dataset: PoseDataset) -> None:
    """Write the page, replaced atomically; frames are those of the data set, so it stays where they are."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1] / "templates"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["figure"] = _figure
    environment.filters["range"] = _range
    report = measured.report
    html = environment.get_template("evaluation.html").render(
        report=report,
        worst=[_picture(measured, dataset, row) for row in report.worst],
        median=[_picture(measured, dataset, row) for row in report.median],
    )
    write_text(path, html, mode=ASKED_FOR)


def _picture(measured: Measured, dataset: PoseDataset, row: int) -> dict[str, Any]:
    """Crop a record; labels are drawn thin in white, predictions in colours."""
    record, frame = dataset.record(row), dataset.frame(row)
    affine = box_to_affine(record.box, (_HEIGHT, _WIDTH))
    crop = warp(frame, affine, (_HEIGHT, _WIDTH))
    skeleton = dataset.skeleton
    crop = draw_skeleton(
        crop, transform(record.joints, affine), record.visibility, skeleton, thickness=2, colour=(255, 255, 255)
    )
    crop = draw_skeleton(crop, transform(measured.joints[row], affine), np.ones(len(skeleton)), skeleton, thickness=2)
    _, content = cv2.imencode(".jpg", np.ascontiguousarray(crop[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 80])
    labelled = record.visibility > 0
    apart = np.linalg.norm(measured.joints[row][labelled] - record.joints[labelled], axis=-1) / record.scale
    return {
        "data": base64.b64encode(bytes(content)).decode(),
        "name": record.record_id,
        "patient": record.patient_id,
        "error": float(apart.mean()) if labelled.any() else float("nan"),
        "confidence": float(measured.scores[row].mean()),
    }


def _figure(value: float | Interval) -> str:
    number = value.value if isinstance(value, Interval) else value
    return "-" if number is None or not np.isfinite(number) else f"{number:.3f}"


def _range(value: Interval) -> str:
    return "" if not np.isfinite(value.low) else f"{value.low:.3f} to {value.high:.3f}"
