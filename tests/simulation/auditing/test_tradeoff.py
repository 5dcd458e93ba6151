import math

import numpy as np
import pytest
from scipy.stats import norm

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.accounting import Event, epsilon
from wardpose.shared.privacy.composition import Adjacency
from wardpose.simulation.auditing.tradeoff import Family, TradeOff, approximate_dp

KINDS: list[tuple[Adjacency, float]] = [
    ("add-remove", 1.0), ("add-remove", 0.3), ("replace-one", 1.0), ("replace-one", 0.3),
]  # fmt: skip


@pytest.mark.parametrize(("adjacency", "rate"), KINDS)
@pytest.mark.parametrize("sigma", [0.7, 2.0])
def test_divergence_at_e_to_the_epsilon_is_the_accountants_delta(
    adjacency: Adjacency, rate: float, sigma: float
) -> None:
    event = Event(
        mechanism="dp-sgd", unit="frame", sample_rate=rate, noise_multiplier=sigma, steps=1, max_grad_norm=1,
        adjacency=adjacency,
    )  # fmt: skip
    for delta in (1e-2, 1e-6):
        claimed = epsilon([event], delta=delta, adjacency=adjacency)
        found = Family(sample_rate=rate, adjacency=adjacency).divergences(sigma, [math.exp(claimed)])
        assert found[0] == pytest.approx(delta, rel=1e-3)


@pytest.mark.parametrize(("adjacency", "rate"), KINDS)
@pytest.mark.parametrize("slope", [0.4, 1.0, 1.2, 3.0])
def test_divergence_is_the_integral_of_what_is_above(adjacency: Adjacency, rate: float, slope: float) -> None:
    shift = 1 / 1.3

    x = np.linspace(-12, 12, 400_001)
    first = (1 - rate) * norm.pdf(x) + rate * norm.pdf(x - shift)
    second = first[::-1] if adjacency == "replace-one" else norm.pdf(x)
    both = [np.maximum(0, p - slope * q).sum() * (x[1] - x[0]) for p, q in ((first, second), (second, first))]
    found = Family(sample_rate=rate, adjacency=adjacency).divergences(1.3, [slope])
    assert found[0] == pytest.approx(max(both), abs=2e-7)


@pytest.mark.parametrize(("adjacency", "shifts"), [("add-remove", 1.0), ("replace-one", 2.0)])
def test_trade_off_of_a_gaussian(adjacency: Adjacency, shifts: float) -> None:
    trade_off = Family(sample_rate=1.0, adjacency=adjacency).trade_off(1.5)
    for probability in (1e-7, 1e-3, 0.2, 0.6, 0.99):
        exact = norm.cdf(norm.ppf(probability) - shifts / 1.5)
        found = trade_off.at_least(probability)
        assert found <= exact * (1 + 1e-9)  # tangents: never more than the truth asks for
        assert found == pytest.approx(exact, rel=1e-3)


def test_more_noise_betrays_less() -> None:
    slopes = np.exp(np.linspace(-3, 3, 25))
    for adjacency, rate in KINDS:
        family = Family(sample_rate=rate, adjacency=adjacency)
        found = np.stack([family.divergences(sigma, slopes) for sigma in (0.0625, 0.5, 1.0, 3.0, 50.0, 1024.0)])
        assert np.isfinite(found).all()
        assert (np.diff(found, axis=0) <= 1e-12).all()
        assert found[0, 12] > 0.9 * rate > found[-1, 12]


def test_approximate_dp() -> None:
    trade_off = approximate_dp(1.0, 0.01)
    assert trade_off.at_least(0.005) == 0
    assert trade_off.at_least(0.2) == pytest.approx((0.2 - 0.01) / math.e)
    assert trade_off.at_least(0.95) == pytest.approx(1 - (1 - 0.95) * math.e - 0.01)
    assert approximate_dp(0.0, 0.0).at_least(0.3) == 0.3
    with pytest.raises(ConfigError, match="rise"):
        TradeOff([2.0, 1.0], [0.0, 0.1])
