"""What the model loses when hospitals share the noise out, when each adds all of it, and when they were one hospital.

At equal epsilon, with the same people, steps and seeds: `central` is one hospital with everybody; `secure` the sum over
n sites that each add a share, by a plan's defaults (a fifth may be missing, one may collude), when all of them survive;
`secure, none colluding` the same where no site is held to be in league with the server; `local` that over n sites that
each add all of it; `no noise` clips only. Masks and superfluous noise cancel exactly
(`tests/shared/secure_aggregation`), so the sums are taken without them.

Weights follow the sums by momentum and a cosine, which are post-processing.

    python -m wardpose.simulation.experiments.secure_accuracy START.safetensors [PEOPLE]

writes `results/secure_accuracy.json` and `.png` here; what is there is not run again.
"""

import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wardpose.server.initial import initial_model
from wardpose.server.scoring import open_all
from wardpose.shared.config import (
    FederationConfig,
    SecureConfig,
    changed,
    load_federation,
    wardpose_home,
)
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import write_json
from wardpose.shared.pose.weights import state_hash
from wardpose.shared.privacy.accounting import calibrate
from wardpose.shared.privacy.distributed import DistributedNoise
from wardpose.shared.privacy.filters import COURSE_SHARE
from wardpose.shared.privacy.mechanisms import with_values
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.shared.training.cache import build_rows
from wardpose.shared.training.cohort import build_cohort
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.local import apply_sum
from wardpose.shared.training.step import StepGradient, expected_batch_size
from wardpose.shared.vectors import Vector, map_vector
from wardpose.simulation.experiments.cohorts import deal, private_people, score_rows

PLAN = Path(__file__).with_suffix(".yaml")
RESULTS = Path(__file__).parent / "results" / "secure_accuracy.json"
MOMENTUM = 0.9

CENTRAL, SECURE, TRUSTING, LOCAL = "central", "secure", "secure, none colluding", "local"


def variants(sites: Sequence[int]) -> list[tuple[str, int, DistributedNoise]]:
    """Return what is compared: its name, its sites, and how they share the noise out."""
    found = [(CENTRAL, 1, all_of_it(1))]
    for count in sites:
        found += [
            (SECURE, count, SecureConfig().noise(count)),
            (TRUSTING, count, SecureConfig(colluding=0).noise(count)),
            (LOCAL, count, all_of_it(count)),
        ]
    return found


def all_of_it(sites: int) -> DistributedNoise:
    """Return what makes each site's own share all the noise: everybody else colludes."""
    return DistributedNoise(sites=sites, minimum_survivors=sites, colluding=sites - 1)


class Comparison:
    """One plan's people and start, from which every variant is trained.

    Args:
        plan: the plan.
        people: units that are dealt to the hospitals, the first of the data set; all when absent.
        cache: folder where the people's features are kept.

    Attributes:
        plan: its rounds are steps of everybody together.
        before: score of the start, which is free.
        start: hash of its weights.

    """

    def __init__(self, plan: FederationConfig, *, people: int | None = None, cache: Path) -> None:
        self.plan = plan
        strategy = plan.training.strategy
        with tempfile.TemporaryDirectory() as folder:
            model = initial_model(plan, Path(folder), reuse=False)
        private = private_people(plan)
        self._people = private.select(range(min(people or len(private), len(private))))
        test = open_all(plan.data.test, plan.model.skeleton)
        if test is None:
            raise ConfigError("data.test: missing (the experiment scores on it)")
        self._test = test
        self.start = state_hash(model)
        self._pooled = build_cohort(self._people, model, plan.mechanism, plan.training, cache_folder=cache)
        self._rows, _ = build_rows(test, model, strategy, folder=cache)
        self._engine = UnitGradients(model, strategy)
        self.before = self._score(self._engine.parameters())

    @property
    def people(self) -> int:
        """Return how many units the hospitals have together."""
        return len(self._pooled.units)

    def noise_multiplier(self, epsilon: float) -> float:
        """Return the sigma of every step under which all of them together cost epsilon."""
        return calibrate(
            epsilon=epsilon,
            delta=COURSE_SHARE * self.plan.privacy.delta,
            sample_rate=self.plan.mechanism.sample_rate,
            steps=self.plan.rounds,
            noise="distributed-discrete-gaussian",
        )

    def train(self, sites: int, noise: DistributedNoise, sigma: float, seed: int) -> float:
        """Take the plan's rounds, one step each, from the start; returns the test score."""
        mechanism = with_values(self.plan.mechanism, noise_multiplier=sigma, distributed=noise)
        engine = self._engine
        weights = engine.parameters()
        cohorts = deal(self._people, self._pooled, sites, seed)
        steps = [
            StepGradient(
                engine, cohort, mechanism, streams=seeded_streams(1000 * seed + site), declared_units=len(cohort.units)
            )
            for site, cohort in enumerate(cohorts)
        ]
        expected = sum(expected_batch_size(mechanism, len(cohort.units)) for cohort in cohorts)
        velocity = map_vector(torch.zeros_like, weights)
        for number in range(self.plan.rounds):
            shares = [step.share(weights, sites=sites) for step in steps]
            total = torch.stack(shares).sum(0)
            update = apply_sum(weights, total, mechanism, self.plan.training, expected=expected)
            rate = (1 + math.cos(math.pi * number / self.plan.rounds)) / 2
            velocity = map_vector(lambda value, new: MOMENTUM * value + new, velocity, update)
            weights = map_vector(lambda value, change, by=rate: value + by * change, weights, velocity)
        return self._score(weights)

    def _score(self, weights: Vector) -> float:
        scores = score_rows(self._engine, weights, self._rows, self._test)
        return {"pck@0.2": scores.pck_box_02, "pckh@0.5": scores.pckh_05}[self.plan.server.score] or 0.0


def measure(
    plan: FederationConfig,
    *,
    sites: Sequence[int] = (4, 10),
    epsilons: Sequence[float] = (0.8, 2.0),
    seeds: Sequence[int] = (1, 2, 3),
    people: int | None = None,
    path: Path | None = None,
) -> dict[str, Any]:
    """Train every variant at every epsilon with every seed, and once without noise.

    Args:
        plan: people, start, steps, clip norm and learning rate.
        sites: numbers of them.
        epsilons: each at the plan's delta.
        seeds: of partition, coins and noise.
        people: how many of the plan's people are dealt out; all when absent.
        path: where rows are kept as they come, and taken from.

    Returns:
        `rows` of `variant`, `sites`, `epsilon`, `noise_multiplier`, `seed`, `score`; and the untrained `before`.

    """
    result: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.exists() else {"rows": []}
    known = {(row["variant"], row["sites"], row["epsilon"], row["seed"]) for row in result["rows"]}
    comparison = Comparison(plan, people=people, cache=wardpose_home() / "experiments" / "secure")
    described = {
        "before": comparison.before,
        "start": comparison.start,
        "delta": plan.privacy.delta,
        "steps": plan.rounds,
        "mechanism": plan.mechanism.model_dump(mode="json"),
        "training": plan.training.model_dump(mode="json"),
        "people": comparison.people,
    }
    if any(result.get(key, value) != value for key, value in described.items()):
        raise ConfigError(f"{path}: holds rows of another plan or start (allowed: remove it)")
    result |= described
    wanted: list[tuple[str, int, DistributedNoise, float | None, int]] = [("no noise", 1, all_of_it(1), None, 0)]
    wanted += [(*one, epsilon, seed) for epsilon in epsilons for seed in seeds for one in variants(sites)]
    for name, count, noise, epsilon, seed in wanted:
        if (name, count, epsilon, seed) in known:
            continue
        sigma = 0.0 if epsilon is None else comparison.noise_multiplier(epsilon)
        row = {"variant": name, "sites": count, "epsilon": epsilon, "noise_multiplier": sigma, "seed": seed}
        result["rows"].append(row | {"score": comparison.train(count, noise, sigma, seed)})
        if path is not None:
            write_json(path, result)
    return result


def table(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return mean and spread of each variant, and whether it is within the spread of `central` at its epsilon.

    Within: its mean is no further below that of `central` than the two spreads together (standard deviations over the
    seeds).
    """
    scores: dict[tuple[float, str, int], list[float]] = {}
    for row in result["rows"]:
        if row["epsilon"] is not None:
            scores.setdefault((row["epsilon"], row["variant"], row["sites"]), []).append(row["score"])
    found = []
    for (epsilon, variant, sites), values in scores.items():
        central = scores.get((epsilon, CENTRAL, 1), values)
        spread = [float(np.std(some, ddof=1)) if len(some) > 1 else 0.0 for some in (values, central)]
        mean = float(np.mean(values))
        found.append(
            {
                "epsilon": epsilon,
                "variant": variant,
                "sites": sites,
                "seeds": len(values),
                "mean": round(mean, 4),
                "spread": round(spread[0], 4),
                "within": bool(mean >= float(np.mean(central)) - math.hypot(*spread)),
            }
        )
    return found


def draw(result: dict[str, Any], path: Path) -> None:
    """Write a PNG of the scores, a panel for each epsilon: a point each, and the mean of each variant."""
    from matplotlib.figure import Figure

    rows = [row for row in result["rows"] if row["epsilon"] is not None]
    epsilons = sorted({row["epsilon"] for row in rows})
    figure = Figure(figsize=(1 + 5 * len(epsilons), 3.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(epsilons), sharey=True))
    for axes, epsilon in zip(panels, epsilons, strict=True):
        here = [row for row in rows if row["epsilon"] == epsilon]
        names = list(dict.fromkeys((row["variant"], row["sites"]) for row in here))
        for place, variant in enumerate(names):
            scores = [row["score"] for row in here if (row["variant"], row["sites"]) == variant]
            axes.plot([place] * len(scores), scores, "o", color="#1f6f8b", alpha=0.5)
            axes.plot([place - 0.2, place + 0.2], [np.mean(scores)] * 2, color="#1f6f8b")
        axes.axhline(result["before"], linestyle=":", color="grey", label="free")
        for row in result["rows"]:
            if row["epsilon"] is None:
                axes.axhline(row["score"], linestyle="--", color="grey", label=row["variant"])
        labels = [f"{name}\n{count} sites" if count > 1 else name for name, count in names]
        axes.set_xticks(range(len(names)), labels, rotation=60, fontsize=7)
        axes.set_title(f"epsilon {epsilon:g}, sigma {here[0]['noise_multiplier']:.3g}")
    panels[0].set_ylabel("score")
    panels[-1].legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    RESULTS.parent.mkdir(exist_ok=True)
    plan = load_federation(PLAN)
    start = plan.model.model_copy(update={"weights": str(Path(sys.argv[1]).absolute())})
    number = int(sys.argv[2]) if len(sys.argv) > 2 else None
    measured = measure(changed(plan, {"model": start.model_dump()}), people=number, path=RESULTS)
    write_json(RESULTS, measured | {"table": table(measured)})
    draw(measured, RESULTS.with_suffix(".png"))
    for line in table(measured):
        sys.stdout.write(json.dumps(line) + "\n")
