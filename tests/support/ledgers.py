"""What tests of the ledger charge, and how."""

import math
from collections.abc import Sequence
from pathlib import Path

from wardpose.shared.privacy import accounting
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.chain import Chain
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.entries import RESERVE
from wardpose.shared.privacy.filters import COURSE_SHARE
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.privacy.mechanisms import Mechanism

DELTA = 1e-5
COURSE = Course(
    run="run",
    federation="study",
    mechanism=Mechanism(sample_rate=0.1, noise_multiplier=2.0, max_grad_norm=1.0),
    steps=5,
    last_round=100,
)
(EVENT,) = COURSE.events(1)
BUDGET = Budget(epsilon=3.0, delta=DELTA)
UNLIMITED = Budget(epsilon=math.inf, delta=DELTA)


def cost(*events: Event, delta: float = DELTA) -> float:
    """Epsilon of events of one declared course, as it is enforced."""
    return accounting.epsilon(events, delta=COURSE_SHARE * delta)


def spend(ledger: Ledger, rounds: int, cohort: str = "ward", budget: Budget = BUDGET) -> None:
    """Reserve and commit so many rounds of `EVENT`, all of one declared course."""
    for number in range(rounds):
        ledger.commit(ledger.reserve(cohort, [EVENT], run_id="run", round=number, budget=budget, course=COURSE))


def write_history(path: Path, entries: int, cohorts: Sequence[str]) -> None:
    """Write a ledger of so many entries in one transaction, by the code that appends otherwise."""
    written = [EVENT.to_json()]
    with Chain(path).transaction() as append:
        while append.tally.count < entries:
            number = append.tally.count
            body = {"cohort": cohorts[number % len(cohorts)], "run": "run", "round": number, "events": written}
            body |= {"budget": {"epsilon": None, "delta": DELTA}, "course": COURSE.identity}
            append(RESERVE, body | ({"order": 16} if number == 1 else {}))
            append.checkpoint_when_due()
