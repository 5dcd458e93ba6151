"""The bounds together, on exact Gaussian steps whose trade-off function is known."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from wardpose.shared.privacy.composition import Adjacency
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.simulation.auditing.verdict import METHODS, Verdict, epsilon_of, judge, most_noise

DELTA = 1e-6


def mechanism(rate: float = 1.0, adjacency: Adjacency = "add-remove") -> Mechanism:
    sigma = 2.0 if adjacency == "add-remove" else 4.0
    return Mechanism(name="dp-sgd", unit="frame", sample_rate=rate, noise_multiplier=sigma, adjacency=adjacency)


def simulated(claimed: Mechanism, seed: int, *, steps: int, canaries: int = 16, noise: float = 1.0) -> Verdict:
    """Steps of orthogonal canaries, sampled and noised as claimed (times `noise`)."""
    generator = np.random.default_rng(seed)
    included = generator.random((steps, canaries)) < 0.5
    drawn = generator.random(included.shape) < claimed.sample_rate
    replaced = claimed.adjacency == "replace-one"
    signal = drawn * (2.0 * included - 1 if replaced else included)
    scores = signal + generator.normal(0, noise * claimed.noise_multiplier, included.shape)
    likelihoods = (2 * scores if replaced else scores - 0.5) / claimed.noise_multiplier**2
    return judge(likelihoods, included, claimed=claimed, delta=DELTA, confidence=0.95)


def truth(claimed: Mechanism) -> float:
    return epsilon_of(claimed, claimed.noise_multiplier, DELTA)


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
def test_bounds_come_near_the_truth_and_find_half_the_noise(adjacency: Adjacency) -> None:
    claimed = mechanism(adjacency=adjacency)
    intact, halved = (simulated(claimed, 5, steps=2000, noise=noise) for noise in (1.0, 0.5))
    assert set(intact.epsilons) == set(METHODS)
    assert 0.7 * truth(claimed) < intact.epsilon_lower < truth(claimed)
    assert not intact.violates(truth(claimed))
    assert halved.violates(truth(claimed))
    assert halved.epsilons["f-dp"] > truth(claimed)  # without independent steps, too
    assert halved.independent_epsilon > truth(claimed) > intact.independent_epsilon > 0.85 * truth(claimed)
    assert intact.independent_noise > claimed.noise_multiplier > halved.independent_noise
    for method, noise in intact.noise.items():
        assert noise > claimed.noise_multiplier > halved.noise[method]
        assert intact.epsilons[method] == epsilon_of(claimed, noise, DELTA)


def test_the_one_run_bound_of_the_trade_off_function_shows_more_than_that_of_epsilon_and_delta() -> None:
    found = simulated(mechanism(), 6, steps=2000)
    assert found.epsilons["f-dp"] > found.epsilons["one-run"] > 0.5
    assert found.epsilons["steps"] > found.epsilons["f-dp"]


def test_bounds_exceed_the_truth_as_rarely_as_promised() -> None:
    claimed, found = mechanism(), [simulated(mechanism(), seed, steps=60) for seed in range(30)]
    most = binom.ppf(0.999, 30, 0.05)
    assert sum(one.violates(truth(claimed)) for one in found) <= most
    assert sum(one.independent_epsilon > truth(claimed) for one in found) <= most


def test_nothing_is_said_of_independent_noise_where_canaries_overlap() -> None:
    likelihoods, included = np.ones((4, 16)), np.ones((4, 16), bool)
    found = judge(likelihoods, included, claimed=mechanism(), delta=DELTA, confidence=0.95, orthogonal=False)
    assert found.independent_epsilon is None
    assert found.independent_noise is None


@pytest.mark.slow
@pytest.mark.guard
@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_bounds_exceed_the_truth_in_one_of_twenty_runs_at_most(adjacency: Adjacency, rate: float) -> None:
    runs, claimed = 200, mechanism(rate, adjacency)
    found = [simulated(claimed, seed, steps=150) for seed in range(runs)]
    assert sum(one.violates(truth(claimed)) for one in found) <= 0.05 * runs
    assert sum(one.independent_epsilon > truth(claimed) for one in found) <= binom.ppf(0.999, runs, 0.05)


def test_most_noise() -> None:
    asked: list[float] = []

    def is_refuted(noise_multiplier: float) -> bool:
        asked.append(noise_multiplier)
        return noise_multiplier > 1.7

    assert 1.7 < most_noise(is_refuted) < 1.7 * (1 + 1.01e-4)
    assert len(asked) < 25
    assert most_noise(lambda _: False) == math.inf
    assert most_noise(lambda _: True) == 1 / 16
    assert epsilon_of(mechanism(), math.inf, DELTA) == 0
