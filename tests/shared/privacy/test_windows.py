"""Limits of a month and of a study: what falls into them, whatever the clock says, and whoever is charged."""

import calendar
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ledgers import COURSE, DELTA, EVENT

from wardpose.client.journal import SiteJournal
from wardpose.shared.errors import BudgetExceeded, ConfigError
from wardpose.shared.privacy import chain
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.privacy.tally import month_of


class Clock:
    """A clock that is set by hand."""

    def __init__(self, text: str) -> None:
        self.set(text)

    def set(self, text: str) -> None:
        self.now = datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()

    def __call__(self) -> float:
        return self.now


def composed(rounds: int, sites: int = 1) -> float:
    """Epsilon of rounds of `EVENT`, by Google's accountant alone, at the share of delta that a declared course has."""
    accountant = PLDAccountant()
    step = PoissonSampledDpEvent(EVENT.sample_rate, GaussianDpEvent(EVENT.noise_multiplier))
    accountant.compose(step, EVENT.steps * rounds * sites)
    return float(accountant.get_epsilon(0.75 * DELTA))


THREE = (composed(3) + composed(4)) / 2
"""A limit that bears three rounds."""

MONTHLY = Budget(epsilon=100.0, delta=DELTA, per_month=THREE)


def rounds(ledger: Ledger, budget: Budget, *, course: Course = COURSE, cohort: str = "ward") -> int:
    """Charge round after round until the ledger refuses; returns how many."""
    for number in range(1, 50):
        try:
            ledger.reserve(cohort, course.events(1), run_id=course.run, round=number, budget=budget, course=course)
        except BudgetExceeded:
            return number - 1
    raise AssertionError("the budget has no end")


def test_a_month_bears_what_its_limit_says_and_the_next_as_much_again(tmp_path: Path) -> None:
    clock = Clock("2026-11-30T23:59:59")
    ledger = Ledger(tmp_path / "ledger.sqlite", clock=clock)
    assert rounds(ledger, MONTHLY) == 3
    with pytest.raises(BudgetExceeded, match=r"cohort 'ward' in 2026-11: epsilon would be .* of "):
        ledger.check("ward", [EVENT], budget=MONTHLY, course=COURSE)
    clock.set("2026-12-01T00:00:00")
    assert rounds(ledger, MONTHLY) == 3
    assert sum(event.steps for event in ledger.events("ward")) == 6 * EVENT.steps
    assert rounds(ledger, replace(MONTHLY, epsilon=(composed(6) + composed(7)) / 2)) == 0  # the lifetime's holds, too


def test_a_leap_day_is_of_its_month(tmp_path: Path) -> None:
    clock = Clock("2028-02-29T23:59:59")
    ledger = Ledger(tmp_path / "ledger.sqlite", clock=clock)
    assert rounds(ledger, MONTHLY) == 3
    clock.set("2028-03-01T00:00:00")
    assert rounds(ledger, MONTHLY) == 3


@pytest.mark.parametrize("back", ["2026-10-15T00:00:00", "1970-01-01T00:00:00", "2026-11-30T23:59:59"])
def test_a_clock_that_is_set_back_opens_no_month(tmp_path: Path, back: str) -> None:
    clock = Clock("2026-12-01T00:00:00")
    ledger = Ledger(tmp_path / "ledger.sqlite", clock=clock)
    assert rounds(ledger, MONTHLY) == 3
    clock.set(back)
    assert ledger.month() == "2026-12"
    assert rounds(ledger, MONTHLY) == 0
    assert rounds(Ledger(tmp_path / "ledger.sqlite", clock=clock), MONTHLY, cohort="other") == 3
    clock.set("2026-12-31T00:00:00")
    assert rounds(ledger, MONTHLY) == 0


@given(st.integers(0, 253_402_300_799))
def test_months_are_those_of_the_calendar(seconds: int) -> None:
    moment = datetime.fromtimestamp(seconds, UTC)
    assert month_of(seconds) == f"{moment.year:04}-{moment.month:02}"
    last = calendar.monthrange(moment.year, moment.month)[1]
    end = calendar.timegm((moment.year, moment.month, last, 23, 59, 59, 0, 0, 0))
    assert month_of(end) == month_of(seconds)
    assert month_of(end + 1) != month_of(seconds) if end < 253_402_300_799 else True


@settings(max_examples=8, deadline=None)
@given(moves=st.lists(st.integers(-90, 90), min_size=1, max_size=12))
def test_no_movement_of_the_clock_gives_a_month_more_than_its_limit(
    tmp_path_factory: pytest.TempPathFactory, moves: list[int]
) -> None:
    clock = Clock("2026-06-15T12:00:00")
    ledger = Ledger(tmp_path_factory.mktemp("moves") / "ledger.sqlite", clock=clock)
    latest, charged = "", dict[str, int]()
    for days in moves:
        clock.now += days * 86400
        latest = max(latest, month_of(int(clock.now)))
        charged[latest] = charged.get(latest, 0) + rounds(ledger, MONTHLY)
    assert max(charged.values()) <= 3


def course_of(federation: str, run: str = "run") -> Course:
    return COURSE.model_copy(update={"federation": federation, "run": run})


def test_a_study_bears_what_its_limit_says_whatever_others_spend(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    budget = Budget(epsilon=100.0, delta=DELTA, studies={"gait": THREE, "rehab": 90.0})
    for number in range(5):
        ledger.reserve("ward", [EVENT], run_id="other", round=number, budget=budget, course=course_of("rehab", "other"))
    assert rounds(ledger, budget, course=course_of("gait")) == 3
    with pytest.raises(BudgetExceeded, match="for the study 'gait'"):
        ledger.check("ward", [EVENT], budget=budget, course=course_of("gait"))
    ledger.check("ward", [EVENT], budget=budget, course=course_of("rehab", "other"))


@pytest.mark.parametrize("name", ["Gait", "gait2", "else"])
def test_a_study_under_another_name_may_spend_nothing(tmp_path: Path, name: str) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    budget = Budget(epsilon=100.0, delta=DELTA, studies={"gait": THREE})
    assert rounds(ledger, budget, course=course_of(name)) == 0
    with pytest.raises(BudgetExceeded):  # nor by declaring no course
        ledger.reserve("ward", [EVENT], run_id="x", round=1, budget=budget)


def test_a_second_run_of_a_study_does_not_begin_anew(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    budget = Budget(epsilon=100.0, delta=DELTA, studies={"gait": THREE})
    assert rounds(ledger, budget, course=course_of("gait")) == 3
    assert rounds(ledger, budget, course=course_of("gait", "another")) == 0


def test_rounds_of_a_schedule_are_no_fixed_list_in_a_month(tmp_path: Path) -> None:
    """Which of them fall into it may be chosen by looking: only the Rényi filter counts there."""
    phases = [
        {"steps": 50, "noise_multiplier": sigma, "sample_rate": 0.1, "max_grad_norm": 1.0} for sigma in (2.0, 8.0)
    ]
    mechanism = COURSE.mechanism.model_dump() | {"noise_multiplier": 0.0, "schedule": {"phases": phases}}
    course = Course.model_validate(COURSE.model_dump() | {"mechanism": mechanism, "last_round": 20})
    assert [course.events(number)[0].noise_multiplier for number in (10, 11)] == [2.0, 8.0]
    clock = Clock("2026-10-31T00:00:00")
    ledger = Ledger(tmp_path / "ledger.sqlite", clock=clock)
    free = Budget(epsilon=100.0, delta=DELTA)
    for number in range(1, 11):
        if number == 10:
            clock.set("2026-11-01T00:00:00")
        ledger.reserve("ward", course.events(number), run_id="run", round=number, budget=free, course=course)
    with pytest.raises(BudgetExceeded) as refused:
        ledger.check("ward", course.events(11), budget=replace(free, per_month=1e-3), course=course)
    accountant = PLDAccountant()
    for sigma in (2.0, 8.0):
        accountant.compose(PoissonSampledDpEvent(0.1, GaussianDpEvent(sigma)), EVENT.steps)
    both = float(str(refused.value).split("would be ")[1].split()[0])
    assert both > 1.01 * accountant.get_epsilon(0.75 * DELTA)


def patients(ledger: Ledger, people: Mapping[str, str], budget: Budget, *, cohort: str = "ward") -> frozenset[str]:
    """Charge a round to patients; returns who cannot bear it."""
    free = replace(budget, epsilon=math.inf, per_month=math.inf, studies={})
    number = ledger.head()[0]
    reservation = ledger.reserve(cohort, [EVENT], run_id="run", round=number, budget=free, course=COURSE)
    return ledger.declare(cohort, identity="x", units=9, reservation=reservation, patients=people, budget=budget)


def test_whoever_comes_later_brings_a_month_of_their_own_into_any_cohort(tmp_path: Path) -> None:
    clock = Clock("2026-11-10T00:00:00")
    ledger = Ledger(tmp_path / "ledger.sqlite", clock=clock)
    for _ in range(3):
        assert patients(ledger, {"ann": ""}, MONTHLY) == frozenset()
    assert patients(ledger, {"ann": "", "bob": ""}, MONTHLY, cohort="clinic") == {"ann"}
    assert patients(ledger, {"ann": "", "bob": ""}, MONTHLY) == {"ann"}
    clock.set("2026-11-01T00:00:00")  # set back
    assert patients(ledger, {"ann": "", "bob": "", "cyd": ""}, MONTHLY) == {"ann"}
    assert patients(ledger, {"bob": ""}, MONTHLY) == {"bob"}
    clock.set("2026-12-01T00:00:00")
    assert patients(ledger, {"ann": "", "bob": ""}, MONTHLY) == frozenset()


def test_patients_have_an_account_for_each_study(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    budget = Budget(epsilon=100.0, delta=DELTA, studies={COURSE.federation: THREE})
    for _ in range(3):
        assert patients(ledger, {"ann": ""}, budget) == frozenset()
    assert patients(ledger, {"ann": "", "bob": ""}, budget) == {"ann"}


def test_a_month_is_the_same_from_a_checkpoint_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "_SPACING", 8)
    clock, journal, path = Clock("2026-11-10T00:00:00"), SiteJournal(tmp_path / "j.sqlite"), tmp_path / "l.sqlite"
    wide = replace(MONTHLY, per_month=(composed(12) + composed(13)) / 2)
    for _ in range(4):
        ledger = Ledger(path, clock=clock, witness=journal)
        for number in range(3):
            ledger.reserve("ward", [EVENT], run_id="run", round=number, budget=wide, course=COURSE)
    read: list[int] = []
    real = chain.next_entry
    monkeypatch.setattr(chain, "next_entry", lambda row, *rest: (read.append(row[0]), real(row, *rest))[1])
    ledger = Ledger(path, clock=clock, witness=journal)
    assert read[0] > 8
    assert rounds(ledger, wide) == 0
    shutil.copy(path, tmp_path / "copy.sqlite")
    assert rounds(Ledger(path, clock=clock), wide) == 0  # nobody vouches for a checkpoint: read from the first entry


@pytest.mark.parametrize("values", [{"per_month": -1.0}, {"studies": {"gait": math.nan}}])
def test_limits_that_mean_nothing_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="must be at least 0"):
        Budget(epsilon=1.0, delta=DELTA, **values)  # type: ignore[arg-type]
