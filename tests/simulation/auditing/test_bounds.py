import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.accounting import Event, epsilon
from wardpose.simulation.auditing.bounds import audit, epsilon_lower_bound, guess, p_value

DELTA = 1e-5


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "bound"),
    [
        (100, 20, 19, 1.3), (300, 30, 30, 2.2), (300, 60, 57, 2.0), (1000, 100, 90, 1.6),
        (1000, 200, 190, 2.4), (5000, 500, 450, 1.9), (5000, 500, 500, 5.0),
    ],
)  # fmt: skip
def test_known_bounds(canaries: int, guesses: int, correct: int, bound: float) -> None:
    found = epsilon_lower_bound(canaries=canaries, guesses=guesses, correct=correct, delta=DELTA)
    assert found == pytest.approx(bound, abs=0.06)


def published_p_value(m: int, r: int, v: int, eps: float, delta: float) -> float:
    """Appendix D of the paper, as printed."""
    q = 1 / (1 + math.exp(-eps))
    beta = binom.sf(v - 1, r, q)
    alpha, total = 0.0, 0.0
    for i in range(1, v + 1):
        total = total + binom.pmf(v - i, r, q)
        if total > i * alpha:
            alpha = total / i
    return float(min(beta + alpha * delta * 2 * m, 1))


@settings(max_examples=60, deadline=None)
@given(
    r=st.integers(1, 900),
    share=st.floats(0, 1),
    extra=st.integers(0, 500),
    eps=st.floats(0, 6),
    delta=st.floats(0, 0.01),
)
def test_p_value_agrees_with_the_published_program(r: int, share: float, extra: int, eps: float, delta: float) -> None:
    v = round(share * r)
    found = p_value(canaries=r + extra, guesses=r, correct=v, epsilon=eps, delta=delta)
    assert found == pytest.approx(published_p_value(r + extra, r, v, eps, delta), rel=1e-9, abs=1e-12)


def test_bound_is_where_the_p_value_crosses() -> None:
    numbers = {"canaries": 400, "guesses": 100, "correct": 88, "delta": DELTA}
    bound = epsilon_lower_bound(**numbers)  # type: ignore[arg-type]
    assert p_value(epsilon=bound, **numbers) <= 0.05 < p_value(epsilon=bound + 1e-4, **numbers)  # type: ignore[arg-type]
    assert epsilon_lower_bound(canaries=100, guesses=100, correct=50, delta=DELTA) == 0
    # A larger delta refutes less.
    assert epsilon_lower_bound(**{**numbers, "delta": 1e-3}) < bound  # type: ignore[arg-type]


def test_guesses() -> None:
    scores, included = [5.0, 1.0, 4.0, 2.0, 3.0], [True, False, False, True, False]
    assert guess(scores, included, most=1, least=1) == 2
    assert guess(scores, included, most=2, least=2) == 2
    assert guess([1.0, math.nan, 2.0], [False, True, True], most=1, least=1) == 2
    with pytest.raises(ConfigError, match="guesses"):
        guess([1.0, math.nan], [True, False], most=1, least=1)


@pytest.mark.parametrize(
    ("scores", "included"), [([1.0], [True, False]), ([1.0, 2.0], [1, 0]), ([[1.0]], [[True]]), ([], [])]
)
def test_arrays_are_checked(scores: list[float], included: list[bool]) -> None:
    with pytest.raises(ConfigError, match="audit"):
        audit(scores, included, delta=DELTA)


TIGHT = 1e-6
MU = 0.35  # what a canary shifts the released sum by, in standard deviations of intact noise


def simulate(seed: int, *, noise: float, norm: float = MU) -> tuple[np.ndarray, np.ndarray]:
    """One released sum of orthogonal canaries under Gaussian noise; their dot products as scores."""
    generator = np.random.default_rng(seed)
    included = generator.random(100_000) < 0.5
    return norm * included + generator.normal(0, noise, len(included)), included


@pytest.mark.parametrize("seed", range(3))
def test_gaussian_mechanism_intact_and_broken(seed: int) -> None:
    event = Event(mechanism="dp-sgd", unit="patient", sample_rate=1, noise_multiplier=1 / MU, steps=1, max_grad_norm=1)
    claim = epsilon([event], delta=TIGHT)
    intact = audit(*simulate(seed, noise=1.0), delta=TIGHT)
    halved = audit(*simulate(seed, noise=0.5), delta=TIGHT)
    unclipped = audit(*simulate(seed, noise=1.0, norm=3 * MU), delta=TIGHT)
    assert 0.5 < intact.epsilon_lower < claim
    assert not intact.violates(claim)
    assert halved.violates(claim)
    assert unclipped.violates(claim)


def test_false_alarms_are_as_rare_as_promised() -> None:
    """Worst case for pure DP: randomised response at epsilon; the bound may exceed it in 5 % of runs at most."""
    level, runs = 1.5, 120
    generator = np.random.default_rng(1)
    alarms = 0
    for _ in range(runs):
        included = generator.random(400) < 0.5
        honest = generator.random(400) < 1 / (1 + math.exp(-level))
        scores = np.where(included == honest, 1.0, -1.0) + generator.normal(0, 1e-6, 400)
        alarms += audit(scores, included, delta=0.0).epsilon_lower > level
    assert alarms <= binom.ppf(0.999, runs, 0.05)


def test_no_signal_shows_nothing() -> None:
    generator = np.random.default_rng(3)
    result = audit(generator.normal(size=2000), generator.random(2000) < 0.5, delta=DELTA)
    assert result.epsilon_lower < 0.3
    assert result.canaries == 2000
