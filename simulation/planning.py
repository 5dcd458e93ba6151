"""What a privacy budget buys, before there is any data: sigma, epsilon over rounds, more patients, consent tiers.

As a run spends it: one declared course, which three quarters of delta bound (`shared/privacy/filters.py`).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy import accounting
from wardpose.shared.privacy.accounting import Accountant, Adjacency, Noise
from wardpose.shared.privacy.filters import COURSE_SHARE
from wardpose.shared.privacy.schedules import tier_sample_rates

POINTS = 8  # of the curve of epsilon over rounds
GROWTH = (0.5, 1, 2, 4, 8)  # times as many patients


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One site's budget and what follows from it.

    Attributes:
        patients: declared units of the site.
        epsilon: budget.
        delta: at which epsilon is stated.
        course_delta: share of it that bounds one declared course (`filters`): sigma and every epsilon here are for it.
        rounds: federated rounds.
        steps_per_round: local steps of each.
        sample_rate: probability with which a patient takes part in a step.
        expected_batch: patients expected in a step, rate times patients.
        adjacency: what the neighbours are.
        noise: which noise.
        noise_multiplier: smallest sigma that keeps the budget.
        noise_per_step: standard deviation of the noise on the mean gradient, as a share of the clip norm.

    """

    patients: int
    epsilon: float
    delta: float
    course_delta: float
    rounds: int
    steps_per_round: int
    sample_rate: float
    expected_batch: float
    adjacency: Adjacency
    noise: Noise
    noise_multiplier: float
    noise_per_step: float


def make_plan(
    *,
    patients: int,
    epsilon: float,
    delta: float,
    rounds: int,
    steps_per_round: int,
    expected_batch: float,
    adjacency: Adjacency = "add-remove",
    noise: Noise = "gaussian",
    digits: int = 4,
) -> Plan:
    """Find the noise that makes `rounds * steps_per_round` steps fit the budget.

    Raises:
        ConfigError: a value is out of range; the batch is larger than the site.

    """
    if patients < 1 or not 0 < expected_batch <= patients:
        raise ConfigError(f"plan: an expected batch of {expected_batch:g} of {patients} patients is not possible")
    least = accounting.MINIMUM_DELTA / COURSE_SHARE  # a course is bounded by three quarters of delta
    if not least <= delta < 1:
        raise ConfigError(f"plan: delta is {delta}; it must be at least {least:.3g} and below 1")
    rate = expected_batch / patients
    sigma = accounting.calibrate(
        epsilon=epsilon,
        delta=COURSE_SHARE * delta,
        sample_rate=rate,
        steps=rounds * steps_per_round,
        adjacency=adjacency,
        noise=noise,
        digits=digits,
    )
    return Plan(
        patients=patients,
        epsilon=epsilon,
        delta=delta,
        course_delta=COURSE_SHARE * delta,
        rounds=rounds,
        steps_per_round=steps_per_round,
        sample_rate=rate,
        expected_batch=expected_batch,
        adjacency=adjacency,
        noise=noise,
        noise_multiplier=sigma,
        noise_per_step=sigma / expected_batch,
    )


def epsilon_after(
    chosen: Plan, rounds: int, *, accountant: Accountant = "pld", adjacency: Adjacency | None = None
) -> float:
    """Epsilon of the plan after its first `rounds` rounds."""
    event = accounting.Event(
        mechanism="plan",
        unit="patient",
        sample_rate=chosen.sample_rate,
        noise_multiplier=chosen.noise_multiplier,
        steps=rounds * chosen.steps_per_round,
        max_grad_norm=1.0,
        noise=chosen.noise,
    )
    return accounting.epsilon(
        [event],
        delta=chosen.course_delta,
        accountant=accountant,
        adjacency=adjacency or chosen.adjacency,
    )


def tier_rows(chosen: Plan, budgets: Mapping[str, float]) -> list[dict[str, Any]]:
    """Find the rate of each consent tier with which its own budget, under the plan's noise, ends with the last step.

    Raises:
        ConfigError: a budget is not positive.

    """
    rates = tier_sample_rates(
        budgets,
        noise_multiplier=chosen.noise_multiplier,
        steps=chosen.rounds * chosen.steps_per_round,
        delta=chosen.course_delta,
        adjacency=chosen.adjacency,
        noise=chosen.noise,
    )
    return [{"tier": tier, "epsilon": budgets[tier], "sample_rate": rate} for tier, rate in rates.items()]


def report(chosen: Plan, tiers: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Everything that the command shows, as plain values; see `Plan` for the units, `None` where no noise is enough.

    Args:
        chosen: the plan.
        tiers: budget of each consent tier.

    """
    points = sorted({1 + round(i * (chosen.rounds - 1) / (POINTS - 1)) for i in range(POINTS)})
    sizes = sorted({max(round(chosen.patients * factor), math.ceil(chosen.expected_batch)) for factor in GROWTH})
    budgets = [chosen.epsilon * factor for factor in (0.25, 0.5, 1, 2, 4)]
    return {
        **asdict(chosen),
        "unit": "patient",
        "steps": chosen.rounds * chosen.steps_per_round,
        "epsilon_spent": epsilon_after(chosen, chosen.rounds),
        "epsilon_rdp": epsilon_after(chosen, chosen.rounds, accountant="rdp"),
        "epsilon_replace_one": epsilon_after(chosen, chosen.rounds, adjacency="replace-one"),
        "epsilon_by_round": [
            {"round": n, "pld": epsilon_after(chosen, n), "rdp": epsilon_after(chosen, n, accountant="rdp")}
            for n in points
        ],
        "by_patients": [
            {"patients": size, "sample_rate": chosen.expected_batch / size, **_noise(chosen, patients=size)}
            for size in sizes
        ],
        "tiers": tier_rows(chosen, tiers or {}),
        "by_epsilon": [{"epsilon": budget, **_noise(chosen, epsilon=budget)} for budget in budgets],
    }


def _noise(chosen: Plan, *, patients: int | None = None, epsilon: float | None = None) -> dict[str, float | None]:
    """Find what a variant of the plan needs; nothing where no noise is enough, which refuses only the variant."""
    try:
        found = make_plan(
            patients=patients or chosen.patients,
            epsilon=epsilon or chosen.epsilon,
            delta=chosen.delta,
            rounds=chosen.rounds,
            steps_per_round=chosen.steps_per_round,
            expected_batch=chosen.expected_batch,
            adjacency=chosen.adjacency,
            noise=chosen.noise,
            digits=3,
        )
    except ConfigError:
        return {"noise_multiplier": None, "noise_per_step": None}
    return {"noise_multiplier": found.noise_multiplier, "noise_per_step": found.noise_per_step}
