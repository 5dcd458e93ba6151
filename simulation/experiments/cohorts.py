"""What every experiment starts from: a plan's private people pooled, dealt to sites, and scored from features."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from wardpose.shared.config import FederationConfig, PartitionConfig
from wardpose.shared.data.crops import box_to_affine, invert, transform
from wardpose.shared.data.dataset import ListDataset, concatenate
from wardpose.shared.data.records import PoseDataset
from wardpose.shared.data.source import open_source
from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.evaluation import Scores, score
from wardpose.shared.skeleton import get_skeleton
from wardpose.shared.training.cache import Rows
from wardpose.shared.training.cohort import CohortData, index_units, load_bags
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.vectors import Vector
from wardpose.simulation.partition import partition


def private_people(plan: FederationConfig) -> ListDataset:
    """Return all private data of a plan, pooled.

    Raises:
        ConfigError: there are none.

    """
    skeleton = get_skeleton(plan.model.skeleton)
    sources = [entry.data for entry in plan.sites if entry.data is not None]
    if plan.data.private is not None:
        sources.append(plan.data.private)
    if not sources:
        raise ConfigError("data.private: missing, and no site has data (the experiment pools what there is)")
    return concatenate([open_source(source, skeleton=skeleton) for source in sources])


def deal(dataset: PoseDataset, pooled: CohortData, sites: int, seed: int) -> list[CohortData]:
    """Deal the people to sites; all of them share the pooled rows."""
    dealt = partition(dataset, PartitionConfig(seed=seed), sites)
    everybody = {dataset.record(index).patient_id for index in range(len(dataset))}
    members = [{dataset.record(index).patient_id for index in indices} for indices in dealt]
    unit = pooled.units.unit
    return [replace(pooled, units=index_units(dataset, unit=unit, without=everybody - own)) for own in members]


def score_rows(engine: UnitGradients, parameters: Vector, rows: Rows, dataset: PoseDataset) -> Scores:
    """Score weights on the plain crops of a data set, from their features; as `pose.evaluation.evaluate` does."""
    size = engine.config.input_size
    joints = []
    for start in range(0, len(rows), 64):
        ids: Sequence[int] = range(start, min(start + 64, len(rows)))
        bags = load_bags(engine, rows, np.array(ids, np.int64)[:, None])
        found = engine.predict(parameters, bags.inputs[:, 0]).cpu().numpy()
        back = [invert(box_to_affine(dataset.record(row).box, size)) for row in ids]
        joints += [transform(points, affine) for points, affine in zip(found, back, strict=True)]
    return score(np.array(joints), dataset)
