"""Honest updates stay below the bound, whatever mechanism and optimiser; what is ten times as long does not."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, chi2
from support.engine import PRIVATE, head_engine, make_cohort, make_mechanism, make_model, make_public

from wardpose.server.norm_bound import _STRETCH, FAILURE, Trained, _bernstein, _chi, largest_norm
from wardpose.shared.config import AdmissionConfig
from wardpose.shared.errors import ConfigError
from wardpose.shared.pose.trainable import Strategy
from wardpose.shared.privacy.accounting import UnitKind
from wardpose.shared.privacy.mechanisms import Mechanism, ProjectionOptions
from wardpose.shared.privacy.noise import seeded_streams
from wardpose.shared.training.basis import build_basis
from wardpose.shared.training.cohort import CohortData, load_bags
from wardpose.shared.training.gradients import UnitGradients
from wardpose.shared.training.local import local_update
from wardpose.shared.training.settings import AnchorOptions, LocalTraining, OptimizerConfig
from wardpose.shared.vectors import flatten

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"name": "sgd", "learning_rate": 0.3},
    "momentum": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9},
    "decay": {"name": "sgd", "learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.5},
    "adam": {"name": "adam", "weight_decay": 0.1},
    "adamw": {"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.5},
    "short-memory": {"name": "adam", "betas": (0.5, 0.3)},
    "no-memory": {"name": "adam", "betas": (0.0, 0.9)},
}
PATIENTS = 12


def bound(mechanism: Mechanism, training: LocalTraining, *, units: int, p: int, start: float, **options: Any) -> float:
    return largest_norm(
        mechanism,
        training,
        first_step=options.pop("first_step", 0),
        declared_units={"": units},
        trained=Trained(parameters=p, norm=start),
        admission=AdmissionConfig(**options),
    )


@pytest.mark.parametrize(("unit", "most"), [("patient", 2.0), ("frame", 1000.0), ("record", 1000.0)])
def test_every_unit_has_a_bound(unit: UnitKind, most: float) -> None:
    mechanism = Mechanism(unit=unit, noise_multiplier=1.0, frames_per_unit=1)
    training = LocalTraining(steps=3, optimizer=OptimizerConfig(name="sgd", learning_rate=0.1))
    found = bound(mechanism, training, units=60, p=100, start=1.0)
    assert math.isfinite(found)
    assert found == bound(mechanism, training, units=60, p=100, start=1.0, largest_cohort=most)


@pytest.mark.parametrize("dimensions", [1, 3, 50, 1_000, 100_000, 5_000_000])
def test_the_noise_term_covers_the_exact_quantile_and_little_more(dimensions: int) -> None:
    exact = math.sqrt(chi2.isf(FAILURE / 3, dimensions))
    assert exact <= _chi(dimensions) <= 1.25 * exact


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("units", [1, 30, 4_000])
@pytest.mark.parametrize("steps", [1, 10])
def test_the_units_term_covers_the_exact_quantile(rate: float, units: int, steps: int) -> None:
    exact = binom.isf(FAILURE / 3, units * steps, rate)
    covered = _bernstein(np.ones(steps), np.full(steps, units * rate), units)
    assert exact <= covered <= units * steps


def walk(optimizer: OptimizerConfig, steps: int, *, seed: int, aligned: float, sigma: float) -> tuple[float, float]:
    """Length of an update whose units all pull one way with `aligned` of their clip norm, and the bound."""
    p, units, rate, clip, start = 5_000, 40, 0.25, 2.0, 15.0
    generator = torch.Generator().manual_seed(seed)
    weights = torch.nn.Parameter(torch.randn(p, generator=generator))
    with torch.no_grad():
        weights *= start / weights.norm()
    before, direction = weights.detach().clone(), torch.randn(p, generator=generator)
    direction *= aligned * clip / direction.norm()
    algorithm = optimizer.build([weights])
    for _ in range(steps):
        present = torch.binomial(torch.tensor(2.0 * units), torch.tensor(rate), generator=generator)
        noise = sigma * clip * torch.randn(p, generator=generator)
        weights.grad = (direction * present + noise) / (rate * units)
        algorithm.step()
    mechanism = Mechanism(sample_rate=rate, noise_multiplier=sigma, max_grad_norm=clip)
    training = LocalTraining(steps=steps, optimizer=optimizer)
    moved = float((weights.detach() - before).double().norm())
    return moved, bound(mechanism, training, units=units, p=p, start=start)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_the_worst_that_twice_the_declared_patients_can_do_is_covered(name: str, steps: int) -> None:
    optimizer = OptimizerConfig.model_validate(OPTIMIZERS[name])
    for seed in range(12):
        for aligned, sigma in ((1.0, 0.0), (1.0, 1.0), (0.0, 4.0)):
            moved, most = walk(optimizer, steps, seed=seed, aligned=aligned, sigma=sigma)
            assert moved <= most


def test_the_recursion_is_torchs_own() -> None:
    """Without noise and with every unit there and aligned, the bound is reached, not merely kept."""
    for name in ("sgd", "momentum"):
        optimizer = OptimizerConfig.model_validate(OPTIMIZERS[name])
        weights = torch.nn.Parameter(torch.zeros(1))
        algorithm = optimizer.build([weights])
        for _ in range(9):
            weights.grad = torch.ones(1) * 2.0
            algorithm.step()
        mechanism = Mechanism(sample_rate=1.0, max_grad_norm=2.0)
        training = LocalTraining(steps=9, optimizer=optimizer)
        most = bound(mechanism, training, units=5, p=1, start=0.0, largest_cohort=1.0)
        moved = abs(float(weights.detach()))
        assert moved <= most <= 1.002 * moved


ORDINARY = [("sgd", 8), ("sgd", 40), ("momentum", 8), ("adam", 8), ("adamw", 8)]


@pytest.mark.parametrize(("name", "steps"), ORDINARY)
def test_ten_times_an_honest_update_is_too_long(name: str, steps: int) -> None:
    optimizer = OptimizerConfig.model_validate(OPTIMIZERS[name] | {"weight_decay": 0.0})
    for seed in range(5):
        for aligned, sigma in ((0.3, 3.0), (0.5, 1.0)):
            moved, most = walk(optimizer, steps, seed=seed, aligned=aligned, sigma=sigma)
            assert moved <= most < 10 * moved


@cache
def cohort(name: str) -> tuple[Mechanism, CohortData]:
    noise = {"noise_multiplier": 1.0} if name in PRIVATE else {}
    mechanism = make_mechanism(name, sample_rate=0.5, **noise)
    return mechanism, make_cohort(mechanism, [2] * PATIENTS, engine=head_engine())


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("name", [*PRIVATE, "none", "public-only"])
def test_honest_releases_are_never_too_long(name: str, optimizer: str) -> None:
    mechanism, data = cohort(name)
    training = LocalTraining(strategy="head", steps=3, optimizer=OptimizerConfig.model_validate(OPTIMIZERS[optimizer]))
    start = head_engine().parameters()
    p = sum(value.numel() for value in start.values())
    norm = math.sqrt(sum(float(value.double().square().sum()) for value in start.values()))
    most = bound(mechanism, training, units=PATIENTS, p=p, start=norm)
    public = make_public(24, engine=head_engine()) if mechanism.uses_basis else None
    for seed in range(4):
        update = local_update(
            make_model(torch.float32),
            data,
            mechanism,
            training,
            streams=seeded_streams(seed),
            declared_units=PATIENTS,
            public=public,
        ).update
        assert math.sqrt(sum(float(value.double().square().sum()) for value in update.values())) <= most


@pytest.mark.parametrize("damping", [1e-3, pytest.param(1.0, marks=[pytest.mark.slow, pytest.mark.guard])])
def test_a_closed_form_is_never_too_long_and_what_is_much_longer_is(damping: float) -> None:
    """With noise and without: the way back from its coordinates is no longer than damping allows."""
    engine = UnitGradients(make_model(torch.float32), "maps", micro_batch=4)
    start = flatten(engine.parameters())
    public = make_public(4, engine=engine)
    optimizer = OptimizerConfig(name="sgd", learning_rate=0.5)
    training = LocalTraining(strategy="maps", steps=1, optimizer=optimizer, micro_batch=4)
    for sigma, band in ((3.0, 0), (0.0, 32)):
        ridge = {"damping": damping, "band": band}
        mechanism = make_mechanism("label-ridge", noise_multiplier=sigma, ridge=ridge)
        data = make_cohort(mechanism, [2] * PATIENTS, engine=engine)
        most = bound(mechanism, training, units=PATIENTS, p=len(start), start=float(start.norm()))
        update = local_update(
            make_model(torch.float32),
            data,
            mechanism,
            training,
            streams=seeded_streams(1),
            declared_units=PATIENTS,
            public=public,
        ).update
        length = float(flatten(update).double().norm())
        assert length <= most
        if sigma and not band:
            assert most < 3 * length


def test_what_loosens_the_bound() -> None:
    training = LocalTraining(steps=4, optimizer=OptimizerConfig.model_validate(OPTIMIZERS["sgd"]))
    mechanism = Mechanism(sample_rate=0.5, noise_multiplier=2.0)

    def of(changes: dict[str, Any], **options: Any) -> float:
        return bound(mechanism.model_copy(update=changes), training, units=100, p=10_000, start=1.0, **options)

    plain = of({})
    assert of({}, slack=3.0) == pytest.approx(3 * plain)
    assert of({}, largest_cohort=10.0) > plain
    assert of({"unit": "frame"}) > of({}, largest_cohort=900.0)
    anchored = training.model_copy(update={"anchor": AnchorOptions(weight=2.0, max_grad_norm=3.0)})
    longest = bound(mechanism, anchored, units=100, p=10_000, start=1.0) - plain
    assert longest == pytest.approx(4 * training.optimizer.learning_rate * 2.0 * 3.0, rel=0.01)
    assert of({"name": "feature"}) > plain
    assert of({"name": "feature"}, unclipped_gradient_norm=0.1) < of({"name": "feature"})
    gated = of({"name": "projected"})
    always = {"name": "projected", "projection": mechanism.projection.model_copy(update={"min_captured_energy": 0.0})}
    assert of(always) < gated
    ridge = {"name": "label-ridge", "ridge": mechanism.ridge.model_copy(update={"damping": 0.01})}
    assert of(ridge) == pytest.approx(10 * plain, rel=1e-3)
    refreshed = {**always, "projection": always["projection"].model_copy(update={"refresh_steps": 1})}
    assert of(always) < of(refreshed)


def test_a_basis_stretches_no_more_than_it_is_given_credit_for() -> None:
    """Its gradients are float32 and its smallest directions a thousandth of the largest."""
    strategies: tuple[Strategy, ...] = ("head", "last-stage")
    for name in strategies:
        engine = UnitGradients(make_model(torch.float32), name, micro_batch=8)
        public = make_public(40, engine=engine)
        bags = load_bags(engine, public.rows, np.arange(40)[:, None])
        options = ProjectionOptions(rank=30, frames=32, held_out=8, energy=1.0)
        basis = build_basis(engine, engine.parameters(), bags.units(0, 32), bags.units(32, 40), options)
        columns = [flatten(basis.decode(line)).double() for line in torch.eye(basis.rank)]
        assert float(torch.linalg.matrix_norm(torch.stack(columns), 2)) < _STRETCH


@pytest.mark.parametrize("name", ["sgd", "momentum"])
def test_the_mean_of_the_last_steps_is_bounded_by_the_mean_of_their_answers(name: str) -> None:
    """Without noise and with every unit there and aligned, the bound is reached, not merely kept."""
    optimizer = OptimizerConfig.model_validate(OPTIMIZERS[name] | {"weight_decay": 0.0})
    weights, path = torch.nn.Parameter(torch.zeros(1)), []
    algorithm = optimizer.build([weights])
    for _ in range(9):
        weights.grad = torch.ones(1) * 2.0
        algorithm.step()
        path.append(abs(float(weights.detach())))
    training = LocalTraining(steps=9, optimizer=optimizer, average=0.5)
    mechanism = Mechanism(sample_rate=1.0, max_grad_norm=2.0)
    most = bound(mechanism, training, units=5, p=1, start=0.0, largest_cohort=1.0)
    moved = float(np.mean(path[-training.averaged_steps :]))
    assert moved <= most <= 1.002 * moved


def test_a_schedule_is_followed_step_by_step() -> None:
    phases = [
        {"steps": 4, "max_grad_norm": 1.0, "noise_multiplier": 1.0, "sample_rate": 0.5},
        {"steps": 4, "max_grad_norm": 8.0, "noise_multiplier": 1.0, "sample_rate": 0.5},
    ]
    mechanism = Mechanism.model_validate({"schedule": {"phases": phases}})
    training = LocalTraining(steps=4, optimizer=OptimizerConfig.model_validate(OPTIMIZERS["sgd"]))
    first, second = (bound(mechanism, training, units=100, p=10_000, start=0.0, first_step=step) for step in (0, 4))
    assert second == pytest.approx(8 * first)


@pytest.mark.parametrize("betas", [(0.9, 0.0)])
def test_an_optimiser_that_bounds_nothing_gives_no_bound(betas: tuple[float, float]) -> None:
    training = LocalTraining(optimizer=OptimizerConfig(betas=betas))
    assert bound(Mechanism(), training, units=9, p=9, start=1.0) == math.inf


def test_an_optimiser_that_diverges_gives_no_bound() -> None:
    training = LocalTraining(steps=1000, optimizer=OptimizerConfig(name="sgd", learning_rate=1e3, weight_decay=1e3))
    assert bound(Mechanism(), training, units=9, p=9, start=1.0) == math.inf


def test_declared_units_that_do_not_fit_are_refused() -> None:
    for units in ({"": 0}, {"": 5, "research": 5}):
        with pytest.raises(ConfigError, match="declared units"):
            largest_norm(
                Mechanism(),
                LocalTraining(optimizer=OptimizerConfig(name="sgd")),
                first_step=0,
                declared_units=units,
                trained=Trained(parameters=3, norm=1.0),
                admission=AdmissionConfig(),
            )
