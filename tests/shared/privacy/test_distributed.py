"""Noise in shares: what the sum has, what it costs, and that no figure lies below the truth."""

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import stats
from scipy.special import logsumexp

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy import accounting, composition, filters
from wardpose.shared.privacy.accounting import Event, epsilon, federation_epsilon, local_events
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.distributed import (
    GRID_STEPS,
    LEAST_SCALE,
    MOST_REMOVALS,
    DistributedNoise,
    levels,
    log_tau,
)
from wardpose.shared.privacy.filters import Charged
from wardpose.shared.privacy.mechanisms import Mechanism

DELTA = 1e-5


def event(**changes: Any) -> Event:
    base = Event(
        mechanism="dp-sgd", unit="patient", sample_rate=0.1, noise_multiplier=1.5, steps=50, max_grad_norm=1.0,
        noise="distributed-discrete-gaussian", shares=7,
    )  # fmt: skip
    return replace(base, **changes)


def discrete_gaussian(scale: float, reach: int) -> NDArray[np.float64]:
    x = np.arange(-reach, reach + 1)
    weights = np.exp(-(x**2) / (2 * scale**2))
    return weights / weights.sum()


def summed(scales: Sequence[float], reach: int) -> NDArray[np.float64]:
    """Exact law of a sum of discrete Gaussians on -reach .. reach, which must be well inside its support."""
    total = np.ones(1)
    for scale in scales:
        total = np.convolve(total, discrete_gaussian(scale, 2 * reach))
    middle = len(total) // 2
    return total[middle - reach : middle + reach + 1]


def divergence(p: NDArray[np.float64], q: NDArray[np.float64], order: int, width: float = 1.0) -> float:
    """Rényi divergence of order `order`, by sums of logarithms."""
    logs = order * np.log(p) + (1 - order) * np.log(q)
    return float(logsumexp(logs) + math.log(width)) / (order - 1)


@pytest.mark.parametrize(
    "scales",
    [
        [0.5] * 2,
        [0.6] * 3,
        [0.7] * 5,
        [0.8] * 8,
        [1.0] * 4,
        [0.9, 0.5],
        [1.1, 0.6, 0.5],
        [0.5, 2.0],
        [0.7, 0.6, 0.5] * 3,
    ],
)
def test_a_sum_is_within_tau_of_one_discrete_gaussian(scales: list[float]) -> None:
    """The published bound against exact convolutions, at scales where it is not nothing, equal and unequal."""
    spread = math.sqrt(sum(scale**2 for scale in scales))
    reach = math.ceil(5 * spread)
    exact, one = summed(scales, reach), discrete_gaussian(spread, 4 * reach)
    ratio = np.abs(np.log(exact / one[3 * reach : 5 * reach + 1]))
    assert 0 < ratio.max() <= math.exp(log_tau(scales)) + 1e-9
    assert log_tau(scales) <= math.log(10 * (len(scales) - 1)) - math.pi**2 * min(scales) ** 2 + 1e-9


@pytest.mark.parametrize(("rate", "scale", "shares", "shift"), [(1.0, 0.9, 3, 1), (0.2, 0.7, 5, 2), (0.05, 1.1, 7, 3)])
def test_the_divergence_of_a_sampled_sum_is_at_most_what_is_charged(
    rate: float, scale: float, shares: int, shift: int
) -> None:
    """Straight from the probabilities of a sum of shares, both ways, against the curve that ledgers add up."""
    reach = math.ceil(7 * scale * math.sqrt(shares)) + 9 * shift
    base = summed([scale] * shares, reach)
    plain, moved = base[shift:], base[:-shift]
    mixed = (1 - rate) * plain + rate * moved
    sigma = scale * math.sqrt(shares) / shift
    orders = (2, 3, 5, 8)
    for order, most in zip(orders, composition.rdp_curve(rate, sigma, "add-remove", orders), strict=True):
        slack = math.exp(log_tau([scale] * shares)) * (2 * order - 1) / (order - 1)
        for p, q in ((mixed, plain), (plain, mixed)):
            assert divergence(p, q, order) <= most + slack + 1e-9


def test_the_grid_makes_tau_nothing_beside_rounding() -> None:
    parts = 10_000 * (1 + MOST_REMOVALS)
    worst = (
        math.log(10 * parts) - math.pi**2 * LEAST_SCALE**2 + math.log(2.0**40) + math.log(3)
    )  # d coordinates, order 2
    assert worst < math.log(1e-14) - 10**6


@pytest.mark.parametrize(
    ("sites", "survivors", "colluding"), [(4, 3, 1), (10, 8, 0), (10, 6, 2), (50, 40, 1), (9, 9, 3)]
)
@pytest.mark.parametrize("sigma", [0.3, 1.0, 1 / 3, 12.75])
def test_whoever_survives_the_honest_ones_keep_the_noise_of_the_plan_and_hardly_a_grid_step_more(
    sites: int, survivors: int, colluding: int, sigma: float
) -> None:
    """In exact arithmetic, for every number of survivors; at a level not more than the rounding of one scale."""
    noise = DistributedNoise(sites=sites, minimum_survivors=survivors, colluding=colluding)
    scales, counts = noise.scales(sigma, sites=sites), levels(survivors, sites)
    owed = (Fraction(sigma) * GRID_STEPS) ** 2
    for count in range(survivors, sites + 1):
        removed = bisect.bisect_right(counts, count) - 1
        kept = sum(scale**2 for scale in (scales[0], *scales[1 + removed :]))
        assert (count - colluding) * kept >= owed
        if count in counts:
            last = scales[1 + removed] if removed < len(scales) - 1 else scales[0]
            assert (count - colluding) * (kept - 2 * last) < owed


def test_up_to_four_missing_sites_every_number_has_noise_of_its_own() -> None:
    for sites in range(1, 30):
        for survivors in range(1, sites + 1):
            counts = levels(survivors, sites)
            assert (counts[0], counts[-1]) == (survivors, sites)
            assert list(counts) == sorted(set(counts))
            assert len(counts) == min(sites - survivors, MOST_REMOVALS) + 1


def test_without_noise_there_is_none_to_take_off() -> None:
    assert DistributedNoise(sites=10, minimum_survivors=8).scales(0.0, sites=10) == (0, 0, 0)


@pytest.mark.parametrize(("sites", "sigma", "coordinates"), [(4, 1.5, 91_000), (50, 2.0, 2_900_000), (10, 0.4, 1)])
def test_sums_leave_the_modulus_less_than_once_in_a_million_million_rounds(
    sites: int, sigma: float, coordinates: int
) -> None:
    noise = DistributedNoise(sites=sites, minimum_survivors=sites - sites // 5, colluding=1)
    bound = noise.largest_site_sum(sigma, sites=sites, coordinates=coordinates)
    spread = math.sqrt(sites * sum(scale**2 for scale in noise.scales(sigma, sites=sites)))
    room = 2 ** (noise.bits - 1) - sites * bound
    assert coordinates * 2 * stats.norm.sf(room / spread) <= 1e-12
    assert noise.largest_site_sum(sigma, sites=sites, coordinates=coordinates) >= GRID_STEPS


def test_too_few_bits_are_refused_with_the_number_that_would_do() -> None:
    noise = DistributedNoise(sites=50, minimum_survivors=40, bits=24)
    with pytest.raises(ValueError, match=r"bits is 24; allowed for 50 sites at noise_multiplier 2.0: 28 or more"):
        noise.largest_site_sum(2.0, sites=50, coordinates=10**6)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"name": "feature"}, 'allowed: "dp-sgd"'),
        ({"noise_multiplier": 1e-6}, "noise_multiplier is 1e-06"),
        ({"distributed": {"sites": 2, "minimum_survivors": 3}}, "at most sites = 2"),
        ({"distributed": {"sites": 5, "minimum_survivors": 3, "colluding": 3}}, "fewer than minimum_survivors"),
    ],
)
def test_mechanisms_that_cannot_be_distributed_are_refused(changes: dict[str, Any], match: str) -> None:
    good = {"noise_multiplier": 1.0, "distributed": {"sites": 8, "minimum_survivors": 8}}
    Mechanism.model_validate(good)
    with pytest.raises(ValidationError, match=match):
        Mechanism.model_validate(good | changes)


def test_events_carry_the_noise_of_the_sum_and_how_many_shares_it_is() -> None:
    """So many as there are when nobody is missing: then a site's own share is smallest."""
    mechanism = Mechanism(noise_multiplier=1.5, distributed=DistributedNoise(sites=8, minimum_survivors=6))
    (charged,) = mechanism.events(50)
    assert charged == event()
    assert Event.from_json(charged.to_json()) == charged
    (local,) = local_events([charged])
    assert (local.noise, local.noise_multiplier, local.shares) == ("discrete-gaussian", 1.5 / math.sqrt(7), 1)
    assert epsilon([local], delta=DELTA) > epsilon([charged], delta=DELTA)
    for wrong in ({"shares": 0}, {"shares": True}, {"noise": "gaussian"}, {"noise": "skellam"}):
        with pytest.raises(ConfigError):
            event(**wrong)


def test_what_is_not_distributed_is_written_as_it_was_before() -> None:
    plain = replace(event(), noise="gaussian", shares=1)
    assert "shares" not in plain.to_json()
    assert "distributed" not in Mechanism().model_dump_json()
    course = Course(run="r", federation="f", mechanism=Mechanism(noise_multiplier=1.0), steps=1, last_round=2)
    assert Course.model_validate_json(course.model_dump_json()).identity == course.identity


def test_epsilon_agrees_with_dp_accountings_own_renyi_accountant() -> None:
    """Of the Gaussian of equal multiplier, whose integer orders are those of the sum."""
    accountant = RdpAccountant(orders=list(composition.INTEGER_ORDERS))
    sampled = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.5))
    accountant.compose(sampled, 50)
    assert epsilon([event()], delta=DELTA) == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-6)
    assert epsilon([event()], delta=DELTA) >= epsilon([replace(event(), noise="gaussian", shares=1)], delta=DELTA)


def test_a_patient_of_several_sites_pays_for_all_contributions_to_one_sum() -> None:
    """Not what independent releases cost: the sum moves by 2C under noise that was added once."""
    once = event(sample_rate=1.0, steps=1, noise_multiplier=4.0)
    sites = {"north": [once], "south": [once]}
    truth = composition.gaussian_epsilon(2 / 4.0, DELTA)
    independent = epsilon([replace(once, noise="gaussian", shares=1, steps=2)], delta=DELTA)
    assert federation_epsilon(sites, DELTA, 1) == epsilon([once], delta=DELTA)
    assert federation_epsilon(sites, DELTA, 2) >= truth > independent
    charges = {site: [Charged(course="c", events=tuple(events))] for site, events in sites.items()}
    assert filters.federation_epsilon(charges, delta=DELTA, overlap=2) >= truth


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
def test_whatever_sites_share_a_patient_their_charges_cover_the_round(adjacency: composition.Adjacency) -> None:
    """Of every subset of 3 sites, by the mixture over the coins, on a fine grid of outcomes."""
    rate, sigma = 0.3, 2.0
    charge = ("distributed-discrete-gaussian", rate, sigma, 1)
    each = composition.overlapping_curve([charge], 3, [charge], adjacency)  # type: ignore[list-item]
    x = np.linspace(-60, 60, 60_001)
    for count in (1, 2, 3):
        chances = stats.binom.pmf(np.arange(count + 1), count, rate)
        p, q = (
            sum(chance * stats.norm.pdf(x, side * j, sigma) for j, chance in enumerate(chances)) for side in (1, -1)
        )
        plain = stats.norm.pdf(x, 0, sigma)
        pairs = [(p, plain), (plain, p)] if adjacency == "add-remove" else [(p, q)]
        for place, order in itertools.islice(enumerate(composition.INTEGER_ORDERS), 8):
            for one, other in pairs:
                assert divergence(one, other, order, x[1] - x[0]) <= count * each[place] * (1 + 1e-6)


def test_what_others_are_charged_is_as_before() -> None:
    plain = replace(event(), noise="gaussian", shares=1)
    charges = accounting.merged_charges([plain])
    assert charges is not None
    curve = composition.overlapping_curve(charges, 5, charges, "add-remove")
    assert (curve == composition.summed_curve(charges, "add-remove")).all()
