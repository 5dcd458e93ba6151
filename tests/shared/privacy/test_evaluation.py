"""Scores on patients: what a unit contributes is bounded whatever it is, and the ledger says what that costs."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
from dp_accounting import pld
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from wardpose.shared.errors import BudgetExceeded, ConfigError
from wardpose.shared.privacy import accounting, filters
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.budget import charge_of, evaluations_made
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.evaluation import EVALUATION, Evaluation, Layout, chosen_rows, unit_vector
from wardpose.shared.privacy.filters import COURSE_SHARE, Charged
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.privacy.schedules import Phase, Schedule

DELTA = 1e-5
ODD = (float("nan"), float("inf"), -float("inf"), 0.0, -3.0, 1e300, 10.0, 4.2)


def course(times: int = 2, sigma: float = 4.0, **mechanism: Any) -> Course:
    return Course(
        run="r", federation="study", mechanism=Mechanism(noise_multiplier=1.0, sample_rate=0.1, **mechanism), steps=10,
        last_round=5, evaluation=Evaluation(noise_multiplier=sigma, times=times),
    )  # fmt: skip


@given(st.data(), st.integers(1, 4), st.integers(1, 6), st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_unit_is_longer_than_one(data: st.DataObject, frames: int, joints: int, pair: bool) -> None:
    layout = Layout(joints=joints, pair=pair)
    networks = layout.losses
    bits = st.lists(st.booleans(), min_size=(networks + 1) * frames * joints, max_size=(networks + 1) * frames * joints)
    marks = np.array(data.draw(bits)).reshape(networks + 1, frames, joints)
    losses = data.draw(
        st.lists(st.sampled_from(ODD), min_size=networks * frames, max_size=networks * frames).map(np.array)
    )
    vector = unit_vector(
        layout, right=marks[:-1], labelled=marks[-1], losses=losses.reshape(networks, frames), loss_clip=10.0
    )
    assert vector.shape == (layout.size,)
    assert math.sqrt(math.fsum(value * value for value in vector)) <= 1 + 1e-12
    assert (vector >= 0).all()


@pytest.mark.parametrize("pair", [False, True])
def test_the_bound_is_reached(pair: bool) -> None:
    layout = Layout(joints=14, pair=pair)
    right = np.ones((layout.losses, 3, 14), bool)
    vector = unit_vector(
        layout, right=right, labelled=right[0], losses=np.full((layout.losses, 3), np.inf), loss_clip=5.0
    )
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-12)


def test_a_patient_weighs_the_same_however_often_they_were_filmed() -> None:
    layout, marks = Layout(joints=2, pair=False), np.array([[True, False]])
    one, many = (
        unit_vector(
            layout,
            right=marks[None].repeat(n, 1),
            labelled=np.ones((n, 2), bool),
            losses=np.ones((1, n)),
            loss_clip=2.0,
        )
        for n in (1, 50)
    )
    np.testing.assert_allclose(one, many, rtol=1e-12)
    assert len(chosen_rows(np.arange(1000), 7)) == len(set(chosen_rows(np.arange(1000), 7).tolist())) == 7


@pytest.mark.parametrize(("adjacency", "sensitivity"), [("add-remove", 1.0), ("replace-one", 2.0)])
def test_an_evaluation_costs_what_dp_accounting_says(adjacency: Any, sensitivity: float) -> None:
    event = Evaluation(noise_multiplier=4.0).event(3, unit="patient", adjacency=adjacency, noise="gaussian")
    ours = accounting.epsilon([event], delta=DELTA, adjacency=adjacency)
    theirs = pld.PLDAccountant()
    theirs.compose(dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(4.0 / sensitivity), 3))
    assert ours == pytest.approx(theirs.get_epsilon(DELTA), rel=1e-3)
    assert (event.sample_rate, event.max_grad_norm) == (1.0, 1.0)  # nobody's part in it is a secret


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan"), float("inf"), 1e9])
def test_noise_that_is_none_is_refused(sigma: float) -> None:
    with pytest.raises(ValidationError, match="noise_multiplier"):
        Evaluation(noise_multiplier=sigma)


def test_a_course_without_evaluations_is_the_one_that_it_was() -> None:
    plain = course().model_copy(update={"evaluation": None})
    assert "evaluation" not in json.loads(plain.model_dump_json())
    assert Course.model_validate_json(plain.model_dump_json()).identity == plain.identity != course().identity
    assert Course.model_validate_json(course().model_dump_json()) == course()
    with pytest.raises(ConfigError, match="no evaluation"):
        plain.evaluation_events()


def test_whatever_is_noised_in_integers_stays_so() -> None:
    assert course(exact_noise=True).evaluation_events()[0].noise == "discrete-gaussian"
    assert course().evaluation_events()[0].noise == "gaussian"


class Book:
    """One cohort's ledger under a course."""

    def __init__(self, folder: Path, declared: Course, *, epsilon: float = 50.0) -> None:
        self.ledger = Ledger(folder / "ledger.sqlite")
        self.declared = declared
        self.budget = Budget(epsilon=epsilon, delta=DELTA)

    def charge(self, events: tuple[Event, ...], number: int) -> float:
        self.ledger.reserve("c", events, run_id="r", round=number, budget=self.budget, course=self.declared)
        return self.ledger.account("c", DELTA).course

    def round(self, number: int) -> float:
        return self.charge(self.declared.events(number), number)

    def evaluate(self, number: int) -> float:
        return self.charge(self.declared.evaluation_events(), number)


def listed(declared: Course, rounds: int) -> float:
    """Epsilon of all evaluations and so many rounds, as one list."""
    events = [*declared.set_aside(), *(event for number in range(rounds) for event in declared.events(number + 1))]
    return accounting.epsilon(events, delta=COURSE_SHARE * DELTA)


def test_evaluations_count_from_the_first_charge_whenever_they_are_made(tmp_path: Path) -> None:
    declared = course()
    early, late = (Book(tmp_path / name, declared) for name in ("early", "late"))
    assert late.round(1) == pytest.approx(listed(declared, 1), rel=1e-9)
    assert early.evaluate(1) == pytest.approx(listed(declared, 0), rel=1e-9)
    assert early.round(1) == pytest.approx(listed(declared, 1), rel=1e-9)
    for number in range(2, 6):
        early.round(number), late.round(number)
    early.evaluate(2), late.evaluate(1)
    assert late.evaluate(2) == early.ledger.account("c", DELTA).course == pytest.approx(listed(declared, 5), rel=1e-9)
    assert evaluations_made(late.ledger.charges("c"), declared) == 2


def test_nobody_trades_evaluations_for_rounds(tmp_path: Path) -> None:
    """Whoever looks and then picks, more rounds or an evaluation, has the budget of a list that was fixed before."""
    declared = course(times=1, sigma=1.0)
    fits = listed(declared, 3)
    book = Book(tmp_path, declared, epsilon=fits)
    for number in (1, 2, 3):
        assert book.round(number) <= fits
    fourth = [charge_of([], declared.events(number), declared) for number in (1, 2, 3, 4)]
    assert filters.account(fourth, delta=DELTA).course > fits  # although nothing was evaluated yet
    assert accounting.epsilon([e for c in fourth for e in c.events], delta=COURSE_SHARE * DELTA) < fits
    assert book.evaluate(1) == pytest.approx(fits, rel=1e-9)  # it is still paid for
    with pytest.raises(BudgetExceeded):
        book.round(4)


def test_an_evaluation_too_many_is_outside_the_course(tmp_path: Path) -> None:
    book = Book(tmp_path, course(times=1))
    assert math.isfinite(book.evaluate(1))
    assert book.evaluate(2) == math.inf
    assert book.ledger.account("c", DELTA).rule == "renyi-filter"


def test_somebody_of_two_cohorts_was_evaluated_more_often_than_one_course_declares() -> None:
    declared = course(times=1)
    charges = [charge_of([], declared.evaluation_events(), declared) for _ in range(2)]
    assert filters.account(charges, delta=DELTA).course == math.inf
    assert math.isfinite(filters.account(charges, delta=DELTA).epsilon)
    trained_twice = [charge_of([], declared.events(1), declared)] * 2
    assert filters.account(trained_twice, delta=DELTA).course == pytest.approx(listed(declared, 2), rel=1e-9)


def test_a_schedule_is_not_shuffled_by_evaluations(tmp_path: Path) -> None:
    phases = tuple(Phase(steps=10, max_grad_norm=1.0, noise_multiplier=sigma, sample_rate=0.1) for sigma in (3, 2, 1))
    declared = Course(
        run="r", federation="f", mechanism=Mechanism(schedule=Schedule(phases=phases)), steps=10, last_round=3,
        evaluation=Evaluation(noise_multiplier=4.0, times=1),
    )  # fmt: skip
    book = Book(tmp_path, declared)
    assert book.round(1) == pytest.approx(listed(declared, 1), rel=1e-9)
    assert book.evaluate(1) == pytest.approx(listed(declared, 1), rel=1e-9)
    assert book.round(3) == pytest.approx(listed(declared, 3), rel=1e-9)  # round 2 was passed over, and counts


def test_every_consent_tier_pays_and_the_strictest_may_refuse(tmp_path: Path) -> None:
    declared = course(times=1, tiers={"strict": 0.01})
    assert [event.tier for event in declared.evaluation_events()] == [""]
    alone = accounting.epsilon(declared.evaluation_events(), delta=COURSE_SHARE * DELTA)
    budget = Budget(epsilon=50.0, delta=DELTA, by_tier={"strict": 0.9 * alone})
    ledger = Ledger(tmp_path / "ledger.sqlite")
    with pytest.raises(BudgetExceeded, match="strict"):
        ledger.reserve("c", declared.evaluation_events(), run_id="r", round=1, budget=budget, course=declared)
    assert ledger.charges("c") == []


def test_several_sites_compose_their_evaluations() -> None:
    declared = course(times=1, sigma=2.0)
    charges = [charge_of([], declared.evaluation_events(), declared)]
    both = filters.federation_epsilon({"north": charges, "south": charges}, delta=DELTA, overlap=2)
    twice = replace(declared.evaluation_events()[0], steps=2)
    assert both == pytest.approx(accounting.epsilon([twice], delta=COURSE_SHARE * DELTA), rel=1e-6)
    assert filters.account([Charged(course="", events=(twice,))], delta=DELTA).composed > 0
    assert twice.mechanism == EVALUATION
