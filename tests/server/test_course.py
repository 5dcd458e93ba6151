"""The course that a run declares, anew when it is taken up again."""

from pathlib import Path

import pytest

from wardpose.server.course import declare
from wardpose.server.ledger import ServerLedger
from wardpose.shared.config import FederationConfig
from wardpose.shared.errors import BudgetExceeded
from wardpose.shared.privacy.ledger import Budget

DELTA = 1e-5


def plan(rounds: int) -> FederationConfig:
    content = {
        "name": "study",
        "rounds": rounds,
        "sites": ["north"],
        "training": {"steps": 4},
        "privacy": {"epsilon": 2.0, "delta": DELTA},
        "mechanism": {"name": "dp-sgd", "sample_rate": 0.1},
    }
    return FederationConfig.model_validate(content)


def spend(ledger: ServerLedger, course: object, *rounds: int) -> None:
    for number in rounds:
        ledger.reserve(
            "north",
            course.events(number),
            run_id="r",
            round=number,
            budget=Budget(epsilon=2.0, delta=DELTA),
            course=course,
        )


def test_a_run_that_is_taken_up_keeps_its_course(tmp_path: Path) -> None:
    ledger = ServerLedger(tmp_path / "ledger.sqlite")
    course = declare(plan(3), ledger, run="r", rounds_done=0, before="")
    spend(ledger, course, 1, 2)
    assert declare(plan(3), ledger, run="r", rounds_done=2, before=course.model_dump_json()) == course
    assert ledger.account("north", DELTA).epsilon <= 2.0


def test_a_lost_round_that_nothing_is_left_for_ends_the_run_earlier(tmp_path: Path) -> None:
    ledger = ServerLedger(tmp_path / "ledger.sqlite")
    course = declare(plan(2), ledger, run="r", rounds_done=0, before="")
    spend(ledger, course, 1, 2)
    assert declare(plan(2), ledger, run="r", rounds_done=1, before=course.model_dump_json()) == course


@pytest.mark.parametrize("done", [1, 2])
def test_more_rounds_than_the_budget_has_are_refused_by_name(tmp_path: Path, done: int) -> None:
    ledger = ServerLedger(tmp_path / "ledger.sqlite")
    course = declare(plan(2), ledger, run="r", rounds_done=0, before="")
    spend(ledger, course, *range(1, 3))
    with pytest.raises(BudgetExceeded, match=r"rounds is 5: .*allowed: rounds = 2"):
        declare(plan(5), ledger, run="r", rounds_done=done, before=course.model_dump_json())
