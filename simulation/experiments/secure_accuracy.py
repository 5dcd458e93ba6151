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

import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from wardpose.server.initial import initial_model
from wardpose.server.scoring import Arrays, arrays_of, load_arrays, open_all
from wardpose.shared.config import (
    FederationConfig,
    PartitionConfig,
    SecureConfig,
    changed,
    load_federation,
    wardpose_home,
)
from wardpose.shared.data import crops as cropping
from wardpose.shared.data.dataset import ListDataset, concatenate
from wardpose.shared.data.source import open_source
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import write_json
from wardpose.shared.pose.codec import SimCC
from wardpose.shared.pose.estimators import Estimates, TorchEstimator, estimate_records
from wardpose.shared.pose.evaluation import score
from wardpose.shared.pose.loss import simcc_loss
from wardpose.shared.pose.model import PoseModel
from wardpose.shared.pose.trainable import Strategy
from wardpose.shared.pose.weights import state_hash
from wardpose.shared.privacy.accounting import calibrate
from wardpose.shared.privacy.distributed import DistributedNoise
from wardpose.shared.privacy.filters import COURSE_SHARE
from wardpose.shared.privacy.mechanisms import with_values
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.shared.skeleton import get_skeleton
from wardpose.shared.training.cohort import CohortData, build_cohort, index_units
from wardpose.shared.training.gradients import Bags, UnitGradients
from wardpose.shared.training.local import apply_sum
from wardpose.shared.training.step import StepGradient, expected_batch_size
from wardpose.shared.vectors import Vector, map_vector
from wardpose.simulation.partition import partition

PLAN = Path(__file__).with_suffix(".yaml")
RESULTS = Path(__file__).parent / "results" / "secure_accuracy.json"
MOMENTUM = 0.9

CENTRAL, SECURE, TRUSTING, LOCAL = "central", "secure", "secure, none colluding", "local"


class MapsGradients(UnitGradients):
    """Gradients of the head's 1x1 convolution, faster than by vmap.

    One backward pass to the maps of a micro-batch; a unit's gradient is the product of its own maps' with its features.
    """

    def __init__(self, model: PoseModel) -> None:
        super().__init__(model, "maps")
        self._head = model.head
        self._targets = SimCC.of(model.config)

    def padded(
        self,
        parameters: Vector,
        bags: Bags,
        size: int,
        *,
        only: tuple[str, ...] | None = None,
        watch: Callable[[torch.Tensor], None] | None = None,
    ) -> Iterator[tuple[Vector, int]]:
        """Yield micro-batches as `UnitGradients.padded` does; the last one is not padded."""
        weight, bias = parameters["head.maps.weight"], parameters["head.maps.bias"]
        for start in range(0, len(bags), size):
            part = bags.units(start, start + size)
            features = part.inputs.flatten(0, 1)  # (U R, C, h, w)
            maps = functional.conv2d(features, weight, bias).requires_grad_()
            tokens = functional.interpolate(maps, self._head.map_size, mode="bilinear", align_corners=True).flatten(2)
            joints, visibility = part.joints.flatten(0, 1), part.visibility.flatten(0, 1)
            losses = simcc_loss(self._head.x(tokens), self._head.y(tokens), joints, visibility, self._targets)
            of_units = losses.reshape(len(part), -1) @ part.weights
            (change,) = torch.autograd.grad(of_units.sum(), maps)
            if watch is not None:
                watch(of_units.detach())
            product = torch.bmm(change.flatten(2), features.flatten(2).mT)  # (U R, J, C)
            rows = {"head.maps.weight": product[..., None, None], "head.maps.bias": change.sum((2, 3))}
            gradients = {name: value.reshape(len(part), -1, *value.shape[1:]).sum(1) for name, value in rows.items()}
            yield {name: gradients[name] for name in self.names if only is None or name in only}, len(part)


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


class Remembered(TorchEstimator):
    """Estimates of one network whose trunk never changes: features of a batch of crops are computed once."""

    def __init__(self, model: PoseModel, strategy: Strategy) -> None:
        super().__init__(model)
        self._strategy = strategy
        self._features: dict[bytes, torch.Tensor] = {}

    def __call__(self, crops: NDArray[np.uint8]) -> Estimates:
        """Find the joints in crops (B, H, W, 3)."""
        key = hashlib.sha256(crops.tobytes()).digest()
        with torch.inference_mode():
            if key not in self._features:
                pixels = cropping.to_tensor(torch.from_numpy(np.ascontiguousarray(crops)))
                self._features[key] = self._model.frozen_features(pixels, self._strategy)
            logits = self._model.from_features(self._features[key], self._strategy)
            joints, scores = self._codec.decode(*logits)
        return Estimates(joints.numpy(), scores.numpy())


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
        with tempfile.TemporaryDirectory() as folder:
            self._model = initial_model(plan, Path(folder), reuse=False)
        private = _private(plan)
        self._dataset = private.select(range(min(people or len(private), len(private))))
        self._start = arrays_of(self._model)
        test = open_all(plan.data.test, plan.model.skeleton)
        if test is None:
            raise ConfigError("data.test: missing (the experiment scores on it)")
        self._test = test
        self._estimator = Remembered(self._model, plan.training.strategy)
        self.start = state_hash(self._model)
        self._pooled = build_cohort(self._dataset, self._model, plan.mechanism, plan.training, cache_folder=cache)
        self.before = self._score({})

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
        self._model.load_state_dict({name: torch.from_numpy(value) for name, value in self._start.items()})
        engine = self._engine()
        weights = engine.parameters()
        cohorts = self._deal(sites, seed)
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
        return self._score({name: value.numpy() for name, value in weights.items()})

    def _score(self, trained: Arrays) -> float:
        load_arrays(self._model, self._start | trained)
        scores = score(estimate_records(self._estimator, self._test)[0], self._test)
        return {"pck@0.2": scores.pck_box_02, "pckh@0.5": scores.pckh_05}[self.plan.server.score] or 0.0

    def _engine(self) -> UnitGradients:
        strategy = self.plan.training.strategy
        return MapsGradients(self._model) if strategy == "maps" else UnitGradients(self._model, strategy)

    def _deal(self, sites: int, seed: int) -> list[CohortData]:
        """Deal the patients to sites; all of them share the pooled rows."""
        dataset = self._dataset
        dealt = partition(dataset, PartitionConfig(seed=seed), sites)
        everybody = {dataset.record(index).patient_id for index in range(len(dataset))}
        members = [{dataset.record(index).patient_id for index in indices} for indices in dealt]
        return [replace(self._pooled, units=index_units(dataset, without=everybody - own)) for own in members]


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


def _private(plan: FederationConfig) -> ListDataset:
    """Return all private data of a plan, pooled."""
    skeleton = get_skeleton(plan.model.skeleton)
    sources = [entry.data for entry in plan.sites if entry.data is not None]
    if plan.data.private is not None:
        sources.append(plan.data.private)
    if not sources:
        raise ConfigError("data.private: missing, and no site has data (the experiment pools what there is)")
    return concatenate([open_source(source, skeleton=skeleton) for source in sources])


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
