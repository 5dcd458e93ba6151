"""Whether a plan's rounds fit the coordinator's limits, asked before the first of them is charged.

The rounds that are left are added to what the ledger holds, for every site of the plan, as if none dropped out and all
came in this month; every limit is asked for the first round at which it would be crossed. Epsilon grows with rounds and
shrinks with noise, so both are found by halving. The same limits are checked again, round by round, inside the
transaction that charges; this check only says in time what would happen then.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from wardpose.server.ledger import ServerLedger
from wardpose.server.limits import Limits
from wardpose.shared.errors import BudgetExceeded, ConfigError
from wardpose.shared.first_course import with_noise
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.budget import Budget, OverlapBudget, Window
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.filters import Charged

_LARGEST = 2.0**19
_PRECISION = 1.0 + 1e-4


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """A limit that a plan would cross.

    Attributes:
        who: the site's account, or the federation's patients at several sites.
        window: which charges: all, those of this month, or those of this study.
        limit: epsilon.
        total: epsilon after the plan's last round; infinity for no privacy.
        delta: at which both are stated.
        round: at which the limit would be crossed first.
        sigma: the smallest noise multiplier with which no limit would be crossed; `None` where none is enough, or the
            plan states a schedule.

    """

    who: str
    window: str
    limit: float
    total: float
    delta: float
    round: int
    sigma: float | None

    def __str__(self) -> str:
        """Say it in a line."""
        remedy = "no noise is enough" if self.sigma is None else f"allowed: noise_multiplier = {self.sigma:g} or more"
        return (
            f"{self.who}{self.window}: epsilon would be {self.total:.4g} of {self.limit:.4g} at delta {self.delta:g}, "
            f"and cross it in round {self.round} ({remedy})"
        )


@dataclass(frozen=True, kw_only=True)
class _Demand:
    """One limit, what was charged so far of what it is for, by account, and how often a round charges each."""

    who: str
    limit: Budget | OverlapBudget
    window: Window
    before: Mapping[str, Sequence[Charged]]
    charged: Mapping[str, int]
    order: int | None

    @property
    def allowed(self) -> float:
        budget = self.limit.budget if isinstance(self.limit, OverlapBudget) else self.limit
        return budget.epsilon if self.window.limit is None else self.window.limit

    def spent(self, more: Sequence[Charged]) -> float:
        """Return epsilon of what is charged so far and the rounds to come."""
        found = {
            name: self.window.charged([*before, *(list(more) * self.charged.get(name, 0))])
            for name, before in self.before.items()
        }
        if isinstance(self.limit, OverlapBudget):
            return self.limit.spent(found)
        (charges,) = found.values()
        return self.limit.spent(charges, self.order)


def refuse_crossing(
    limits: Limits, ledger: ServerLedger, course: Course, accounts: Sequence[str], *, rounds_done: int = 0
) -> None:
    """Refuse a plan that would cross a limit; nothing is charged.

    Args:
        limits: the coordinator's.
        ledger: the coordinator's.
        course: which the run declares.
        accounts: of the plan's sites.
        rounds_done: rounds that the run has behind it.

    Raises:
        BudgetExceeded: says which limits, at which round, and with which noise none would be.

    """
    found = forecast(limits, ledger, course, accounts, rounds_done=rounds_done)
    if found:
        raise BudgetExceeded("; ".join(str(crossing) for crossing in found))


def forecast(
    limits: Limits, ledger: ServerLedger, course: Course, accounts: Sequence[str], *, rounds_done: int = 0
) -> list[Crossing]:
    """Return the limits that the rounds which are left would cross, each with the round; arguments as above."""
    first, last = max(rounds_done + 1, course.first_round), course.last_round
    if rounds_done >= last:
        return []
    demands = list(_demands(limits, ledger, course, accounts))
    whole = charges_of(course, first, last)
    crossed = [demand for demand in demands if demand.spent(whole) > demand.allowed]
    if not crossed:
        return []
    sigma = _sigma(demands, course, first)
    return [
        Crossing(
            who=demand.who,
            window=demand.window.words,
            limit=demand.allowed,
            total=demand.spent(whole),
            delta=limits.budget.delta,
            round=_first_round(demand, course, first),
            sigma=sigma,
        )
        for demand in crossed
    ]


def _demands(limits: Limits, ledger: ServerLedger, course: Course, accounts: Sequence[str]) -> Iterator[_Demand]:
    month, order, charged = ledger.month(), ledger.first_order(), Counter(accounts)
    for place, (account, times) in enumerate(charged.items()):
        for limit in limits.of(account, course.federation):
            if isinstance(limit, OverlapBudget):
                if place:
                    continue  # the same for every site
                names = tuple(dict.fromkeys([*(limit.cohorts or ledger.cohorts()), *accounts]))
                who, budget = f"a patient at {min(limit.overlap, len(names))} sites", limit.budget
            else:
                who, budget, names = f"site {account}", limit, (account,)
            for window in budget.windows(course.federation, month):
                yield _Demand(
                    who=who,
                    limit=limit,
                    window=window,
                    before={name: ledger.charges(name, window) for name in names},
                    charged=charged if isinstance(limit, OverlapBudget) else {account: times},
                    order=order,
                )


def charges_of(course: Course, first: int, last: int) -> list[Charged]:
    """Return what the rounds of a course from `first` to `last` cost a site, as the ledger would hold it."""
    rounds = Counter[tuple[Event, ...]](course.events(number) for number in range(first, last + 1))
    aside = course.set_aside()
    return [
        Charged(course=course.identity, events=events, covers=aside, times=times) for events, times in rounds.items()
    ]


def _first_round(demand: _Demand, course: Course, first: int) -> int:
    low, high = first, course.last_round
    while low < high:
        middle = (low + high) // 2
        if demand.spent(charges_of(course, first, middle)) > demand.allowed:
            high = middle
        else:
            low = middle + 1
    return high


def _sigma(demands: Sequence[_Demand], course: Course, first: int) -> float | None:
    """Return the smallest noise multiplier with which all rounds that are left fit all limits."""
    mechanism = course.mechanism
    if not mechanism.is_private or mechanism.schedule is not None:
        return None

    def fits(sigma: float) -> bool:
        try:
            noisier = with_noise(mechanism, sigma)
        except ConfigError:
            return False  # the residual's noise spends more alone
        other = course.model_copy(update={"mechanism": noisier, "first_round": first})
        other = Course.model_validate(other.model_dump())
        charges = charges_of(other, first, course.last_round)
        return all(demand.spent(charges) <= demand.allowed for demand in demands)

    if not fits(_LARGEST):
        return None
    low, high = mechanism.effective_noise_multiplier, _LARGEST
    while high / low > _PRECISION:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return float(f"{high * _PRECISION:.5g}")
