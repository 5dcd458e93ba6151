"""Scores on a cohort's patients: from networks and frames to the one noised vector that may leave."""

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from wardpose.shared.data import crops
from wardpose.shared.data.records import PoseDataset, PoseRecord
from wardpose.shared.pose import metrics
from wardpose.shared.pose.codec import SimCC
from wardpose.shared.pose.loss import simcc_loss
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.privacy.clipping import ClipSum, add_noise
from wardpose.shared.privacy.evaluation import CLIP, Evaluation, Layout, chosen_rows, unit_vector
from wardpose.shared.privacy.noise import RandomStream
from wardpose.shared.privacy.units import UnitIndex
from wardpose.shared.vectors import Vector, map_vector

THRESHOLDS = {"pck@0.2": 0.2, "pckh@0.5": 0.5}

_NAME = "scores"


def candidates(model: PoseModel, weights: Sequence[Mapping[str, NDArray[np.float32]]]) -> list[PoseModel]:
    """Return one network for each set of weights; the first is `model` itself, which gets the first weights."""
    models = [model, *(copy.deepcopy(model) for _ in weights[1:])]
    for each, arrays in zip(models, weights, strict=True):
        each.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, strict=True)
    return models


def noised_scores(
    models: Sequence[PoseModel],
    dataset: PoseDataset,
    units: UnitIndex,
    evaluation: Evaluation,
    *,
    discrete: bool,
    stream: RandomStream,
) -> NDArray[np.float64]:
    """Release the scores of one network, or of two side by side, over all units of a cohort.

    Args:
        models: one or two, of one configuration and on one device.
        dataset: the cohort's records.
        units: which records are whose.
        evaluation: metric, noise, frames.
        discrete: noise on the integer grid.
        stream: the site's noise stream.

    Returns:
        (D,) as `Layout` says, scaled, noised.

    Raises:
        DataError: a frame cannot be read.

    """
    total, query = _sum(models, dataset, units, evaluation, discrete=discrete)
    return np.asarray(add_noise(total, query, evaluation.noise_multiplier, stream)[_NAME].numpy())


def _sum(
    models: Sequence[PoseModel], dataset: PoseDataset, units: UnitIndex, evaluation: Evaluation, *, discrete: bool
) -> tuple[Vector, ClipSum]:
    """Sum the units' bounded vectors; not private yet."""
    layout = Layout(joints=len(dataset.skeleton), pair=len(models) > 1)
    query = ClipSum(CLIP, {_NAME: torch.zeros(layout.size)}, discrete)
    total = query.zero()
    for unit in range(len(units)):
        vector = score_unit(models, dataset, chosen_rows(units.rows(unit), evaluation.frames), evaluation, layout)
        bounded = query({_NAME: torch.from_numpy(vector)[None]})
        total = map_vector(torch.add, total, bounded)
    return total, query


def score_unit(
    models: Sequence[PoseModel],
    dataset: PoseDataset,
    rows: NDArray[np.int64],
    evaluation: Evaluation,
    layout: Layout,
) -> NDArray[np.float64]:
    """Return the contribution (D,) of the unit that has these records: a function of them and the weights alone.

    A forward pass holds this unit's frames and nothing else, so that no other unit can move a last bit of it.
    """
    device = next(models[0].parameters()).device
    batch = [crops.crop_record(dataset, int(row), models[0].config.input_size) for row in rows]
    records = [dataset.record(int(row)) for row in rows]
    pixels = crops.to_tensor(torch.from_numpy(np.stack([crop.image for crop in batch])).to(device))
    joints = torch.from_numpy(np.stack([crop.joints for crop in batch])).to(device)
    visibility = torch.from_numpy(np.stack([crop.visibility for crop in batch])).to(device)
    codec = SimCC.of(models[0].config)
    errors, losses = [], []
    for model in models:
        with torch.inference_mode():
            logits_x, logits_y = model(pixels)
            in_crop, _ = codec.decode(logits_x, logits_y)
            losses.append(simcc_loss(logits_x, logits_y, joints, visibility, codec).cpu().numpy())
        points = np.stack(
            [
                crops.transform(point, crops.invert(crop.affine))
                for point, crop in zip(in_crop.cpu().numpy(), batch, strict=True)
            ]
        )
        errors.append(_errors(points, records, evaluation))
    relative = np.stack(errors)  # (M, F, J)
    return unit_vector(
        layout,
        right=relative <= THRESHOLDS[evaluation.metric],
        labelled=~np.isnan(relative[0]),
        losses=np.stack(losses),
        loss_clip=evaluation.loss_clip,
    )


def _errors(points: NDArray[np.floating], records: Sequence[PoseRecord], evaluation: Evaluation) -> NDArray[np.float64]:
    """Relative errors (F, J); NaN where a joint, or the length that it is measured by, is not labelled."""
    box = evaluation.metric == "pck@0.2"
    lengths = [record.scale if box else (record.head_size or np.nan) for record in records]
    return metrics.relative_errors(
        points,
        np.array([record.joints for record in records]),
        np.array([record.visibility for record in records]),
        lengths,
    )
