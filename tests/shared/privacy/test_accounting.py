import json
import math

import dp_accounting
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardpose.shared.errors import BudgetExceeded, ConfigError
from wardpose.shared.privacy import composition
from wardpose.shared.privacy.accounting import (
    Event,
    calibrate,
    epsilon,
    epsilon_by_tier,
    federation_epsilon,
)

DELTA = 1e-5


def steps(sample_rate: float, noise_multiplier: float, count: int, **other: object) -> Event:
    values = {"mechanism": "dp-sgd", "unit": "patient", "max_grad_norm": 1.0, **other}
    return Event(sample_rate=sample_rate, noise_multiplier=noise_multiplier, steps=count, **values)  # type: ignore[arg-type]


# Rate, multiplier, steps; dp-accounting's RDP and PLD; Opacus' PRV (its error is 0.01).
TABLE = [
    (0.01, 1, 10, 1.035, 0.380, 0.390),
    (0.01, 1, 500, 1.653, 1.326, 1.336),
    (0.01, 1, 2000, 2.867, 2.584, 2.594),
    (0.01, 5, 10, 0.047, 0.018, 0.028),
    (0.01, 5, 500, 0.169, 0.146, 0.156),
    (0.05, 2, 100, 1.222, 1.097, 1.107),
    (0.05, 5, 2000, 1.953, 1.794, 1.804),
    (0.1, 1, 100, 7.904, 7.047, 7.057),
    (0.1, 5, 500, 1.969, 1.806, 1.816),
    (0.1, 10, 10, 0.118, 0.102, 0.112),
    (0.1, 10, 2000, 1.928, 1.771, 1.782),
]


@pytest.mark.parametrize(("rate", "sigma", "count", "rdp", "pld", "prv"), TABLE)
def test_known_values(rate: float, sigma: float, count: int, rdp: float, pld: float, prv: float) -> None:
    events = [steps(rate, sigma, count)]
    assert epsilon(events, delta=DELTA) == pytest.approx(pld, abs=6e-4)
    ours = epsilon(events, delta=DELTA, accountant="rdp")
    # More orders than dp-accounting's default can only lower RDP's figure; it stays above PLD's.
    assert pld <= ours <= rdp + 6e-4
    assert prv - 0.01 - 2e-3 <= epsilon(events, delta=DELTA) <= prv + 0.01


@pytest.mark.parametrize(("rate", "sigma", "count"), [(0.01, 1.0, 500), (0.05, 2.0, 100), (0.1, 5.0, 500)])
def test_agrees_with_opacus_prv(rate: float, sigma: float, count: int) -> None:
    prv = pytest.importorskip("opacus.accountants").PRVAccountant()
    prv.history = [(sigma, rate, count)]
    assert epsilon([steps(rate, sigma, count)], delta=DELTA) == pytest.approx(prv.get_epsilon(DELTA), abs=0.0115)


@pytest.mark.parametrize(("rate", "sigma", "count"), [(0.01, 1.0, 10), (0.01, 1.0, 500), (0.1, 1.0, 100)])
def test_the_central_limit_lies_below_the_truth_and_is_not_offered(rate: float, sigma: float, count: int) -> None:
    gdp = pytest.importorskip("opacus.accountants").GaussianAccountant()
    gdp.history = [(sigma, rate, count)]
    assert gdp.get_epsilon(DELTA) < 0.9 * epsilon([steps(rate, sigma, count)], delta=DELTA)
    with pytest.raises(ConfigError, match="accountant is 'gdp'"):
        epsilon([steps(rate, sigma, count)], delta=DELTA, accountant="gdp")  # type: ignore[arg-type]


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
def test_agrees_with_dp_accounting_on_mixed_events(adjacency: str) -> None:
    relation = {
        "add-remove": dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
        "replace-one": dp_accounting.NeighboringRelation.REPLACE_ONE,
    }[adjacency]
    events = [steps(0.02, 1.5, 40), steps(1.0, 20.0, 3), steps(0.05, 2.5, 30), steps(0.02, 1.5, 10)]
    reference = dp_accounting.pld.PLDAccountant(relation)
    for event in events:
        reference.compose(event.dp_event())
    assert epsilon(events, delta=DELTA, adjacency=adjacency) == pytest.approx(reference.get_epsilon(DELTA), rel=2e-4)


def test_replace_one_is_accounted_with_the_same_multiplier() -> None:
    assert epsilon([steps(0.01, 2, 500)], delta=DELTA, adjacency="replace-one") == pytest.approx(0.824, abs=1e-3)
    assert epsilon([steps(0.01, 2, 500)], delta=DELTA) == pytest.approx(0.432, abs=1e-3)
    # Without sampling, twice the sensitivity is half the multiplier.
    assert epsilon([steps(1, 4, 5)], delta=DELTA, adjacency="replace-one") == pytest.approx(
        epsilon([steps(1, 2, 5)], delta=DELTA), rel=1e-4
    )


@pytest.mark.parametrize(("rate", "sigma", "count"), [(0.01, 1.0, 500), (0.1, 5.0, 200), (0.3, 2.0, 20)])
def test_rdp_bounds_pld_under_replace_one(rate: float, sigma: float, count: int) -> None:
    events = [steps(rate, sigma, count)]
    pld = epsilon(events, delta=DELTA, adjacency="replace-one")
    assert pld < epsilon(events, delta=DELTA, adjacency="replace-one", accountant="rdp") < 3 * pld


def test_discrete_gaussian_pays_the_renyi_slack() -> None:
    continuous, discrete = steps(0.05, 2, 100), steps(0.05, 2, 100, noise="discrete-gaussian")
    assert epsilon([continuous], delta=DELTA) < epsilon([discrete], delta=DELTA)
    assert epsilon([discrete], delta=DELTA) == pytest.approx(1.222, abs=2e-3)
    assert epsilon([continuous, discrete], delta=DELTA) >= epsilon([steps(0.05, 2, 200)], delta=DELTA, accountant="rdp")


@pytest.mark.parametrize("order", [2, 3, 7])
@pytest.mark.parametrize("shift", [1, 3])
def test_discrete_gaussian_moments_equal_the_continuous_ones(order: int, shift: int) -> None:
    """The proof in the module's docstring, by brute force: both directions of the Poisson-sampled pair."""
    sigma, rate = 2.5, 0.2
    support = range(-400, 401)
    mass = {x: math.exp(-x * x / (2 * sigma**2)) for x in support}
    total = sum(mass.values())
    base = {x: mass[x] / total for x in support}
    mixed = {x: (1 - rate) * base[x] + rate * base.get(x - shift, 0.0) for x in support}
    centre = range(-40, 41)
    removed = math.log(sum((mixed[x] / base[x]) ** order * base[x] for x in centre)) / (order - 1)
    added = math.log(sum((base[x] / mixed[x]) ** order * mixed[x] for x in centre)) / (order - 1)
    continuous = composition.rdp_curve(rate, sigma / shift, "add-remove", (order,))[0]
    assert removed == pytest.approx(continuous, rel=1e-9)
    assert added <= removed


@pytest.mark.parametrize("order", [2, 3, 7])
def test_discrete_gaussian_moments_under_replacement_stay_below_the_bound(order: int) -> None:
    """By brute force: one unit's contribution v becomes -v, the worst case."""
    sigma, rate, shift = 2.5, 0.2, 2
    support = range(-200, 201)
    mass = {x: math.exp(-x * x / (2 * sigma**2)) for x in support}
    total = sum(mass.values())
    base = {x: mass[x] / total for x in support}
    first, second = ({x: (1 - rate) * base[x] + rate * base.get(x - v, 0.0) for x in support} for v in (shift, -shift))
    centre = range(-40, 41)
    moment = math.log(sum((first[x] / second[x]) ** order * second[x] for x in centre)) / (order - 1)
    bound = composition.rdp_curve(rate, sigma / shift, "replace-one", (order,))[0]
    assert 0.1 * bound < moment <= bound


def test_what_has_no_noise_has_no_bound_and_what_is_public_is_free() -> None:
    public = steps(1, 0, 100, mechanism="public-only")
    for accountant in ("pld", "rdp"):
        assert epsilon([public], delta=DELTA, accountant=accountant) == 0
        assert epsilon([], delta=DELTA, accountant=accountant) == 0
    assert epsilon([steps(0.1, 1, 0), steps(0, 0, 5)], delta=DELTA) == 0
    assert epsilon([public, steps(0.1, 0, 1)], delta=DELTA) == math.inf
    assert epsilon([steps(0.1, 5, 1, mechanism="none")], delta=DELTA, accountant="rdp") == math.inf
    assert isinstance(public.dp_event(), dp_accounting.NoOpDpEvent)
    assert isinstance(steps(0.1, 0, 1).dp_event(), dp_accounting.NonPrivateDpEvent)


@settings(max_examples=30, deadline=None)
@given(
    rate=st.sampled_from([0.02, 0.1, 1.0]),
    sigma=st.sampled_from([1.0, 3.0]),
    parts=st.lists(st.integers(1, 60), min_size=1, max_size=5),
)
def test_equal_steps_merge_and_epsilon_never_falls(rate: float, sigma: float, parts: list[int]) -> None:
    together = epsilon([steps(rate, sigma, sum(parts))], delta=DELTA)
    assert epsilon([steps(rate, sigma, part) for part in parts], delta=DELTA) == together
    assert epsilon([steps(rate, sigma, sum(parts) + 1)], delta=DELTA) >= together


@pytest.mark.parametrize("rate", [0.1, 1.0])
@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
def test_almost_no_noise_is_accounted_as_almost_no_privacy(rate: float, adjacency: str) -> None:
    for sigma in (1e-2, 1e-4, 1e-9, 1e-150):
        assert epsilon([steps(rate, sigma, 2)], delta=DELTA, adjacency=adjacency) > 1e3  # type: ignore[arg-type]


def test_order_of_events_does_not_matter() -> None:
    events = [steps(0.05, 2 + i / 10, 3) for i in range(40)]
    assert epsilon(events, delta=DELTA) == pytest.approx(epsilon(events[::-1], delta=DELTA), rel=1e-6)


def test_tiers_charge_their_own_units() -> None:
    events = [steps(0.05, 2, 100, tier="strict"), steps(0.1, 2, 100, tier="open"), steps(1, 10, 1)]
    by_tier = epsilon_by_tier(events, delta=DELTA)
    assert by_tier[""] < by_tier["strict"] < by_tier["open"] == epsilon(events, delta=DELTA)
    assert by_tier["strict"] == epsilon([steps(0.05, 2, 100), steps(1, 10, 1)], delta=DELTA)


@pytest.mark.parametrize(("target", "expected"), [(0.2, 2.84), (0.8, 1.03)])
def test_calibrate_known_values(target: float, expected: float) -> None:
    n, batch = 22000, 32
    multiplier = calibrate(epsilon=target, delta=1 / n, sample_rate=batch / n, steps=25 * n // batch)
    assert multiplier == pytest.approx(expected, abs=6e-3)


@pytest.mark.parametrize(
    ("target", "rate", "count", "expected"),
    # Ten epochs by Poisson sampling, and by a fixed schedule in which everybody takes part ten times.
    [(0.8, 0.01, 1000, 1.65), (2, 0.0625, 160, 1.83), (8, 0.1, 100, 0.94), (0.8, 1, 10, 14.5), (8, 1, 10, 1.9)],
)
def test_what_ten_epochs_need(target: float, rate: float, count: int, expected: float) -> None:
    multiplier = calibrate(epsilon=target, delta=DELTA, sample_rate=rate, steps=count, digits=3)
    assert multiplier == pytest.approx(expected, rel=0.01 if expected < 14 else 0.005, abs=0.01)


@pytest.mark.parametrize("spent", [(), (steps(0.1, 4, 50),)])
@pytest.mark.parametrize("noise", ["gaussian", "discrete-gaussian"])
def test_calibrate_is_the_smallest_that_fits(spent: tuple[Event, ...], noise: str) -> None:
    found = calibrate(epsilon=3, delta=DELTA, sample_rate=0.05, steps=100, spent=spent, noise=noise)  # type: ignore[arg-type]
    assert epsilon([*spent, steps(0.05, found, 100, noise=noise)], delta=DELTA) <= 3
    assert epsilon([*spent, steps(0.05, found * 0.998, 100, noise=noise)], delta=DELTA) > 3


def test_calibrate_refuses_the_impossible() -> None:
    with pytest.raises(BudgetExceeded, match="spent already"):
        calibrate(epsilon=0.5, delta=DELTA, sample_rate=0.1, steps=10, spent=[steps(0.1, 1, 100)])
    with pytest.raises(ConfigError, match="epsilon"):
        calibrate(epsilon=-1, delta=DELTA, sample_rate=0.1, steps=10)


def test_federation_of_disjoint_and_overlapping_patients() -> None:
    sites = {"north": [steps(0.1, 2, 100)], "south": [steps(0.1, 3, 100)], "east": [steps(0.1, 2, 100)]}
    own = epsilon(sites["north"], delta=DELTA)
    assert federation_epsilon(sites, DELTA) == own
    assert federation_epsilon(sites, DELTA, 2) == epsilon([steps(0.1, 2, 200)], delta=DELTA)
    assert federation_epsilon(sites, DELTA, 9) == pytest.approx(
        epsilon([steps(0.1, 2, 200), steps(0.1, 3, 100)], delta=DELTA), rel=1e-6
    )
    assert federation_epsilon({**sites, "west": [steps(0.1, 0, 1)]}, DELTA, 2) == math.inf
    assert federation_epsilon({}, DELTA) == 0


# Alone, a rare step with little noise costs more than a common one; composed with a third, it costs less.
RARE, COMMON, THIRD = steps(0.002, 0.4, 5, tier="rare"), steps(1, 1.11, 1, tier="common"), steps(1, 1.5, 1)


def test_the_tier_that_costs_most_alone_is_not_always_the_one_that_counts() -> None:
    alone = epsilon_by_tier([RARE, COMMON], delta=DELTA)
    assert alone["rare"] > alone["common"]
    together = epsilon_by_tier([RARE, COMMON, THIRD], delta=DELTA)
    assert together["common"] > 1.05 * together["rare"]
    sites = {"north": [RARE, COMMON], "south": [THIRD]}
    assert federation_epsilon(sites, DELTA) == alone["rare"]
    assert federation_epsilon(sites, DELTA, 2) == together["common"]
    many = sites | {f"site{i}": [steps(0.01, 20 + i / 100, 1)] for i in range(30)}
    assert federation_epsilon(many, DELTA, 3) >= together["common"]
    sigma = calibrate(epsilon=5, delta=DELTA, sample_rate=1, steps=1, spent=[RARE, COMMON], digits=3)
    assert 4.9 < epsilon([RARE, COMMON, steps(1, sigma, 1)], delta=DELTA) <= 5


def test_federation_of_many_different_sites_is_bounded() -> None:
    sites = {f"site{i}": [steps(0.1, 2 + i / 100, 20)] for i in range(30)}
    worst_three = [steps(0.1, 2 + i / 100, 20) for i in range(3)]
    bound = federation_epsilon(sites, DELTA, 3)
    assert epsilon(worst_three, delta=DELTA) <= bound <= 1.3 * epsilon(worst_three, delta=DELTA)


def test_events_survive_json() -> None:
    event = steps(0.1 + 1e-17, 1 / 3, 7, noise="discrete-gaussian", tier="strict")
    assert Event.from_json(json.loads(json.dumps(event.to_json()))) == event
    with pytest.raises(ConfigError, match="unknown keys \\['colour'\\]"):
        Event.from_json({**event.to_json(), "colour": 1})
    with pytest.raises(ConfigError, match="missing keys \\['steps'\\]"):
        Event.from_json({key: value for key, value in event.to_json().items() if key != "steps"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sample_rate", 1.1), ("sample_rate", float("nan")), ("sample_rate", "0.1"),
        ("noise_multiplier", -1),
        ("noise_multiplier", float("inf")), ("steps", 1.5), ("steps", -1), ("steps", True),
        ("max_grad_norm", 0),
        ("unit", "person"), ("noise", "laplace"), ("mechanism", ""), ("tier", None),
    ],
)  # fmt: skip
def test_events_refuse_nonsense(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        Event.from_json({**steps(0.1, 1, 1).to_json(), key: value})


@pytest.mark.parametrize("delta", [0, 1, -1, 1e-13, float("nan")])
def test_delta_is_checked(delta: float) -> None:
    with pytest.raises(ConfigError, match="delta"):
        epsilon([steps(0.1, 1, 1)], delta=delta)
