"""The bound for independent channels: against simulated ones, and against what it does not cover."""

import numpy as np
import pytest
from scipy.stats import binom

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.composition import Adjacency
from wardpose.simulation.auditing.channels import channel, tail
from wardpose.simulation.auditing.tradeoff import Family

CASES = [(1.0, "add-remove", 1.0), (0.3, "add-remove", 0.5), (1.0, "replace-one", 3.0), (0.5, "replace-one", 1.5)]


def simulated(
    family: Family, sigma: float, *, runs: int, canaries: int, seed: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of the likelihood ratio (runs, canaries) of exact channels, and their coins."""
    generator = np.random.default_rng(seed)
    q, shift, replaced = family.sample_rate, 1 / sigma, family.adjacency == "replace-one"
    coins = generator.random((runs, canaries)) < 0.5
    drawn = generator.random(coins.shape) < q
    y = shift * drawn * (2.0 * coins - 1 if replaced else coins) + generator.normal(size=coins.shape)
    base = 1 - q
    first = base + q * np.exp(shift * y - shift**2 / 2)
    second = base + q * np.exp(-shift * y - shift**2 / 2) if replaced else 1.0
    return np.log(first / second), coins


def errors_of_the_surest(ratios: np.ndarray, coins: np.ndarray, guesses: int) -> np.ndarray:
    surest = np.argsort(-np.abs(ratios), axis=1)[:, :guesses]
    wrong = (ratios > 0) != coins
    return np.take_along_axis(wrong, surest, axis=1).sum(axis=1)


@pytest.mark.parametrize(("rate", "adjacency", "sigma"), CASES)
@pytest.mark.parametrize("guesses", [1, 12, 60])
def test_tail_is_that_of_the_best_guesser(rate: float, adjacency: Adjacency, sigma: float, guesses: int) -> None:
    family, runs, canaries = Family(sample_rate=rate, adjacency=adjacency), 20_000, 60
    found = errors_of_the_surest(*simulated(family, sigma, runs=runs, canaries=canaries), guesses)
    one = channel(family, sigma)
    for wrong in np.unique(np.quantile(found, [0.0, 0.02, 0.05, 0.3, 0.7]).astype(int)):
        happens = float((found <= wrong).mean())
        bound = tail(one, canaries=canaries, guesses=guesses, wrong=int(wrong))
        spread = 4 * np.sqrt(bound * (1 - min(bound, 1)) / runs) + 1e-3
        assert happens <= bound + spread
        assert bound <= happens + spread + 0.02 * happens  # nor is it loose


def test_whoever_guesses_otherwise_errs_more() -> None:
    """Sides of fixed sizes, at random, and after a mixture of all observations: never fewer errors than the bound."""
    family, runs, canaries, guesses = Family(sample_rate=1.0, adjacency="add-remove"), 20_000, 60, 12
    ratios, coins = simulated(family, 1.0, runs=runs, canaries=canaries)
    one = channel(family, 1.0)
    sides = np.argsort(ratios, axis=1)
    by_side = np.concatenate(
        [
            np.take_along_axis(~coins, sides[:, -guesses // 2 :], axis=1),
            np.take_along_axis(coins, sides[:, : guesses // 2], axis=1),
        ],
        axis=1,
    ).sum(axis=1)
    mixed = ratios - 0.5 * ratios.mean(axis=1, keepdims=True)
    others = {
        "sides": by_side,
        "first": ((ratios > 0) != coins)[:, :guesses].sum(axis=1),
        "mixed": errors_of_the_surest(mixed, coins, guesses),
    }
    for found in others.values():
        for wrong in range(guesses):
            happens = float((found <= wrong).mean())
            bound = tail(one, canaries=canaries, guesses=guesses, wrong=wrong)
            assert happens <= bound + 4 * np.sqrt(bound / runs) + 1e-3


def test_more_noise_and_fewer_errors_refute_more() -> None:
    family = Family(sample_rate=0.5, adjacency="add-remove")
    noises = np.geomspace(0.1, 500, 25)
    tails = [tail(channel(family, sigma), canaries=2000, guesses=200, wrong=70) for sigma in noises]
    assert tails == sorted(tails, reverse=True)
    assert tails[0] > 0.9
    assert tails[-1] < 1e-3
    one = channel(family, 1.0)
    rising = [tail(one, canaries=2000, guesses=200, wrong=wrong) for wrong in range(0, 201, 10)]
    assert rising == sorted(rising)
    assert rising[-1] == pytest.approx(1)


def test_without_any_privacy_nothing_is_refuted_and_without_any_signal_guesses_are_coins() -> None:
    family = Family(sample_rate=1.0, adjacency="add-remove")
    assert tail(channel(family, 1 / 16), canaries=100, guesses=50, wrong=0) > 0.99
    coins = tail(channel(family, 1e6), canaries=50, guesses=50, wrong=20)
    assert coins == pytest.approx(binom.cdf(20, 50, 0.5), rel=1e-3)


@pytest.mark.parametrize(("canaries", "guesses", "wrong"), [(5, 6, 1), (5, 5, 6), (5, 0, 0), (5, 3, -1)])
def test_impossible_counts_are_refused(canaries: int, guesses: int, wrong: int) -> None:
    one = channel(Family(sample_rate=1.0, adjacency="add-remove"), 1.0)
    with pytest.raises(ConfigError, match="is not possible"):
        tail(one, canaries=canaries, guesses=guesses, wrong=wrong)
