"""From a model and a data set to predicted joints in frame pixels, and to the numbers that a table shows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wardpose.shared.data.records import PoseDataset
from wardpose.shared.errors import DataError
from wardpose.shared.pose import metrics
from wardpose.shared.pose.estimators import TorchEstimator, estimate_records
from wardpose.shared.pose.model import PoseModel


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How good predictions are; shares from 0 to 1, NaN where nothing is labelled.

    Attributes:
        records: number of records scored.
        pck_box_02: joints within 0.2 of the box's long side.
        pck_torso_02: joints within 0.2 of the torso, over records whose torso is labelled.
        pckh_05: joints within 0.5 of the head size; `None` when no record has one.
        pckh_01: the same within 0.1.
        auc: area under the PCKh curve from 0 to 0.5.
        per_joint: `pck_box_02` of each joint.
        per_joint_pckh: `pckh_05` of each joint, or `None`.
        by_group: `pck_box_02` of each named group of records.
        by_group_pckh: `pckh_05` of each, or `None`.
        oks_ap: COCO's average precision, one person per image; `None` unless asked for.

    """

    records: int
    pck_box_02: float
    pck_torso_02: float
    pckh_05: float | None
    pckh_01: float | None
    auc: float | None
    per_joint: dict[str, float]
    per_joint_pckh: dict[str, float] | None
    by_group: dict[str, float]
    by_group_pckh: dict[str, float] | None
    oks_ap: dict[str, float] | None = None


def predict(
    model: PoseModel,
    dataset: PoseDataset,
    *,
    batch_size: int = 32,
    flip_test: bool = False,
    device: str | torch.device = "cpu",
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Predict every record of `dataset` from its box.

    Args:
        model: is moved to `device` and left there.
        dataset: in the model's skeleton.
        batch_size: crops per forward pass.
        flip_test: average the distributions with those of the mirrored crop.
        device: where to compute.

    Returns:
        joints (N, J, 2) in frame pixels and scores (N, J) from 0 to 1.

    Raises:
        DataError: the data set is in another skeleton, or a frame cannot be read.

    """
    estimator = TorchEstimator(model, device=device, flip_test=flip_test)
    return estimate_records(estimator, dataset, batch_size=batch_size)


def evaluate(
    model: PoseModel,
    dataset: PoseDataset,
    *,
    batch_size: int = 32,
    flip_test: bool = False,
    device: str | torch.device = "cpu",
    with_oks: bool = False,
) -> Scores:
    """Predict and score; arguments and errors as `predict`, `with_oks` adds OKS average precision."""
    joints, confidence = predict(model, dataset, batch_size=batch_size, flip_test=flip_test, device=device)
    return score(joints, dataset, confidence=confidence if with_oks else None)


def score(
    predicted: NDArray[np.floating], dataset: PoseDataset, *, confidence: NDArray[np.floating] | None = None
) -> Scores:
    """Score predictions (N, J, 2) in frame pixels against the labels of `dataset`.

    Args:
        predicted: in the order of the data set.
        dataset: the labels.
        confidence: (N, J); when given, OKS average precision is computed too.

    Raises:
        DataError: the numbers of predictions and records, or of their joints, differ.

    """
    if len(predicted) != len(dataset):
        raise DataError(f"{dataset.name}: {len(predicted)} predictions for {len(dataset)} records")
    skeleton = dataset.skeleton
    if predicted.shape[1:] != (len(skeleton), 2):
        raise DataError(
            f"{dataset.name}: predictions have shape {list(predicted.shape)} (allowed: {len(dataset)} records of "
            f"{len(skeleton)} joints, x and y)"
        )
    records = [dataset.record(i) for i in range(len(dataset))]
    shape = (len(records), len(skeleton))
    joints = np.array([record.joints for record in records]).reshape(*shape, 2)
    visibility = np.array([record.visibility for record in records]).reshape(shape)

    def errors(reference: Any) -> NDArray[np.float64]:
        return metrics.relative_errors(predicted, joints, visibility, reference)

    box = errors(np.array([record.scale for record in records]))
    torso = errors(metrics.torso_lengths(joints, visibility, skeleton))
    head = errors(np.array([record.head_size or np.nan for record in records]))
    with_heads = bool((~np.isnan(head)).any())
    counted = head[:, metrics.pckh_columns(skeleton)]
    groups = np.array([record.group for record in records])
    named = sorted(set(groups.tolist()) - {""})
    return Scores(
        records=len(records),
        pck_box_02=metrics.share_correct(box, 0.2),
        pck_torso_02=metrics.share_correct(torso, 0.2),
        pckh_05=metrics.share_correct(counted, 0.5) if with_heads else None,
        pckh_01=metrics.share_correct(counted, 0.1) if with_heads else None,
        auc=metrics.area_under_curve(counted) if with_heads else None,
        per_joint=metrics.per_joint(box, 0.2, skeleton),
        per_joint_pckh=metrics.per_joint(head, 0.5, skeleton) if with_heads else None,
        by_group={name: metrics.share_correct(box[groups == name], 0.2) for name in named},
        by_group_pckh={name: metrics.share_correct(counted[groups == name], 0.5) for name in named}
        if with_heads
        else None,
        oks_ap=None
        if confidence is None
        else metrics.oks_ap(
            predicted,
            confidence.mean(axis=1),
            joints,
            visibility,
            boxes=[record.box for record in records],
            areas=[record.area for record in records],
            skeleton=skeleton,
        ),
    )
