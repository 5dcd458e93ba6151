"""The coordinator's limits: asked before a plan's first charge, and again by every charge, whatever the plan says."""

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant

from wardpose.server.budget import GlobalBudget
from wardpose.server.coordinator import CoordinatorConfig
from wardpose.server.forecast import Crossing, forecast, refuse_crossing
from wardpose.server.ledger import ServerLedger
from wardpose.server.limits import Limits
from wardpose.shared.errors import BudgetExceeded, ConfigError
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.signing import create_key_pair
from wardpose.shared.yaml_config import load_yaml

DELTA = 1e-5
SITES = ("north", "south", "west")
STEPS, RATE, SIGMA = 10, 0.05, 1.5


def course(run: str = "r1", federation: str = "gait", *, rounds: int = 12, **changes: Any) -> Course:
    mechanism = Mechanism(**{"unit": "patient", "noise_multiplier": SIGMA, "sample_rate": RATE} | changes)
    return Course(run=run, federation=federation, mechanism=mechanism, steps=STEPS, last_round=rounds)


def epsilon(rounds: int, *, sigma: float = SIGMA) -> float:
    """Epsilon of so many rounds of a declared course, by Google's accountant alone (three quarters of delta)."""
    accountant = PLDAccountant()
    accountant.compose(PoissonSampledDpEvent(RATE, GaussianDpEvent(sigma)), STEPS * rounds)
    return float(accountant.get_epsilon(0.75 * DELTA))


def between(rounds: int) -> float:
    return (epsilon(rounds) + epsilon(rounds + 1)) / 2


def limits(**values: Any) -> Limits:
    return Limits.model_validate({"budget": {"delta": DELTA}} | values)


def budget_of(path: Path, allowed: Limits, **changes: Any) -> GlobalBudget:
    return GlobalBudget(
        ServerLedger(path), **{"delta": DELTA, "overlap": 1, "unit": "patient"} | changes, limits=allowed
    )


def take(budget: GlobalBudget, chosen: Course, sites: tuple[str, ...] = ("north",)) -> int:
    """Charge round after round to all sites until one is refused; returns how many rounds all could pay."""
    for number in range(1, chosen.last_round + 1):
        for site in sites:
            events = chosen.events(number)
            affords = budget.affords(site, events, course=chosen, epsilon=float("inf"))
            assert budget.reserve(site, events, course=chosen, round_number=number, epsilon=float("inf")) == affords
            if not affords:
                return number - 1
    return chosen.last_round


def crossing(path: Path, allowed: Limits, chosen: Course, sites: tuple[str, ...] = ("north",)) -> Crossing:
    (found,) = forecast(allowed, ServerLedger(path), chosen, sites)
    return found


CASES = {
    "a site's own": ({"sites": {"north": {"epsilon": between(7)}}}, 7),
    "every site's": ({"budget": {"delta": DELTA, "epsilon": between(7)}}, 7),
    "a month's": ({"budget": {"delta": DELTA, "month": between(4)}}, 4),
    "a study's": ({"sites": {"north": {"studies": {"gait": between(5)}}}}, 5),
    "the federation's": ({"federations": {"gait": {"epsilon": between(3)}}}, 3),
    "the federation's month": ({"federations": {"gait": {"epsilon": 90, "month": between(3)}}}, 3),
}


def first_of(values: Iterable[Any]) -> list[Any]:
    """The first at every test run, the others with the slow ones."""
    first, *others = values
    return [first, *(pytest.param(value, marks=[pytest.mark.slow, pytest.mark.guard]) for value in others)]


@pytest.mark.parametrize("case", CASES)
def test_a_limit_is_said_before_and_held_after(case: str, tmp_path: Path) -> None:
    values, rounds = CASES[case]
    allowed, path = limits(**values), tmp_path / "ledger.sqlite"
    found = crossing(path, allowed, course())
    assert found.round == rounds + 1
    assert found.total == pytest.approx(epsilon(12), rel=2e-3)
    assert not path.exists()  # nothing is charged, and nothing made
    assert take(budget_of(path, allowed), course()) == rounds


@pytest.mark.parametrize("case", first_of(CASES))
def test_the_noise_that_is_named_is_the_least_that_fits(case: str, tmp_path: Path) -> None:
    allowed, path = limits(**CASES[case][0]), tmp_path / "ledger.sqlite"
    sigma = crossing(path, allowed, course()).sigma
    assert sigma is not None
    assert forecast(allowed, ServerLedger(path), course(noise_multiplier=sigma), ("north",)) == []
    less = course(noise_multiplier=sigma * 0.995)
    assert crossing(path, allowed, less).round == less.last_round


@pytest.mark.parametrize("overlap", first_of([2, 1, 3, None]))
def test_a_patient_at_several_sites_is_the_composition_of_the_costliest(overlap: int | None, tmp_path: Path) -> None:
    """All sites pay the same, so `k` of them cost a patient `k` times the steps."""
    shared = overlap or len(SITES)
    limit = (epsilon(4 * shared) + epsilon(5 * shared)) / 2
    allowed = limits(federations={"gait": {"overlap": overlap, "overlap_epsilon": limit}})
    path = tmp_path / "ledger.sqlite"
    found = crossing(path, allowed, course(), SITES)
    assert found.round == 5
    assert found.sigma is not None
    assert forecast(allowed, ServerLedger(path), course(noise_multiplier=found.sigma), SITES) == []
    budget = budget_of(path, allowed)
    assert take(budget, course(), SITES) == 4
    assert ServerLedger(path).charges("north")[0].times >= 4


def test_a_submitter_who_names_fewer_sites_does_not_make_patients_fewer(tmp_path: Path) -> None:
    allowed = limits(federations={"gait": {"overlap": 2, "overlap_epsilon": between(9)}})
    budget = budget_of(tmp_path / "ledger.sqlite", allowed, overlap=1)
    assert take(budget, course(rounds=4), ("north",)) == 4
    assert take(budget, course("r2", rounds=12), ("south",)) < 9


def test_delta_unit_and_overlap_of_a_plan_change_no_limit(tmp_path: Path) -> None:
    allowed = limits(budget={"delta": DELTA, "epsilon": between(7)})
    budget = budget_of(tmp_path / "ledger.sqlite", allowed, delta=0.5, unit="frame")
    assert take(budget, course()) == 7
    frames = course("r2", unit="frame")
    assert take(budget_of(tmp_path / "ledger.sqlite", allowed, unit="frame"), frames, ("south",)) == 0
    with pytest.raises(BudgetExceeded, match="epsilon would be inf"):
        refuse_crossing(allowed, ServerLedger(tmp_path / "ledger.sqlite"), frames, ("south",))


def test_another_federation_finds_what_the_first_left(tmp_path: Path) -> None:
    allowed, path = limits(sites={"north": {"epsilon": between(7)}}), tmp_path / "ledger.sqlite"
    assert take(budget_of(path, allowed), course("r1", "gait", rounds=5)) == 5
    other = course("r2", "rehab")
    found = crossing(path, allowed, other)
    assert found.round <= 3  # two courses are bounded by the Rényi filter
    assert take(budget_of(path, allowed), other) == found.round - 1


def test_the_narrower_of_two_limits_is_said(tmp_path: Path) -> None:
    for own, federation in ((between(3), 90.0), (90.0, between(3))):
        allowed = limits(sites={"north": {"epsilon": own}}, federations={"gait": {"epsilon": federation}})
        assert crossing(tmp_path / "ledger.sqlite", allowed, course(rounds=5)).round == 4


def test_two_federations_race_for_the_last_of_a_sites_budget(tmp_path: Path) -> None:
    allowed, path = limits(sites={"north": {"epsilon": 2.0}}), tmp_path / "ledger.sqlite"
    start, charged = threading.Barrier(2), dict[str, int]()

    def race(federation: str) -> None:
        budget = budget_of(path, allowed)
        chosen = course(federation, federation, rounds=40)
        start.wait()
        taken = 0
        for number in range(1, 41):
            taken += budget.reserve(
                "north", chosen.events(number), course=chosen, round_number=number, epsilon=float("inf")
            )
        charged[federation] = taken

    threads = [threading.Thread(target=race, args=(name,)) for name in ("gait", "rehab")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = ServerLedger(path)
    assert 1.5 < ledger.epsilon("north", DELTA, unit="patient") <= 2.0
    assert sum(event.steps for event in ledger.events("north")) == STEPS * sum(charged.values())
    ledger.verify()


def test_rounds_that_were_taken_count_once_when_a_run_goes_on(tmp_path: Path) -> None:
    allowed, path = limits(sites={"north": {"epsilon": between(12)}}), tmp_path / "ledger.sqlite"
    assert take(budget_of(path, allowed), course(rounds=12)) == 12
    refuse_crossing(allowed, ServerLedger(path), course(rounds=12), ("north",), rounds_done=12)
    half = tmp_path / "half.sqlite"
    budget = budget_of(half, allowed)
    for number in range(1, 7):
        chosen = course()
        assert budget.reserve("north", chosen.events(number), course=chosen, round_number=number, epsilon=99.0)
    refuse_crossing(allowed, ServerLedger(half), course(), ("north",), rounds_done=6)
    with pytest.raises(BudgetExceeded, match="in round 9 "):  # three names of one account
        refuse_crossing(allowed, ServerLedger(half), course(), ("north",) * 3, rounds_done=6)


def test_what_has_no_privacy_has_no_noise_that_is_enough(tmp_path: Path) -> None:
    allowed = limits(budget={"delta": DELTA, "epsilon": 8.0})
    found = crossing(tmp_path / "ledger.sqlite", allowed, course(name="none", noise_multiplier=0.0))
    assert (found.round, found.sigma) == (1, None)
    assert "no noise is enough" in str(found)


def test_a_federation_that_the_coordinator_does_not_know_may_not_run() -> None:
    allowed = limits(federations={"gait": {"sites": ["north", "south"], "overlap": 2}})
    allowed.check_federation("gait", ["north"])
    limits().check_federation("anything", ["anybody"])
    with pytest.raises(ConfigError, match=r"federation 'rehab': .*allowed: gait"):
        allowed.check_federation("rehab", ["north"])
    with pytest.raises(ConfigError, match=r"west may not take part \(allowed: north, south\)"):
        allowed.check_federation("gait", ["north", "west"])


def test_limits_are_read_from_coordinators_file(tmp_path: Path) -> None:
    path = tmp_path / "coordinator.yaml"
    path.write_text(
        "state: books\nbudget: {epsilon: 8, month: 2}\nsites: {north: {studies: {gait: 1.5}}}\n"
        "federations: {gait: {epsilon: 4, overlap: 2, overlap_epsilon: 6}}\n"
    )
    config = load_yaml(path, CoordinatorConfig)
    own, federation, shared = config.of("north", "gait")
    assert (own.epsilon, own.per_month, own.studies) == (8, 2, {"gait": 1.5})  # type: ignore[union-attr]
    assert (federation.epsilon, shared.overlap, shared.budget.epsilon) == (4, 2, 6)  # type: ignore[union-attr]
    for wrong in (
        "budget: {epsilon: 0}",
        "budget: {epsilon: .inf}",
        "federations: {gait: {overlap: 3, sites: [a, b]}}",
        "sites: {north: {weeks: 2}}",
    ):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match=r"coordinator\.yaml: (file: )?(budget|federations|sites)"):
            load_yaml(path, CoordinatorConfig)


def renamed(path: Path, allowed: Limits) -> GlobalBudget:
    """A hospital that was charged as "north" is registered as "nord" now, with the key that it had."""
    ledger = ServerLedger(path)
    key = create_key_pair(path.with_name("node.key"), path.with_name("node.pub")).public
    for name in ("north", "nord"):
        assert ledger.bind(name, key) == "north"
    return budget_of(path, allowed)


def test_a_site_under_another_name_is_one_of_the_sites_that_share_patients(tmp_path: Path) -> None:
    """The federation's list holds names as they are now; what the account was called at first changes no sum."""
    limit = (epsilon(6) + epsilon(7)) / 2
    allowed = limits(federations={"gait": {"overlap": 2, "overlap_epsilon": limit, "sites": ("nord", "south")}})
    budget = renamed(tmp_path / "ledger.sqlite", allowed)
    assert take(budget, course(rounds=4), ("nord",)) == 4
    assert take(budget, course("r2"), ("south",)) <= 2


def test_a_limit_by_the_name_that_a_site_has_now_holds(tmp_path: Path) -> None:
    allowed = limits(sites={"nord": {"epsilon": between(3)}})
    assert take(renamed(tmp_path / "ledger.sqlite", allowed), course(), ("nord",)) == 3
