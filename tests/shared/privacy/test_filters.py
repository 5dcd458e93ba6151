"""Orders chosen by looking at releases: a list's PLD is no filter, the enforced figure is one."""

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from wardpose.shared.errors import BudgetExceeded
from wardpose.shared.privacy import accounting, filters
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.filters import Charged, account, best_order, costliest
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.schedules import Phase, Schedule

DELTA = 1e-5
INTERVAL = 1e-3


def event(sigma: float, rate: float = 0.1, steps: int = 10, **more: object) -> Event:
    values = {"mechanism": "dp-sgd", "unit": "patient", "max_grad_norm": 1.0} | more
    return Event(sample_rate=rate, noise_multiplier=sigma, steps=steps, **values)  # type: ignore[arg-type]


def losses(charged: Event) -> tuple[np.ndarray, np.ndarray]:
    """Privacy losses and their probabilities, the unit being there; from an optimistic distribution: a lower bound."""
    logging.disable(logging.WARNING)  # about the algorithm that an optimistic estimate takes
    whole = pld.from_gaussian_mechanism(
        standard_deviation=charged.noise_multiplier,
        sampling_prob=charged.sample_rate,
        value_discretization_interval=INTERVAL,
        pessimistic_estimate=False,
    ).self_compose(charged.steps)
    pmf = whole._pmf_remove.to_dense_pmf()
    return (pmf._lower_loss + np.arange(pmf.size)) * INTERVAL, pmf._probs


def chosen_by_looking(first: Event, options: Sequence[Event]) -> float:
    """A lower bound of the true epsilon: whoever saw the first release picks the worst of the options for what it saw.

    delta(epsilon) is the mean, over the first loss l, of the largest delta of an option at epsilon - l.
    """
    seen, chances = losses(first)
    tables = [losses(option) for option in options]

    def delta(epsilon: float) -> float:
        needed = epsilon - seen
        worst = np.zeros_like(seen)
        for values, probabilities in tables:
            tail = np.cumsum(probabilities[::-1])[::-1]
            discounted = np.cumsum((probabilities * np.exp(-values))[::-1])[::-1]
            place = np.searchsorted(values, needed, side="right")
            inside = place < len(values)
            index = np.minimum(place, len(values) - 1)
            excess = np.where(inside, tail[index] - np.exp(needed) * discounted[index], 0.0)
            worst = np.maximum(worst, excess)
        return float(chances @ worst)

    return float(brentq(lambda value: math.log(max(delta(value), 1e-30) / DELTA), 0.1, 40, xtol=1e-4))


KINDS = ((1.0, 1), (0.1, 10), (0.01, 100), (0.001, 1))  # a bell, and ever rarer and larger losses


def smallest_sigma(accepted: "object", rate: float, steps: int) -> Event | None:
    low, high = 0.25, 64.0
    if not accepted(event(high, rate, steps)):  # type: ignore[operator]
        return None
    for _ in range(18):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if accepted(event(middle, rate, steps)) else (middle, high)  # type: ignore[operator]
    return event(high, rate, steps)


@pytest.mark.parametrize("budget", [2.0, 4.0])
def test_the_enforced_figure_covers_orders_that_were_chosen_by_looking(budget: float) -> None:
    """Accepted by "PLD of all is at most the budget", two orders lose more than that; not so by the rules."""
    first = event(accounting.calibrate(epsilon=0.6 * budget, delta=DELTA, sample_rate=1.0, steps=1), 1.0, 1)
    order = best_order([first], epsilon=budget, delta=DELTA)
    before = Charged(course="one", events=(first,))

    def by_list(second: Event) -> bool:
        return accounting.epsilon([first, second], delta=DELTA) <= budget

    def by_rule(second: Event) -> bool:
        charges = [before, Charged(course="another", events=(second,))]
        return account(charges, delta=DELTA, first_order=order).epsilon <= budget

    naive = [found for kind in KINDS if (found := smallest_sigma(by_list, *kind)) is not None]
    sound = [found for kind in KINDS if (found := smallest_sigma(by_rule, *kind)) is not None]
    assert len(naive) >= 3
    assert sound  # the filter lets something through, or there would be nothing to test
    assert all(option.noise_multiplier > weak.noise_multiplier for option, weak in zip(sound, naive, strict=False))
    assert chosen_by_looking(first, naive[:1]) <= budget * 1.001  # one fixed list is what PLD says
    assert chosen_by_looking(first, naive) > budget * 1.05
    assert chosen_by_looking(first, sound) <= budget


def test_one_declared_course_is_accounted_as_one_list() -> None:
    charges = [Charged(course="c", events=(event(2.0),))] * 5
    found = account(charges, delta=DELTA)
    assert found.rule == "course"
    assert found.epsilon == accounting.epsilon([event(2.0)] * 5, delta=filters.COURSE_SHARE * DELTA)
    for other in ("d", ""):
        mixed = account([*charges, Charged(course=other, events=(event(2.0),))], delta=DELTA, first_order=8)
        assert (mixed.course, mixed.rule) == (math.inf, "renyi-filter")
        assert mixed.epsilon > mixed.composed > found.composed
    free = Charged(course="d", events=(event(0.0, mechanism="public-only"),))
    assert account([*charges, free], delta=DELTA).rule == "course"  # what costs nothing leaves no course
    assert account([], delta=DELTA).epsilon == 0.0
    bare = Charged(course="c", events=(event(0.0),))
    assert account([*charges, bare], delta=DELTA).epsilon == math.inf


@given(
    charges=st.lists(
        st.tuples(
            st.sampled_from(["a", "b", ""]),
            st.sampled_from([0.8, 1.5, 4.0]),
            st.sampled_from([0.01, 0.2, 1.0]),
            st.integers(1, 20),
        ),
        min_size=1,
        max_size=5,
    ),
    adjacency=st.sampled_from(["add-remove", "replace-one"]),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_enforced_figure_never_falls_and_never_lies_below_the_list(
    charges: list[tuple[str, float, float, int]], adjacency: accounting.Adjacency
) -> None:
    made = [Charged(course=course, events=(event(*rest),)) for course, *rest in charges]
    first = best_order(made[0].events, epsilon=4.0, delta=DELTA)
    totals = [
        account(made[:count], delta=DELTA, adjacency=adjacency, first_order=first) for count in range(1, len(made) + 1)
    ]
    figures = [total.epsilon for total in totals]
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(figures))
    assert all(total.epsilon >= total.composed - 1e-9 for total in totals)


def test_the_first_order_is_the_one_at_which_most_fits() -> None:
    for epsilon in (0.5, 2.0, 8.0):
        for charged in (event(1.0), event(6.0, 0.5, 3), event(0.7, 0.01, 100)):
            order = best_order([charged], epsilon=epsilon, delta=DELTA)
            fits = {}
            for other in (2, 3, order, 64, 512):
                count = 0
                while count < 400:
                    made = [Charged(course=str(number), events=(charged,)) for number in range(count + 2)]
                    if account(made, delta=DELTA, first_order=other).renyi_filter > epsilon:
                        break
                    count += 1
                fits[other] = count
            assert fits[order] == max(fits.values())


def test_a_charge_costs_its_costliest_tier() -> None:
    strict, relaxed = event(2.0, 0.05, tier="strict"), event(2.0, 0.1, tier="open")
    everybody = event(5.0, 1.0, 1)
    assert costliest([strict, relaxed, everybody]) == (everybody, event(2.0, 0.1))
    unlike = event(1.0, 0.05, tier="strict")  # less noise, but seldom: neither stands for the other
    assert set(costliest([unlike, relaxed])) == {event(1.0, 0.05), event(2.0, 0.1)}
    moved = account([Charged(course="c", events=(event(2.0, tier=tier),)) for tier in ("a", "b")], delta=DELTA)
    assert moved == account([Charged(course="c", events=(event(2.0),))] * 2, delta=DELTA)


def test_whoever_moves_between_tiers_inside_a_course_pays_for_both() -> None:
    strict, relaxed = event(1.0, 0.05, tier="strict"), event(2.0, 0.1, tier="open")
    charges = [Charged(course="c", events=(strict, relaxed))] * 2
    moved = accounting.epsilon([replace(strict, tier=""), replace(relaxed, tier="")], delta=DELTA)
    stayed = max(accounting.epsilon([kind, kind], delta=DELTA) for kind in (strict, relaxed))
    found = account(charges, delta=DELTA)
    assert min(found.composed, found.course, found.renyi_filter) >= max(moved, stayed)
    joined = filters.federation_epsilon({"x": charges[:1], "y": charges[:1]}, delta=DELTA, overlap=2)
    assert joined >= max(moved, stayed)


def test_what_a_patient_at_several_sites_pays() -> None:
    one = {site: [Charged(course="c", events=(event(2.0),))] * 3 for site in "xyz"}
    figures = [filters.federation_epsilon(one, delta=DELTA, overlap=overlap) for overlap in (1, 2, 3)]
    expected = [
        accounting.epsilon([event(2.0)] * 3 * overlap, delta=filters.COURSE_SHARE * DELTA) for overlap in (1, 2, 3)
    ]
    assert figures == pytest.approx(expected, rel=1e-9)
    several = {site: [Charged(course=f"c{site}", events=(event(2.0),))] for site in "xyz"}
    assert filters.federation_epsilon(several, delta=DELTA, overlap=3) > accounting.epsilon(
        [event(2.0)] * 3, delta=DELTA
    )
    assert filters.federation_epsilon({}, delta=DELTA) == 0.0


def scheduled(*phases: Event) -> Course:
    """A course of one step a round whose steps are of several kinds."""
    schedule = Schedule(
        phases=tuple(
            Phase(
                steps=phase.steps,
                max_grad_norm=1.0,
                noise_multiplier=phase.noise_multiplier,
                sample_rate=phase.sample_rate,
            )
            for phase in phases
        )
    )
    return Course(run="run", federation="f", mechanism=Mechanism(schedule=schedule), steps=1, last_round=schedule.steps)


@pytest.mark.parametrize("budget", [2.0, 4.0])
def test_nobody_may_pick_among_the_rounds_of_a_schedule(path: Path, budget: float) -> None:
    """Declared in one course, the rounds that are ordered can still be chosen by looking: the rest counts, too."""
    first = event(accounting.calibrate(epsilon=0.6 * budget, delta=DELTA, sample_rate=1.0, steps=1), 1.0, 1)

    def fits(second: Event) -> bool:
        return accounting.epsilon([first, second], delta=filters.COURSE_SHARE * DELTA) <= budget

    options = [found for kind in KINDS if (found := smallest_sigma(fits, *kind)) is not None]
    assert chosen_by_looking(first, options) > budget * 1.03
    course, limit = scheduled(first, *options), Budget(epsilon=budget, delta=DELTA)
    accepted, start = [], 2
    for number, option in enumerate(options):
        ledger = Ledger(path.with_name(f"{number}.sqlite"))
        try:
            for round_number in (1, *range(start, start + option.steps)):
                ledger.reserve(
                    "ward", course.events(round_number), run_id="run", round=round_number, budget=limit, course=course
                )
            accepted.append(option)
        except BudgetExceeded:
            pass
        start += option.steps
    assert accepted == options[:1]  # the next one in order, and no other


def test_rounds_that_were_passed_over_count_up_to_the_furthest(path: Path) -> None:
    kinds = (event(3.0, 0.1, 2), event(2.0, 0.3, 2), event(4.0, 0.5, 2))
    course, limit = scheduled(*kinds), Budget(epsilon=50.0, delta=DELTA)

    def after(*rounds: int) -> float:
        ledger = Ledger(path.with_name("-".join(map(str, rounds))))
        for number in rounds:
            ledger.reserve("ward", course.events(number), run_id="run", round=number, budget=limit, course=course)
        charges = ledger.charges("ward")
        shown = filters.federation_epsilon({"north": charges}, delta=DELTA)
        assert shown == pytest.approx(account(charges, delta=DELTA).epsilon, rel=1e-9)
        return ledger.account("ward", DELTA).course

    def beginning(rounds: int) -> float:
        charges = [Charged(course="c", events=course.events(number)) for number in range(1, rounds + 1)]
        return account(charges, delta=DELTA).course

    assert after(1, 2, 3) == beginning(3)
    assert after(1, 3) == after(3, 1) == beginning(3)
    assert after(5) == after(1, 5) == after(5, 3, 1, 2, 4) == beginning(5)
    assert after(1, 3, 2, 4) == beginning(4)  # what was passed over is made up for, and is not charged twice
    assert after(1, 1) == beginning(2)  # a lost round of a kind of which there is another
    assert math.isinf(after(1, 1, 1))  # more of it than was declared
    charges = [Charged(course="c", events=kinds[:1], covers=kinds[:2]), Charged(course="c", events=kinds[:1])]
    assert math.isinf(account(charges, delta=DELTA).course)  # of two cohorts, each with a beginning of its own
