"""What the model loses when hospitals share the noise out, when each adds all of it, and when they were one hospital.

At equal epsilon, with the same patients, steps and seeds: `central` is one hospital with everybody; `secure` the sum
over n sites that each add a share, as a plan's defaults scale it (some may be missing, one may collude); `secure,
nobody missing` the same where every site must answer and none colludes; `local` that over n sites that each add all
of it. The masks of secure aggregation cancel exactly (`tests/shared/secure_aggregation`), so the sums are taken
without them.

    python -m wardpose.simulation.experiments.secure_accuracy secure results.json
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wardpose.server.initial import initial_model
from wardpose.server.scoring import Scorer, arrays_of
from wardpose.shared.config import FederationConfig, PartitionConfig, SecureConfig, find_federation, load_federation
from wardpose.shared.data.dataset import concatenate
from wardpose.shared.data.records import PoseDataset
from wardpose.shared.data.source import open_source
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import write_json
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.privacy.accounting import calibrate
from wardpose.shared.privacy.distributed import DistributedNoise
from wardpose.shared.privacy.filters import COURSE_SHARE
from wardpose.shared.privacy.mechanisms import Mechanism, with_values
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.shared.skeleton import get_skeleton
from wardpose.shared.training.cohort import CohortData, build_cohort, index_units
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.local import apply_sum
from wardpose.shared.training.step import StepGradient, expected_batch_size
from wardpose.shared.vectors import map_vector
from wardpose.simulation.partition import partition


def all_of_it(sites: int) -> DistributedNoise:
    """Return what makes each site's own share all the noise: everybody else colludes."""
    return DistributedNoise(sites=sites, minimum_survivors=sites, colluding=sites - 1)


def measure(
    plan: FederationConfig, *, sites: Sequence[int] = (4, 10), seeds: Sequence[int] = (1, 2, 3)
) -> dict[str, Any]:
    """Train every variant with every seed.

    Returns:
        `rows` of `variant`, `sites`, `seed`, `score`, and the untrained `before`; `noise_multiplier` and `epsilon`.

    """
    dataset = _private(plan)
    sigma = calibrate(
        epsilon=plan.privacy.epsilon,
        delta=COURSE_SHARE * plan.privacy.delta,
        sample_rate=plan.mechanism.sample_rate,
        steps=plan.rounds,
        noise="distributed-discrete-gaussian",
    )
    with tempfile.TemporaryDirectory() as folder:
        model = initial_model(plan, Path(folder), reuse=False)
    scorer, start = Scorer(plan, model), arrays_of(model)
    pooled = build_cohort(dataset, model, plan.mechanism, plan.training)
    variants = [("central", 1, all_of_it(1))]
    for count in sites:
        everybody = SecureConfig(minimum_survivors=count, colluding=0)
        variants += [
            ("secure, nobody missing", count, everybody.noise(count)),
            ("secure", count, SecureConfig().noise(count)),
            ("local", count, all_of_it(count)),
        ]
    rows = []
    for seed in seeds:
        for variant, count, noise in variants:
            model.load_state_dict({name: torch.from_numpy(value) for name, value in start.items()})
            mechanism = with_values(plan.mechanism, noise_multiplier=sigma, distributed=noise)
            trained = _train(plan, model, _split(dataset, pooled, count, seed), mechanism, seed)
            score = (scorer.test(start | trained) or {}).get("score")
            rows.append({"variant": variant, "sites": count, "seed": seed, "score": score})
    before = (scorer.test(start) or {}).get("score")
    return {"rows": rows, "before": before, "noise_multiplier": sigma, "epsilon": plan.privacy.epsilon}


def _private(plan: FederationConfig) -> PoseDataset:
    """Return all private data of a plan, pooled."""
    skeleton = get_skeleton(plan.model.skeleton)
    sources = [entry.data for entry in plan.sites if entry.data is not None]
    if plan.data.private is not None:
        sources.append(plan.data.private)
    if not sources:
        raise ConfigError("data.private: missing, and no site has data (the experiment pools what there is)")
    return concatenate([open_source(source, skeleton=skeleton) for source in sources])


def _split(dataset: PoseDataset, pooled: CohortData, sites: int, seed: int) -> list[CohortData]:
    """Deal the patients to sites; all of them share the pooled rows."""
    dealt = partition(dataset, PartitionConfig(seed=seed), sites)
    everybody = {dataset.record(index).patient_id for index in range(len(dataset))}
    members = [{dataset.record(index).patient_id for index in indices} for indices in dealt]
    return [replace(pooled, units=index_units(dataset, without=everybody - own)) for own in members]


def _train(
    plan: FederationConfig, model: PoseModel, cohorts: Sequence[CohortData], mechanism: Mechanism, seed: int
) -> dict[str, Any]:
    """Take the plan's rounds, one step each; returns the trained weights by name."""
    engine = UnitGradients(model, plan.training.strategy)
    weights = engine.parameters()
    steps = [
        StepGradient(
            engine, cohort, mechanism, streams=seeded_streams(1000 * seed + site), declared_units=len(cohort.units)
        )
        for site, cohort in enumerate(cohorts)
    ]
    expected = sum(expected_batch_size(mechanism, len(cohort.units)) for cohort in cohorts)
    for _ in range(plan.rounds):
        shares = [step.share(weights, sites=len(cohorts)) for step in steps]
        total = torch.from_numpy(np.sum([share.numpy() for share in shares], axis=0))
        update = apply_sum(weights, total, mechanism, plan.training, expected=expected)
        weights = map_vector(torch.add, weights, update)
    return {name: value.numpy() for name, value in weights.items()}


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a PNG of the scores: a point each, and the mean of each variant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    variants = list(dict.fromkeys((row["variant"], row["sites"]) for row in result["rows"]))
    for place, variant in enumerate(variants):
        scores = [row["score"] for row in result["rows"] if (row["variant"], row["sites"]) == variant]
        axes.plot([place] * len(scores), scores, "o", color="#1f6f8b", alpha=0.5)
        axes.plot([place - 0.2, place + 0.2], [np.mean(scores)] * 2, color="#1f6f8b")
    axes.axhline(result["before"], linestyle=":", color="grey", label="before")
    axes.set_xticks(range(len(variants)), [f"{name}, {count}" for name, count in variants])
    axes.set_ylabel("score")
    axes.set_title(f"epsilon {result['epsilon']:g}, sigma {result['noise_multiplier']:g}")
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    found = measure(load_federation(find_federation(sys.argv[1])))
    write_json(Path(sys.argv[2]), found)
    draw(found, Path(sys.argv[2]).with_suffix(".png"))
    sys.stdout.write(json.dumps(found) + "\n")
