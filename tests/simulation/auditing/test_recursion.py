"""The one-run bound under f-DP: against all distributions that its inequality allows, and against mechanisms."""

import math

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.special import expit
from scipy.stats import binom

from wardpose.shared.errors import ConfigError
from wardpose.simulation.auditing.channels import channel, tail
from wardpose.simulation.auditing.recursion import refuted
from wardpose.simulation.auditing.steps import WEIGHTS, evidence, gains
from wardpose.simulation.auditing.tradeoff import Family, TradeOff, approximate_dp

FAMILY = Family(sample_rate=1.0, adjacency="add-remove")


def most_likely(slopes: np.ndarray, divergences: np.ndarray, m: int, r: int, v: int) -> float:
    """Most that P[at least v right] can be, over all p_0 .. p_r with the theorem's inequality: a linear programme."""
    counts = np.arange(r + 1)
    rows, limits = [], []
    for j in range(r):
        right = np.where(counts > j, counts / m, 0)
        wrong = np.where(counts >= j, (r - counts) / m, 0)
        for slope, divergence in zip(slopes, divergences, strict=True):
            rows.append(right - slope * wrong)
            limits.append(divergence)
    found = linprog(-(counts >= v).astype(float), np.array(rows), limits, np.ones((1, r + 1)), [1.0])
    return float(-found.fun)


@pytest.mark.parametrize(("m", "r"), [(6, 6), (12, 7), (30, 10)])
@pytest.mark.parametrize("mu", [0.3, 1.0])
def test_recursion_is_the_optimum_over_all_distributions(m: int, r: int, mu: float) -> None:
    slopes = np.exp(np.linspace(-6, 6, 41))
    divergences = FAMILY.divergences(1 / mu, slopes)
    trade_off = TradeOff(slopes, divergences)
    tails = {v: most_likely(slopes, divergences, m, r, v) for v in (r // 2 + 1, r - 1, r)}
    assert tails[r] < 0.6
    for v, most in tails.items():
        if most > 0.999:
            assert not refuted(trade_off, canaries=m, guesses=r, correct=v, significance=0.999)
            continue
        below, above = (
            refuted(trade_off, canaries=m, guesses=r, correct=v, significance=most * factor)
            for factor in (0.999, 1.001)
        )
        assert above
        assert not below


@pytest.mark.parametrize("level", [0.0, 0.5, 2.0])
def test_randomised_response_is_never_refuted_more_often_than_promised(level: float) -> None:
    """Exact: it is epsilon-DP, and its right guesses are binomial."""
    trade_off = approximate_dp(level, 0.0)
    some = 0
    for guesses in (1, 2, 5, 20, 80):
        for correct in range(guesses + 1):
            happens = float(binom.sf(correct - 1, guesses, expit(level)))
            for significance in (0.001, 0.05, 0.5):
                numbers = {"canaries": guesses, "guesses": guesses, "correct": correct}
                wrong = refuted(trade_off, **numbers, significance=significance)
                assert not wrong or happens <= significance
                some += wrong
    assert some > 5


def test_larger_counts_refute_more() -> None:
    trade_off = FAMILY.trade_off(2.0)
    verdicts = [
        refuted(trade_off, canaries=5000, guesses=500, correct=count, significance=0.05) for count in range(250, 501)
    ]
    assert verdicts == sorted(verdicts)
    assert verdicts[-1]
    assert not verdicts[0]
    with pytest.raises(ConfigError, match="correct"):
        refuted(trade_off, canaries=5, guesses=6, correct=6, significance=0.05)


def careless(generator: np.random.Generator, mu: float, steps: int, canaries: int) -> tuple[np.ndarray, np.ndarray]:
    """A mechanism whose every coin is exactly mu-GDP, and that is careless about all canaries of a step at once.

    It draws z and how likely "in" it makes the score, as Gaussian noise would, but one size of it for all canaries; the
    sign tells each coin with the probability that belongs to the size.
    """
    noise = generator.normal(size=steps) + mu * generator.integers(0, 2, steps)
    size = np.abs(mu * noise - mu**2 / 2)[:, None] * np.ones(canaries)
    included = generator.random((steps, canaries)) < 0.5
    honest = generator.random((steps, canaries)) < expit(size)
    return np.where(included == honest, size, -size), included


def test_carelessness_about_all_at_once_fools_the_bound_for_independent_channels_but_neither_that_decides() -> None:
    mu, canaries, runs = 1.0, 400, 300
    trade_off, one = FAMILY.trade_off(1 / mu), channel(FAMILY, 1 / mu)
    generator = np.random.default_rng(2)
    alarms = {"independent channels": 0, "f-dp": 0, "steps": 0}
    for _ in range(runs):
        likelihoods, included = careless(generator, mu, 1, canaries)
        right = int(((likelihoods > 0) == included).sum())
        chance = tail(one, canaries=canaries, guesses=canaries, wrong=canaries - right)
        alarms["independent channels"] += chance <= 0.05
        alarms["f-dp"] += refuted(trade_off, canaries=canaries, guesses=canaries, correct=right, significance=0.05)
        likelihoods, included = careless(generator, mu, 40, 10)
        gained = np.stack([gains(likelihoods, included, weight) for weight in WEIGHTS])
        alarms["steps"] += evidence(gained, WEIGHTS, FAMILY.divergences(1 / mu, WEIGHTS)) >= math.log(20)
    assert alarms["independent channels"] > 0.3 * runs
    assert max(alarms["f-dp"], alarms["steps"]) <= binom.ppf(0.999, runs, 0.05)
