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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wardpose.server.initial import initial_model
from wardpose.server.scoring import Scorer, arrays_of
from wardpose.shared.config import FederationConfig, SecureConfig, find_federation, load_federation
from wardpose.shared.files import write_json
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.privacy.accounting import calibrate
from wardpose.shared.privacy.distributed import DistributedNoise
from wardpose.shared.privacy.filters import COURSE_SHARE
from wardpose.shared.privacy.mechanisms import Mechanism, with_values
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.shared.training.cohort import CohortData, build_cohort
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.local import apply_sum
from wardpose.shared.training.step import StepGradient, expected_batch_size
from wardpose.shared.vectors import map_vector
from wardpose.simulation.experiments.cohorts import deal, private_people

ALL_OF_IT = DistributedNoise(minimum_survivors=1, colluding=0)
"""Each site's own share is all the noise."""


def measure(
    plan: FederationConfig, *, sites: Sequence[int] = (4, 10), seeds: Sequence[int] = (1, 2, 3)
) -> dict[str, Any]:
    """Train every variant with every seed.

    Returns:
        `rows` of `variant`, `sites`, `seed`, `score`, and the untrained `before`; `noise_multiplier` and `epsilon`.

    """
    dataset = private_people(plan)
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
    variants = [("central", 1, ALL_OF_IT)]
    for count in sites:
        everybody = SecureConfig(minimum_survivors=count, colluding=0)
        variants += [
            ("secure, nobody missing", count, everybody.noise(count)),
            ("secure", count, SecureConfig().noise(count)),
            ("local", count, ALL_OF_IT),
        ]
    rows = []
    for seed in seeds:
        for variant, count, noise in variants:
            model.load_state_dict({name: torch.from_numpy(value) for name, value in start.items()})
            mechanism = with_values(plan.mechanism, noise_multiplier=sigma, distributed=noise)
            trained = _train(plan, model, deal(dataset, pooled, count, seed), mechanism, seed)
            score = (scorer.test(start | trained) or {}).get("score")
            rows.append({"variant": variant, "sites": count, "seed": seed, "score": score})
    before = (scorer.test(start) or {}).get("score")
    return {"rows": rows, "before": before, "noise_multiplier": sigma, "epsilon": plan.privacy.epsilon}


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
