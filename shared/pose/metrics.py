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
        reference: (N,) pixels; NaN or not above 0 where unknown.

    Returns:
        (N, J); NaN where the joint is not labelled or the reference unknown, infinite where the prediction is not
        finite.

    """
    length = np.asarray(reference, np.float64)[:, None]
    known = (np.asarray(visibility) > 0) & (np.nan_to_num(length) > 0)
    guess = np.asarray(predicted, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
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
    names = [str(i) for i in range(len(np.asarray(joints)))] if images is None else list(images)
    ids = {name: i + 1 for i, name in enumerate(dict.fromkeys(names))}
    truth, guesses = np.asarray(joints, np.float64), np.asarray(predicted, np.float64)
    marks = np.asarray(visibility)
    annotations, results = [], []
    for i, name in enumerate(names):
        common = {"image_id": ids[name], "category_id": 1}
        labelled = marks[i] > 0
        annotations.append(common | {
            "id": i + 1,
            "keypoints": _flat(np.where(labelled[:, None], truth[i], 0.0), marks[i]),
            "num_keypoints": int(labelled.sum()),
            "bbox": [float(value) for value in np.asarray(boxes)[i]],
            "area": float(np.asarray(areas)[i]),
            "iscrowd": 0,
        })  # fmt: skip
        results.append(common | {
            "keypoints": _flat(guesses[i], np.ones(len(skeleton))),
            "score": float(np.asarray(scores)[i]),
        })  # fmt: skip
    ground_truth = {
        "images": [{"id": number} for number in ids.values()],
        "categories": [{"id": 1, "name": "person", "keypoints": list(skeleton.joints)}],
        "annotations": annotations,
    }
    return oks_ap_of_coco(ground_truth, results, skeleton)


def oks_ap_of_coco(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], skeleton: Skeleton
) -> dict[str, float]:
    """Average precision of a COCO results list against a COCO keypoint annotation file, both as read from JSON.

    Args:
        ground_truth: annotations; entries with `iscrowd` 1 or without a labelled joint are ignored, as COCO does.
        results: detections with `image_id`, `category_id`, `keypoints` and `score`.
        skeleton: layout of both.

    Returns:
        As `oks_ap`.

    """
    names = ("AP", "AP50", "AP75", "AP_M", "AP_L", "AR")
    if not ground_truth["annotations"] or not results:
        return dict.fromkeys(names, -1.0)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints; standard output belongs to the commands
        truth = COCO()
        truth.dataset = {key: list(value) for key, value in ground_truth.items() if isinstance(value, list)}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(result) for result in results]), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(skeleton.oks_sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(names, map(float, evaluation.stats[:6]), strict=True))


def _flat(points: NDArray[np.float64], marks: NDArray[Any]) -> list[float]:
    triples: list[float] = np.concatenate([points, marks[:, None]], axis=1).ravel().tolist()
    return triples
