"""The accountant against dp-accounting, closed forms and itself: never below the truth, never falling, near both."""

import math
from collections.abc import Sequence

import dp_accounting
import mpmath
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wardpose.shared.privacy import composition, loss_distribution, renyi
from wardpose.shared.privacy.accounting import Event, calibrate, epsilon
from wardpose.shared.privacy.composition import Adjacency, Charge, composed_epsilon, merge

RELATIONS = {
    "add-remove": dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace-one": dp_accounting.NeighboringRelation.REPLACE_ONE,
}
ADJACENCIES = st.sampled_from(["add-remove", "replace-one"])


def charge(rate: float, sigma: float, steps: int, noise: str = "gaussian") -> Charge:
    return (noise, rate, sigma, steps)  # type: ignore[return-value]


def ours(charges: Sequence[Charge], delta: float, adjacency: Adjacency = "add-remove") -> float:
    return composed_epsilon(merge(charges), delta, "pld", adjacency)


def gaussian_delta(shift: float, at: float) -> mpmath.mpf:
    """Balle, Wang 2018, theorem 8, with 60 digits."""
    with mpmath.workdps(60):
        m, e = mpmath.mpf(shift), mpmath.mpf(at)
        return mpmath.ncdf(m / 2 - e / m) - mpmath.exp(e) * mpmath.ncdf(-m / 2 - e / m)


def powers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high).map(lambda power: 10**power)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(shift=powers(-6, 2.3), delta=powers(-12, -0.5))
def test_the_closed_form_is_the_truth(shift: float, delta: float) -> None:
    found = composition.gaussian_epsilon(shift, delta)
    assert gaussian_delta(shift, found) <= delta
    if found > 0:
        assert gaussian_delta(shift, 0.9999 * found) > delta


@pytest.mark.parametrize("steps", [1, 100, 10_000, 100_000])
@pytest.mark.parametrize("shift", [1e-3, 0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("delta", [1e-12, 1e-5, 0.1])
def test_composed_losses_never_lie_below_the_closed_form(steps: int, shift: float, delta: float) -> None:
    """Without sampling the truth is known, however many steps are convolved."""
    exact = composition.gaussian_epsilon(shift, delta)
    points = 1 << 17
    interval = 2.0 ** math.ceil(math.log2(24 * shift / points if shift < 30 else (shift**2 / 2 + 10 * shift) / points))
    (losses,) = loss_distribution.step_losses(1.0, math.sqrt(steps) / shift, "add-remove", interval)
    found = loss_distribution.composed_epsilon([(losses, steps)], delta, points)
    assert exact <= found <= 1.02 * exact + interval


def test_dp_accounting_s_convolutions_alone_would_lie_below_it() -> None:
    """Why there is code of our own: should this fail one day, it may go."""
    distribution = privacy_loss_distribution.from_gaussian_mechanism(math.sqrt(100_000)).self_compose(100_000)
    assert distribution.get_epsilon_for_delta(1e-12) < 0.98 * composition.gaussian_epsilon(1.0, 1e-12)


def reference(rate: float, sigma: float, steps: int, adjacency: str, interval: float, *, pessimistic: bool = True):  # type: ignore[no-untyped-def]
    return privacy_loss_distribution.from_gaussian_mechanism(
        sigma,
        pessimistic_estimate=pessimistic,
        value_discretization_interval=interval,
        sampling_prob=rate,
        neighboring_relation=RELATIONS[adjacency],
        use_connect_dots=pessimistic,
    ).self_compose(steps)


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
@pytest.mark.parametrize(
    ("rate", "sigma", "steps", "interval"),
    [
        (1e-3, 0.6, 30, 2e-3), (1e-4, 0.5, 1000, 2e-3), (1e-4, 5.0, 500, 2e-6), (5e-4, 2.0, 1, 5e-6),
        (0.01, 1.0, 200, 5e-4), (0.05, 0.4, 20, 5e-3), (0.3, 0.3, 5, 2e-2), (0.3, 30.0, 300, 1e-4),
        (0.9, 1.0, 50, 1e-2), (0.5, 0.1, 2, 0.1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("delta", [1e-8, 1e-3])
def test_lies_between_dp_accounting_s_bounds(
    rate: float, sigma: float, steps: int, interval: float, adjacency: str, delta: float
) -> None:
    found = ours([charge(rate, sigma, steps)], delta, adjacency)  # type: ignore[arg-type]
    above = reference(rate, sigma, steps, adjacency, interval).get_epsilon_for_delta(delta)
    below = reference(rate, sigma, steps, adjacency, interval, pessimistic=False).get_epsilon_for_delta(delta)
    assert below <= found <= above * (1 + 1e-3) + 1e-9


def test_mixed_charges_lie_between_dp_accounting_s_bounds() -> None:
    kinds = [(0.02, 0.8, 20), (0.3, 4.0, 30), (1.0, 20.0, 3), (1e-3, 0.5, 100)]
    for adjacency in RELATIONS:
        bounds = []
        for pessimistic in (True, False):
            first, *others = (reference(*kind, adjacency, 2e-3, pessimistic=pessimistic) for kind in kinds)
            for other in others:
                first = first.compose(other)
            bounds.append(first.get_epsilon_for_delta(1e-6))
        assert bounds[1] <= ours([charge(*kind) for kind in kinds], 1e-6, adjacency) <= bounds[0]  # type: ignore[arg-type]


CHARGES = st.builds(
    charge,
    st.one_of(st.just(1.0), powers(-4, 0)),
    powers(-1.5, 3),
    powers(0, 5).map(int),
    st.sampled_from(["gaussian"] * 9 + ["discrete-gaussian"]),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(parts=st.lists(CHARGES, min_size=2, max_size=7), delta=powers(-12, -1), adjacency=ADJACENCIES)
@example(parts=[charge(0.05, 2 + i / 7, 3) for i in range(34)], delta=1e-5, adjacency="add-remove")
def test_more_charges_never_cost_less(parts: list[Charge], delta: float, adjacency: Adjacency) -> None:
    totals = [ours(parts[: count + 1], delta, adjacency) for count in range(len(parts))]
    assert totals == sorted(totals)
    assert ours(parts[::-1], delta, adjacency) == totals[-1]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    rate=powers(-4, 0), sigma=powers(-1.3, 3), steps=powers(0, 5).map(int), delta=powers(-12, -1),
    adjacency=ADJACENCIES, more=powers(-6, 1),
)  # fmt: skip
def test_figures_are_monotone_finite_and_at_most_renyi_s(
    rate: float, sigma: float, steps: int, delta: float, adjacency: Adjacency, more: float
) -> None:
    found = ours([charge(rate, sigma, steps)], delta, adjacency)
    assert math.isfinite(found)
    assert ours([charge(rate, sigma, math.ceil(steps * (1 + more)))], delta, adjacency) >= found
    assert ours([charge(rate, sigma * (1 + more), steps)], delta, adjacency) <= found
    assert ours([charge(min(1.0, rate * (1 + more)), sigma, steps)], delta, adjacency) >= found
    assert ours([charge(rate, sigma, steps)], min(0.9, delta * (1 + more)), adjacency) <= found
    assert found <= composed_epsilon((charge(rate, sigma, steps),), delta, "rdp", adjacency) * (1 + 1e-8)
    assert composed_epsilon((charge(rate, sigma, steps),), delta, "pld", adjacency, 4) >= found


def test_a_group_costs_more_than_its_members_and_a_group_of_one_as_much() -> None:
    charges = (charge(0.05, 3.0, 50),)
    alone = ours(charges, 1e-5)
    assert composition.group_epsilon(charges, 1, 1e-5) == pytest.approx(alone, rel=0.02)
    assert composition.group_epsilon(charges, 1, 1e-5) >= alone
    assert 2 * alone < composition.group_epsilon(charges, 3, 1e-5) < 9 * alone
    assert composition.group_epsilon((charge(0.05, 0.01, 1),), 3, 1e-5) == math.inf


def test_a_discrete_charge_never_makes_the_rest_cheaper() -> None:
    """Rényi bounds with a discrete charge may lie below the distribution's bound without it where that is coarse."""
    base = [charge(0.05, 1.5 + i / 100, 2000) for i in range(40)]
    alone = ours(base, 1e-12)
    assert ours([*base, charge(1e-4, 1000.0, 1, "discrete-gaussian")], 1e-12) >= alone


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    target=powers(-4, 4), delta=powers(-12, -1), rate=powers(-4, 0), steps=powers(0, 5).map(int), adjacency=ADJACENCIES,
    noise=st.sampled_from(["gaussian", "gaussian", "discrete-gaussian"]),
)  # fmt: skip
@example(target=1000.0, delta=1e-5, rate=0.1, steps=100, adjacency="add-remove", noise="gaussian")
@example(target=0.001, delta=1e-5, rate=0.1, steps=100, adjacency="replace-one", noise="discrete-gaussian")
def test_calibration_spends_the_budget_and_no_more(
    target: float, delta: float, rate: float, steps: int, adjacency: Adjacency, noise: str
) -> None:
    sigma = calibrate(
        epsilon=target, delta=delta, sample_rate=rate, steps=steps, adjacency=adjacency, noise=noise, digits=3  # type: ignore[arg-type]
    )  # fmt: skip

    def spent(multiplier: float) -> float:
        event = Event(
            mechanism="plan", unit="patient", sample_rate=rate, noise_multiplier=multiplier, steps=steps,
            max_grad_norm=1.0, noise=noise,  # type: ignore[arg-type]
        )  # fmt: skip
        return epsilon([event], delta=delta, adjacency=adjacency)

    assert spent(sigma) <= target
    if sigma > 1e-4:
        assert spent(0.989 * sigma) > target


def test_a_thousand_kinds_cost_less_than_renyi_says() -> None:
    thousand = [charge(0.05, 2 + i / 250, 5) for i in range(1000)]
    mean = charge(0.05, 1 / math.sqrt(np.mean([1 / kind[2] ** 2 for kind in thousand])), 5000)
    by_renyi = composition.curve_epsilon(composition.summed_curve(thousand, "add-remove"), 1e-5)
    assert 0.99 * ours([mean], 1e-5) < ours(thousand, 1e-5) < 0.95 * by_renyi


def test_more_kinds_than_that_are_put_on_a_lattice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "_MOST_KINDS", 32)
    composition._composed.cache_clear()
    many = [charge(0.05 + i / 5000, 2 + (i * 37 % 100) / 50, 1 + i % 3) for i in range(100)]
    kinds = [kind[1:] for kind in many]
    few = composition._few(kinds)
    assert len(few) <= 32
    # Every kind has found a place of its own, at which it costs no less.
    for rate, sigma, _ in kinds:
        assert sum(n for q, s, n in few if q >= rate and s <= sigma) >= sum(
            n for q, s, n in kinds if q >= rate and s <= sigma
        )
    assert sum(n for _, _, n in few) == sum(n for _, _, n in kinds)
    totals = [ours(many[:count], 1e-5) for count in range(28, 60)]
    assert totals == sorted(totals)
    rounded = ours(many, 1e-5)
    monkeypatch.undo()
    composition._composed.cache_clear()
    assert ours(many, 1e-5) < rounded < 1.2 * ours(many, 1e-5)


@pytest.mark.parametrize(("rate", "sigma"), [(0.01, 1.0), (0.3, 0.5), (0.2, 10.0), (1e-3, 20.0), (0.9, 3.0)])
def test_renyi_divergences_are_the_integral(rate: float, sigma: float) -> None:
    orders = (1.1, 1.5, 1.9, 2, 2.5, 3, 7.7, 20)
    found = renyi.rdp_curve(rate, sigma, "add-remove", orders)
    for order, divergence in zip(orders, found, strict=True):
        with mpmath.workdps(40):

            def integrand(z: mpmath.mpf, order: float = order) -> mpmath.mpf:
                odds = mpmath.exp(z / sigma - mpmath.mpf(1) / (2 * sigma * sigma))
                return mpmath.npdf(z) * (1 - rate + rate * odds) ** order

            moment = mpmath.quad(integrand, [-14, -4, 0, 4, order / sigma + 4, order / sigma + 14])
            true = float(mpmath.log(moment) / (order - 1))
        assert true * (1 - 1e-11) <= divergence <= true * (1 + 2e-7)


@pytest.mark.parametrize(("rate", "sigma"), [(0.01, 1.0), (0.3, 0.5), (0.9, 3.0)])
def test_renyi_curves_agree_with_dp_accounting_at_whole_orders(rate: float, sigma: float) -> None:
    accountant = dp_accounting.rdp.RdpAccountant(renyi.INTEGER_ORDERS)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma)))
    found = renyi.rdp_curve(rate, sigma, "add-remove", renyi.INTEGER_ORDERS)
    np.testing.assert_allclose(found, accountant.rdp, rtol=1e-8)


def test_a_step_that_costs_next_to_nothing_does_not_cost_nothing() -> None:
    """The usual form of the moment is 1 + 1e-18 here, which is 1: a hundred thousand such steps would be free."""
    rate, sigma, order = 1e-4, 1e4, 2
    found = renyi.rdp_curve(rate, sigma, "add-remove", (order,))[0]
    assert found == pytest.approx(rate**2 * math.expm1(1 / sigma**2), rel=1e-6)
    assert np.all(renyi.rdp_curve(rate, sigma, "add-remove", renyi.ALL_ORDERS) > 0)
    assert composed_epsilon((charge(rate, sigma, 10**9),), 1e-8, "rdp", "add-remove") > 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    rate=powers(-300, 0), sigma=powers(-300, 300), steps=powers(0, 15).map(int), delta=powers(-12, -0.01),
    adjacency=ADJACENCIES,
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_absurd_charges_have_a_figure_too(
    rate: float, sigma: float, steps: int, delta: float, adjacency: Adjacency
) -> None:
    found = ours([charge(rate, sigma, steps)], delta, adjacency)
    assert found >= 0
    assert ours([charge(rate, sigma, steps), charge(0.1, 1.0, 1)], delta, adjacency) >= found
