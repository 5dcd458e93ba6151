"""How many more rounds a budget bears at the present rate; for whoever watches, on either side."""

from dataclasses import replace
from functools import lru_cache

from wardpose.shared.privacy.accounting import Adjacency, UnitKind
from wardpose.shared.privacy.budget import Budget
from wardpose.shared.privacy.evaluation import EVALUATION
from wardpose.shared.privacy.filters import Charged
from wardpose.shared.privacy.ledger import Ledger

MOST_ROUNDS = 10_000
"""Rounds beyond which nobody counts how many are left."""


def last_round(ledger: Ledger, cohort: str, *, run: str | None = None) -> Charged | None:
    """Return what the last training round cost a cohort, in a run or ever; `None` before the first."""
    events = None
    for entry in ledger.all_reservations():
        body = entry.body
        wanted = body["cohort"] == cohort and run in (None, body["run"])
        if wanted and all(event["mechanism"] != EVALUATION for event in body["events"]):
            events = body["events"]
    if not events:
        return None
    for charge in reversed(ledger.charges(cohort)):
        if [event.to_json() for event in charge.events] == events:
            return replace(charge, times=1)
    return None


@lru_cache(maxsize=256)
def rounds_left(
    charges: tuple[Charged, ...],
    last: Charged,
    *,
    epsilon: float,
    delta: float,
    adjacency: Adjacency,
    unit: UnitKind,
    order: int | None,
) -> int:
    """Return how many more charges like the last one a budget bears, at most `MOST_ROUNDS`; found by halving."""
    budget = Budget(epsilon=epsilon, delta=delta, adjacency=adjacency, unit=unit)

    def bears(number: int) -> bool:
        return budget.spent([*charges, replace(last, times=number)], order) <= epsilon

    if not bears(1):
        return 0
    high = 2
    while high < MOST_ROUNDS and bears(high):
        high *= 2
    low, high = high // 2, min(high, MOST_ROUNDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if bears(middle) else (low, middle)
    return low
