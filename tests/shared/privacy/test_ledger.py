"""What a ledger charges, when, and against which limit."""

import json
import math
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from support.ledgers import BUDGET, COURSE, DELTA, EVENT, UNLIMITED, cost, spend

from wardpose.shared.errors import BudgetExceeded, ConfigError, LedgerError
from wardpose.shared.privacy import accounting
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.privacy.mechanisms import Mechanism


def test_reservation_counts_before_and_after_the_commit(path: Path) -> None:
    ledger = Ledger(path, clock=lambda: 1_700_000_000.9)
    assert ledger.events("ward") == ()
    assert ledger.head() == (0, "0" * 64)
    reservation = ledger.reserve("ward", [EVENT], run_id="run", round=4, budget=BUDGET)
    assert not ledger.is_committed(reservation)
    charged = ledger.epsilon("ward", DELTA)
    assert charged == cost(EVENT)
    ledger.commit(reservation)
    assert ledger.is_committed(reservation)
    assert Ledger(path).epsilon("ward", DELTA) == charged
    assert [entry.kind for entry in ledger.entries()] == ["genesis", "reserve", "commit"]
    assert {entry.body["time"] for entry in ledger.entries()} == {1_700_000_000}
    assert ledger.entries()[1].body["round"] == 4
    with pytest.raises(LedgerError, match="committed before"):
        ledger.commit(reservation)


def test_a_round_tried_again_is_charged_again(path: Path) -> None:
    ledger = Ledger(path)
    for _ in range(2):
        ledger.reserve("ward", [EVENT], run_id="run", round=1, budget=BUDGET, course=COURSE)
    assert ledger.epsilon("ward", DELTA) == cost(EVENT, EVENT)


def test_nothing_is_charged_over_budget(path: Path) -> None:
    ledger = Ledger(path)
    budget = Budget(epsilon=cost(*[EVENT] * 3), delta=DELTA)
    spend(ledger, 3, budget=budget)
    head = ledger.head()
    ledger.check("other", [EVENT], budget=budget)
    with pytest.raises(BudgetExceeded, match=r"cohort 'ward': epsilon would be .* at delta 1e-05 \(.* is spent\)"):
        ledger.reserve("ward", [EVENT], run_id="run", round=3, budget=budget, course=COURSE)
    with pytest.raises(BudgetExceeded):
        ledger.check("ward", [EVENT], budget=budget, course=COURSE)
    assert ledger.head() == head


def test_adjacency_and_unlimited_budgets(path: Path) -> None:
    ledger = Ledger(path)
    replace = Budget(epsilon=accounting.epsilon([EVENT], delta=DELTA) * 1.2, delta=DELTA, adjacency="replace-one")
    with pytest.raises(BudgetExceeded):
        ledger.reserve("ward", [EVENT], run_id="run", round=0, budget=replace)
    bare = Event.from_json({**EVENT.to_json(), "mechanism": "none", "noise_multiplier": 0})
    with pytest.raises(BudgetExceeded, match="inf"):
        ledger.reserve("ward", [bare], run_id="run", round=0, budget=BUDGET)
    ledger.reserve("ward", [bare], run_id="run", round=0, budget=UNLIMITED)
    assert ledger.epsilon("ward", DELTA) == math.inf
    with pytest.raises(BudgetExceeded):
        ledger.reserve("ward", [EVENT], run_id="run", round=1, budget=BUDGET)
    for wrong in ({"epsilon": -1}, {"epsilon": float("nan")}, {"delta": 2}, {"by_tier": {"a": -1}}):
        with pytest.raises(ConfigError):
            Budget(**{"epsilon": 1.0, "delta": DELTA, **wrong})  # type: ignore[arg-type]


def test_tiers_have_their_own_limits(path: Path) -> None:
    ledger = Ledger(path)
    mechanism = Mechanism(sample_rate=0.05, noise_multiplier=2.0, tiers={"strict": 0.05, "open": 0.1})
    course = Course(run="run", federation="f", mechanism=mechanism, steps=5, last_round=9)
    events = {event.tier: event for event in course.events(1)}
    strict, relaxed = events["strict"], events["open"]
    limit = cost(strict, strict)
    budget = Budget(epsilon=5, delta=DELTA, by_tier={"strict": limit})

    def reserve(*events: Event, cohort: str = "ward") -> None:
        ledger.reserve(cohort, events, run_id="run", round=1, budget=budget, course=course)

    for _ in range(2):
        reserve(strict, relaxed)
    tiers = ledger.epsilon_by_tier("ward", DELTA)
    assert 0 == tiers[""] < tiers["strict"] == limit < tiers["open"] == ledger.epsilon("ward", DELTA)
    with pytest.raises(BudgetExceeded, match="tier 'strict'"):
        reserve(strict, relaxed)
    reserve(relaxed)
    # What charges everybody charges the strict, too.
    with pytest.raises(BudgetExceeded, match="tier 'strict'"):
        reserve(EVENT)
    with pytest.raises(BudgetExceeded, match="tier 'strict'"):
        reserve(*[EVENT] * 9, cohort="fresh")


def test_whoever_changes_tiers_pays_what_each_tier_paid(path: Path) -> None:
    """The costliest tier of every charge: moved from one tier to the other, somebody may have been in both."""
    ledger, budget = Ledger(path), Budget(epsilon=50, delta=DELTA)
    for rate, run in (({"a": 0.4, "b": 0.1}, "r1"), ({"a": 0.1, "b": 0.4}, "r2")):
        mechanism = Mechanism(sample_rate=0.05, noise_multiplier=1.0, tiers=rate)
        course = Course(run=run, federation="f", mechanism=mechanism, steps=10, last_round=1)
        ledger.reserve("ward", course.events(1), run_id=run, round=1, budget=budget, course=course)
    costly = [event for charge in ledger.charges("ward") for event in charge.events if event.sample_rate == 0.4]
    worst = accounting.epsilon([replace(event, tier="") for event in costly], delta=DELTA)
    stayed = max(ledger.account("ward", DELTA, tier=tier).composed for tier in ("a", "b", "untiered"))
    moved = ledger.account("ward", DELTA)
    assert stayed < worst == moved.composed <= moved.epsilon


def test_statistics_are_charged_like_steps(path: Path) -> None:
    ledger = Ledger(path)
    count = Event(
        mechanism="noised-count", unit="patient", sample_rate=1, noise_multiplier=10, steps=1, max_grad_norm=1
    )
    ledger.reserve("ward", [count], run_id="status", round=0, budget=BUDGET)
    assert ledger.epsilon("ward", DELTA) == cost(count) > 0


def test_cohorts_share_a_file_and_keep_their_identity(path: Path) -> None:
    ledger = Ledger(path)
    ledger.declare("ward", identity="aa", units=40)
    ledger.declare("ward", identity="aa", units=40)
    spend(ledger, 1, "ward")
    spend(ledger, 2, "clinic")
    assert ledger.cohorts() == ("ward", "clinic")
    assert ledger.events("clinic") == (EVENT, EVENT)
    assert sum(entry.kind == "cohort" for entry in ledger.entries()) == 1
    ledger.declare("ward", identity="bb", units=41)  # patients joined
    for identity in ("aa", "bb"):
        with pytest.raises(LedgerError, match="a new name is not a new budget"):
            ledger.declare("ward-again", identity=identity)
    assert ledger.epsilon("ward", DELTA) > 0
    with pytest.raises(ConfigError, match="printable"):
        ledger.reserve("a\nb", [EVENT], run_id="run", round=0, budget=BUDGET)


def test_commit_needs_its_own_ledger(path: Path, tmp_path: Path) -> None:
    ledger, other = Ledger(path), Ledger(tmp_path / "other.sqlite")
    reservation = ledger.reserve("ward", [EVENT], run_id="run", round=0, budget=BUDGET)
    spend(other, 2)
    for act in (other.commit, other.is_committed):
        with pytest.raises(LedgerError, match="has no reservation 2"):
            act(reservation)


def test_readonly_never_writes(path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no ledger"):
        Ledger.open_readonly(path)
    spend(Ledger(path), 1)
    before = path.read_bytes()
    reader = Ledger.open_readonly(path)
    assert reader.events("ward") == (EVENT,)
    reader.verify()
    with pytest.raises(LedgerError, match="read-only"):
        reader.reserve("ward", [EVENT], run_id="run", round=1, budget=BUDGET)
    assert path.read_bytes() == before


def test_bodies_are_canonical_json(path: Path) -> None:
    ledger = Ledger(path)
    spend(ledger, 1)
    connection = sqlite3.connect(path)
    for (body,) in connection.execute("SELECT body FROM entries"):
        assert body == json.dumps(json.loads(body), sort_keys=True, separators=(",", ":"))
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
