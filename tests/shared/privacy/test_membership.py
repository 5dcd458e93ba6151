"""Nobody gets budget back: who is who, and who was there, when a ledger cannot be certain."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from wardpose.shared.errors import BudgetExceeded
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.ledger import Budget, Ledger

DELTA = 1e-5
PEOPLE = {"ann": "", "bob": ""}
BUDGET = Budget(epsilon=8.0, delta=DELTA)
NAMELESS = Budget(epsilon=8.0, delta=DELTA, whole_ledger=True)


def charge(tier: str = "", unit: str = "record") -> Event:
    values = {"mechanism": "dp-sgd", "sample_rate": 0.2, "noise_multiplier": 2.0, "steps": 20, "max_grad_norm": 1.0}
    return Event(unit=unit, tier=tier, **values)  # type: ignore[arg-type]


def rounds(
    ledger: Ledger,
    cohort: str,
    people: Mapping[str, str] | None,
    *,
    events: tuple[Event, ...] = (charge(),),
    budget: Budget | None = None,
    identity: str = "aa",
) -> int:
    """Charge round after round until nobody may take part any more; returns in how many somebody did."""
    budget = budget or (NAMELESS if people is None else BUDGET)
    for number in range(1, 100):
        try:
            reservation = ledger.reserve(cohort, events, run_id="run", round=number, budget=budget)
        except BudgetExceeded:
            return number - 1
        spent = ledger.declare(
            cohort, identity=identity, units=20, reservation=reservation, patients=people, budget=budget
        )
        if people and spent == set(people):
            return number - 1
    raise AssertionError("the budget has no end")


def test_a_new_name_of_the_cohort_gives_nothing_back_and_newcomers_have_all_of_theirs(path: Path) -> None:
    ledger = Ledger(path)
    most = rounds(ledger, "ward", PEOPLE)
    assert most > 3
    assert rounds(ledger, "clinic", PEOPLE) == 0
    assert rounds(ledger, "clinic b", PEOPLE | {"cleo": ""}) == most


def test_naming_patients_gives_nothing_back(path: Path) -> None:
    """Who was among the records that named nobody? Perhaps everybody who is named now."""
    ledger = Ledger(path)
    assert rounds(ledger, "ward", None) > 3
    assert rounds(ledger, "ward of names", PEOPLE, identity="bb") == 0
    assert rounds(ledger, "ward", None) == 0


def test_what_a_nameless_cohort_spent_in_part_is_spent_by_everybody(path: Path) -> None:
    ledger = Ledger(path)
    most = rounds(Ledger(path.with_name("other.sqlite")), "ward", PEOPLE)
    for number in (1, 2):
        reservation = ledger.reserve("ward", [charge()], run_id="run", round=number, budget=NAMELESS)
        ledger.declare("ward", identity="aa", units=20, reservation=reservation, patients=None, budget=NAMELESS)
    assert rounds(ledger, "clinic", PEOPLE, identity="bb") == most - 2


def test_a_reservation_whose_process_died_charges_those_who_were_there(path: Path) -> None:
    ledger = Ledger(path)
    most = rounds(Ledger(path.with_name("other.sqlite")), "ward", PEOPLE)
    reservation = ledger.reserve("ward", [charge()], run_id="run", round=1, budget=BUDGET)
    ledger.declare("ward", identity="aa", units=20, reservation=reservation, patients=PEOPLE, budget=BUDGET)
    ledger.reserve("ward", [charge()], run_id="run", round=2, budget=BUDGET)
    assert rounds(ledger, "clinic", PEOPLE) == most - 2
    assert rounds(ledger, "third", {"cleo": ""}) == most


@pytest.mark.parametrize("other", ["ANN", "Ann", "\u0430nn", "ann\u200b", "\uff41nn"])
def test_another_spelling_is_nobody_new(path: Path, other: str) -> None:
    """Which spelling stands for a patient follows from the order of a file (`ids: fold`)."""
    ledger = Ledger(path)
    assert rounds(ledger, "ward", {"ann": ""}) > 3
    assert rounds(ledger, "clinic", {other: ""}) == 0


def test_people_whose_ids_look_alike_share_an_account_of_the_costlier_tier(path: Path) -> None:
    ledger = Ledger(path)
    tiers = Budget(epsilon=50.0, delta=DELTA, by_tier={"strict": 4.0})
    events = (charge("untiered"), charge("strict"))
    reservation = ledger.reserve("ward", events, run_id="run", round=1, budget=tiers)
    ledger.declare(
        "ward", identity="aa", units=20, reservation=reservation, patients={"A1": "strict", "a1": ""}, budget=tiers
    )
    strict = rounds(Ledger(path.with_name("other.sqlite")), "ward", {"a1": "strict"}, events=events, budget=tiers)
    for name in ("A1", "a1"):
        assert rounds(ledger, f"ward {name}", {name: "strict"}, events=events, budget=tiers) < strict


def test_without_names_whoever_is_of_a_tier_now_may_have_been_of_any(path: Path) -> None:
    ledger = Ledger(path)
    assert rounds(ledger, "ward", None, events=(charge("a"),)) > 3
    assert rounds(ledger, "ward", None, events=(charge("b"),)) == 0
    assert ledger.account("ward", DELTA, whole_ledger=True).epsilon <= NAMELESS.epsilon
