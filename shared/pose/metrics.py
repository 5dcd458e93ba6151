"""Scores of predicted joints: PCK, PCKh with its area under the curve, and OKS average precision.

Everything is an average over labelled joints, so a record with more labelled joints weighs more, as in the official
scripts of MPII and LSP. A joint is correct when its error is at most `threshold` times a reference length: the long
side of the box (PCK@a), the torso (PCK@a of FLIC and LSP) or the head (PCKh; MPII's 0.6 of the head box's diagonal).
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from wardpose.shared.pose import coco_json
from wardpose.shared.skeleton import Skeleton

AUC_THRESHOLDS = np.linspace(0.0, 0.5, 51)
"""Thresholds of the PCKh curve that the area is taken under."""

PCKH_EXCLUDED = ("pelvis", "thorax")
"""Joints that MPII's own mean leaves out."""


def relative_errors(
    predicted: ArrayLike, joints: ArrayLike, visibility: ArrayLike, reference: ArrayLike
) -> NDArray[np.float64]:
    """Distance of each predicted joint in units of its record's reference length.

    Args:
        predicted: (N, J, 2) pixels.
        joints: (N, J, 2) pixels.
        visibility: (N, J), labelled where above 0.
        reference: (N,) pixels; not finite or not above 0 where unknown.

    Returns:
        (N, J); NaN where the joint is not labelled or the reference unknown, infinite where the prediction is not
        finite.

    """
    length = np.asarray(reference, np.float64)[:, None]
    known = (np.asarray(visibility) > 0) & np.isfinite(length) & (length > 0)
    guess = np.asarray(predicted, np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        error = np.linalg.norm(guess - np.asarray(joints, np.float64), axis=-1) / length
    error = np.where(np.isfinite(guess).all(axis=-1), error, np.inf)
    return np.where(known, error, np.nan)


def share_correct(errors: NDArray[np.float64], threshold: float) -> float:
    """Share of the labelled joints whose relative error is at most `threshold`; NaN when none is labelled."""
    labelled = ~np.isnan(errors)
    total = int(labelled.sum())
    return float((errors[labelled] <= threshold).sum() / total) if total else float("nan")


def per_joint(errors: NDArray[np.float64], threshold: float, skeleton: Skeleton) -> dict[str, float]:
    """`share_correct` of each joint (columns of `errors`), by name; NaN for a joint that is never labelled."""
    return {name: share_correct(errors[:, i], threshold) for i, name in enumerate(skeleton.joints)}


def area_under_curve(errors: NDArray[np.float64], thresholds: NDArray[np.float64] = AUC_THRESHOLDS) -> float:
    """Mean of `share_correct` over evenly spaced thresholds; of PCKh errors, MPII's AUC."""
    return float(np.mean([share_correct(errors, float(threshold)) for threshold in thresholds]))


def pckh_columns(skeleton: Skeleton) -> NDArray[np.int64]:
    """Return the indices of the joints that count in the mean PCKh."""
    return np.array([i for i, name in enumerate(skeleton.joints) if name not in PCKH_EXCLUDED])


def torso_lengths(joints: ArrayLike, visibility: ArrayLike, skeleton: Skeleton) -> NDArray[np.float64]:
    """(N,) distance from left shoulder to right hip in pixels; NaN where either is not labelled."""
    ends = [skeleton.index("left_shoulder"), skeleton.index("right_hip")]
    points = np.asarray(joints, np.float64)[:, ends]
    labelled = (np.asarray(visibility)[:, ends] > 0).all(axis=1)
    return np.where(labelled, np.linalg.norm(points[:, 0] - points[:, 1], axis=-1), np.nan)


def oks_ap(
    predicted: ArrayLike,
    scores: ArrayLike,
    joints: ArrayLike,
    visibility: ArrayLike,
    *,
    boxes: ArrayLike,
    areas: ArrayLike,
    skeleton: Skeleton,
    images: Sequence[str] | None = None,
) -> dict[str, float]:
    """COCO's average precision by object keypoint similarity, computed by pycocotools.

    Args:
        predicted: (N, J, 2) pixels, one prediction per record.
        scores: (N,) confidence; orders the predictions.
        joints: (N, J, 2) pixels.
        visibility: (N, J) COCO's values.
        boxes: (N, 4) x, y, width, height in pixels.
        areas: (N,) square pixels.
        skeleton: gives the sigmas of the joints.
        images: (N,) which image each record is in; absent, every record is its own image.

    Returns:
        `AP`, `AP50`, `AP75`, `AP_M`, `AP_L`, `AR`; -1 where no record counts (COCO's convention).

    """
    names = list(range(len(np.asarray(joints)))) if images is None else list(images)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    marks = np.asarray(visibility, np.float64)
    sure = np.asarray(scores, np.float64)
    sure = np.where(np.isfinite(sure), sure, np.min(sure, where=np.isfinite(sure), initial=0.0) - 1)
    annotations = [
        {
            "image_id": numbers[name],
            "keypoints": _triples(point, mark),
            "bbox": [float(v) for v in box],
            "area": float(area),
        }
        for name, point, mark, box, area in zip(
            names, np.asarray(joints, np.float64), marks, np.asarray(boxes), np.asarray(areas), strict=True
        )
    ]
    results = [
        {"image_id": numbers[name], "keypoints": _triples(point, np.ones(len(skeleton))), "score": float(score)}
        for name, point, score in zip(names, np.asarray(predicted, np.float64), sure, strict=True)
    ]
    return oks_ap_of_coco({"annotations": annotations}, results, skeleton)


def oks_ap_of_coco(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], skeleton: Skeleton
) -> dict[str, float]:
    """Average precision of a COCO results list against a COCO keypoint annotation file, both as read from JSON.

    See `coco_json` for what is understood and what is refused; what pycocotools takes as it is scores the same.

    Args:
        ground_truth: annotations; entries with `iscrowd` 1 or without a labelled joint are ignored, as COCO does.
        results: detections with `image_id`, `keypoints` and, unless all are equally sure, `score`.
        skeleton: layout of both.

    Returns:
        As `oks_ap`.

    Raises:
        DataError: names the entry, the key, the value and what is allowed.

    """
    people, images = coco_json.people(ground_truth, skeleton)
    detections = coco_json.detections(results, people, images, skeleton)
    names = ("AP", "AP50", "AP75", "AP_M", "AP_L", "AR")
    if not people:
        return dict.fromkeys(names, -1.0)
    common = {
        "images": [{"id": number} for number in sorted(set(images.values()))],
        "categories": [{"id": category} for category in sorted({entry["category_id"] for entry in people})],
    }
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints; standard output belongs to the commands
        evaluation = COCOeval(_indexed(common, people), _indexed(common, detections), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(skeleton.oks_sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(names, map(float, evaluation.stats[:6]), strict=True))


def _indexed(common: dict[str, Any], annotations: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {**common, "annotations": annotations}
    coco.createIndex()
    return coco


def _triples(points: NDArray[np.float64], marks: NDArray[np.float64]) -> list[list[float]]:
    rows: list[list[float]] = np.concatenate([points, marks[:, None]], axis=1).tolist()
    return rows
