"""Budgets that are not spent evenly: schedules over time, and consent tiers over patients.

**Schedules** (dynamic DP-SGD; Du, Li, Chen, Chen, Hong 2021, arXiv 2111.00173): clip norm, noise and rate change along
training. They are fixed before the first frame is read and composed step by step, exactly; a schedule that looked at
gradients would leak.

**Tiers** (individualised DP, the "Sample" variant; Boenisch et al. 2023, arXiv 2303.17046): patients who consent to
less are drawn less often, under one noise and one clip norm, so that every tier's own budget ends with the last step.

**Correlated noise** (banded matrix factorisation; Choquette-Choo et al. 2023, arXiv 2306.08153) is not offered. It is
sound for steps that follow one plan to its end, and here a run may lose a round, try it again, stop, or share its
cohort with another run after any exchange: (1) a column of the matrix spans b steps, so a round could only be charged
together with the b - 1 steps after it, whoever orders those; (2) what cancels is earlier noise, which a site would
have to keep in secret across rounds: a state that is lost, restored from a backup or copied means noise used twice,
which whoever sees both uses can subtract; (3) amplification needs cyclic Poisson sampling (b fixed groups of patients,
each seen by every b-th step at b times the rate) in place of the independent coins that tiers, schedules and the audit
rest on; (4) noise in the coordinates of one basis cannot cancel that in another's.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Self

from pydantic import BaseModel, ConfigDict, Field
from scipy.optimize import brentq

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy import accounting
from wardpose.shared.privacy.accounting import Accountant, Adjacency, Event, Noise, UnitKind

RATE_DIGITS = 6
"""Sampling rates of tiers are rounded down to so many decimals."""


class Phase(BaseModel):
    """Consecutive steps that are alike.

    Attributes:
        steps: how many, at least 1.
        max_grad_norm: C_t, greater than 0.
        noise_multiplier: sigma_t, the noise's standard deviation over C_t, at least 0.
        sample_rate: q_t, in [0, 1].

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1, le=1_000_000)
    max_grad_norm: float = Field(ge=1e-12, le=1e12, allow_inf_nan=False)
    noise_multiplier: float = Field(ge=0, le=1e6, allow_inf_nan=False)
    sample_rate: float = Field(ge=0, le=1)


class Schedule(BaseModel):
    """A pre-declared course of (C_t, sigma_t, q_t). A value like a mechanism: frozen, and JSON on the wire.

        Schedule.geometric(steps=100, pieces=10, sample_rate=0.1,
                           max_grad_norm=(1.0, 0.5), noise_multiplier=(2.0, 1.5)).events(0, 100, unit="patient")

    Attributes:
        phases: in order; what they cost is the sum of what each costs.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    phases: tuple[Phase, ...] = Field(min_length=1)

    @classmethod
    def geometric(
        cls,
        *,
        steps: int,
        pieces: int,
        sample_rate: float,
        max_grad_norm: tuple[float, float],
        noise_multiplier: tuple[float, float],
    ) -> Self:
        """Let clip norm and noise go from a first to a last value, as C_0 rho^(-t/T), in equal pieces.

        Examples:
            >>> course = Schedule.geometric(
            ...     steps=100, pieces=2, sample_rate=0.1, max_grad_norm=(1.0, 0.5), noise_multiplier=(2.0, 1.5)
            ... )
            >>> [(phase.steps, phase.max_grad_norm, phase.noise_multiplier) for phase in course.phases]
            [(50, 1.0, 2.0), (50, 0.5, 1.5)]

        Raises:
            ConfigError: the pieces do not divide the steps, or a value is not positive.

        """
        if pieces < 1 or steps < 1 or steps % pieces:
            raise ConfigError(f"schedule: {pieces} pieces do not divide {steps} steps")
        if min(*max_grad_norm, *noise_multiplier) <= 0:
            raise ConfigError("schedule: clip norms and noise multipliers must be greater than 0")
        phases = []
        for piece in range(pieces):
            along = piece / (pieces - 1) if pieces > 1 else 0.0
            phases.append(
                Phase(
                    steps=steps // pieces,
                    max_grad_norm=max_grad_norm[0] ** (1 - along) * max_grad_norm[1] ** along,
                    noise_multiplier=noise_multiplier[0] ** (1 - along) * noise_multiplier[1] ** along,
                    sample_rate=sample_rate,
                )
            )
        return cls(phases=tuple(phases))

    @property
    def steps(self) -> int:
        """Steps of the whole schedule."""
        return sum(phase.steps for phase in self.phases)

    def at(self, step: int) -> Phase:
        """Return the values of one step, counted from 0.

        Examples:
            >>> phase = Phase(steps=10, max_grad_norm=1, noise_multiplier=2, sample_rate=0.1)
            >>> Schedule(phases=(phase,)).at(9).noise_multiplier
            2.0

        Raises:
            ConfigError: the schedule has no such step.

        """
        return next(self._within(step, 1))

    def events(
        self,
        first: int,
        count: int,
        *,
        unit: UnitKind,
        mechanism: str = "dp-sgd",
        noise: Noise = "gaussian",
        tier: str = "",
        adjacency: Adjacency = "add-remove",
    ) -> tuple[Event, ...]:
        """Return what steps `first`, ..., `first + count - 1` cost, one event for each phase that they touch.

        The clip norm does not change the cost, only what it buys: sigma_t is relative to C_t.

        Examples:
            >>> course = Schedule.geometric(
            ...     steps=100, pieces=2, sample_rate=0.1, max_grad_norm=(1.0, 0.5), noise_multiplier=(2.0, 1.5)
            ... )
            >>> [(event.steps, event.noise_multiplier) for event in course.events(40, 20, unit="patient")]
            [(10, 2.0), (10, 1.5)]

        Raises:
            ConfigError: the schedule has no such steps.

        """
        return tuple(
            Event(
                mechanism=mechanism,
                unit=unit,
                sample_rate=phase.sample_rate,
                noise_multiplier=phase.noise_multiplier,
                steps=phase.steps,
                max_grad_norm=phase.max_grad_norm,
                noise=noise,
                tier=tier,
                adjacency=adjacency,
            )
            for phase in self._within(first, count)
        )

    def _within(self, first: int, count: int) -> Iterator[Phase]:
        if first < 0 or count < 0 or first + count > self.steps:
            raise ConfigError(f"schedule: has steps 0 to {self.steps - 1}; asked for {first} to {first + count - 1}")
        start = 0
        for phase in self.phases:
            overlap = min(start + phase.steps, first + count) - max(start, first)
            if overlap > 0:
                yield phase.model_copy(update={"steps": overlap})
            start += phase.steps


def tier_sample_rates(
    epsilons: Mapping[str, float],
    *,
    noise_multiplier: float,
    steps: int,
    delta: float,
    spent: Mapping[str, Sequence[Event]] | None = None,
    accountant: Accountant = "pld",
    adjacency: Adjacency = "add-remove",
    noise: Noise = "gaussian",
) -> dict[str, float]:
    """Largest sampling rate of each tier with which its own epsilon lasts for `steps` steps under one noise.

    Epsilon grows with the rate, so the rate is found by bisection on the accountant itself. Nothing depends on data: a
    tier's rate follows from its declared budget alone.

    Examples:
        >>> tier_sample_rates({"strict": 1.0, "open": 4.0}, noise_multiplier=1.0, steps=100, delta=1e-5)
        {'strict': 0.013911, 'open': 0.057132}

    Args:
        epsilons: budget of each tier, greater than 0.
        noise_multiplier: common sigma.
        steps: how many steps the budget must last.
        delta: at which epsilons are stated.
        spent: what each tier was charged before.
        accountant: which accountant.
        adjacency: which neighbours.
        noise: which noise.

    Returns:
        Rate of each tier in [0, 1], rounded down to `RATE_DIGITS` decimals; 0 where nothing is left.

    Raises:
        ConfigError: a budget, the noise or the steps are not positive.

    """
    if not noise_multiplier > 0 or steps < 1 or not all(epsilon > 0 for epsilon in epsilons.values()):
        raise ConfigError(
            f"tiers: epsilons {dict(epsilons)}, noise_multiplier {noise_multiplier} and steps {steps} must be positive"
        )

    def excess(rate: float, tier: str) -> float:
        """Epsilon above the tier's budget."""
        event = Event(
            mechanism="plan",
            unit="patient",
            sample_rate=rate,
            noise_multiplier=noise_multiplier,
            steps=steps,
            max_grad_norm=1.0,
            noise=noise,
        )
        before = (spent or {}).get(tier, ())
        total = accounting.epsilon([*before, event], delta=delta, accountant=accountant, adjacency=adjacency)
        return min(total, 1e9) - epsilons[tier]

    return {tier: _largest_rate(partial(excess, tier=tier)) for tier in epsilons}


def _largest_rate(excess: Callable[[float], float]) -> float:
    """Largest rate, in whole units of the last decimal, whose excess is not above 0."""
    unit = 10.0**-RATE_DIGITS
    low = high = unit
    if excess(low) > 0:
        return 0.0
    while high < 1 and excess(high) <= 0:
        low, high = high, min(4 * high, 1.0)
    if excess(high) <= 0:
        return 1.0
    root = math.exp(brentq(lambda logarithm: excess(math.exp(logarithm)), math.log(low), math.log(high), xtol=1e-4))
    units = math.floor(root / unit) + 1
    while units > 0 and excess(round(units * unit, RATE_DIGITS)) > 0:
        units = min(units - 1, math.floor(units * 0.9999))
    return round(units * unit, RATE_DIGITS)
