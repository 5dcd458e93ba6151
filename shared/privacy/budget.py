"""What may be spent, and whether some charges stay within it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy import accounting, filters
from wardpose.shared.privacy.accounting import ANY_TIER, UNITS, Adjacency, Event, UnitKind
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.evaluation import EVALUATION
from wardpose.shared.privacy.filters import Charged
from wardpose.shared.privacy.membership import Spend


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a cohort may spend in all, over every run.

    Examples:
        >>> budget = Budget(epsilon=8.0, delta=1e-5, by_tier={"strict": 1.0})
        >>> budget.limit("strict"), budget.limit("")
        (1.0, 8.0)

    Attributes:
        epsilon: limit of every unit whose tier has no limit of its own; infinity for none.
        delta: at which epsilon is computed.
        adjacency: for which epsilon is computed.
        by_tier: limits of consent tiers, by tier name.
        unit: what the budget is for. Charges for a weaker unit (a frame, where the budget is a patient's) do not bound
            what it pays, so they count as infinite.
        whole_ledger: every cohort of the file counts: for records that name no patients, among whom nobody can tell
            who was there before.
        per_month: limit of what is charged in one calendar month (UTC).
        studies: limits of what single studies charge, by name; with any, a study that is not named may charge nothing.

    Raises:
        ConfigError: a limit is negative or not a number, or delta or adjacency is out of range.

    """

    epsilon: float
    delta: float
    adjacency: Adjacency = "add-remove"
    by_tier: Mapping[str, float] = field(default_factory=dict)
    unit: UnitKind = "record"
    whole_ledger: bool = False
    per_month: float = math.inf
    studies: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse limits that have no meaning."""
        limits = {
            "": self.epsilon,
            " of a month": self.per_month,
            **{f" of tier {tier!r}": limit for tier, limit in self.by_tier.items()},
            **{f" of study {study!r}": limit for study, limit in self.studies.items()},
        }
        for what, limit in limits.items():
            if not limit >= 0:
                raise ConfigError(f"budget{what}: epsilon is {limit}; it must be at least 0")
        accounting.epsilon((), delta=self.delta, adjacency=self.adjacency)

    def limit(self, tier: str) -> float:
        """Epsilon that units of `tier` may spend; the least of all where it may be any."""
        if tier == ANY_TIER:
            return min([self.epsilon, *self.by_tier.values()])
        return self.by_tier.get(tier, self.epsilon)

    @property
    def is_bounded(self) -> bool:
        """Whether it limits anything at all."""
        return bool(self.studies) or min(self.epsilon, self.per_month, *self.by_tier.values()) < math.inf

    def windows(self, study: str, month: str) -> list["Window"]:
        """Return what a charge for a study in a month is held against: everything, and what has limits of its own."""
        found = [Window()]
        if self.per_month < math.inf:
            found.append(Window(words=f" in {month}", limit=self.per_month, month=month))
        if self.studies:
            limit = self.studies.get(study, 0.0)
            found.append(Window(words=f" for the study {study!r}", limit=limit, study=study))
        return found

    def spent(self, charges: Sequence[Charged], first_order: int | None) -> float:
        """Epsilon of charges for the budget's unit and adjacency, as enforced; infinite for those of a weaker unit."""
        if holds_weaker(charges, self.unit):
            return float("inf")
        return filters.account(charges, delta=self.delta, adjacency=self.adjacency, first_order=first_order).epsilon

    def bears(
        self, charges: Sequence[Charged], first_order: int | None, *, tier: str, limit: float | None = None
    ) -> bool:
        """Tell whether units of `tier` may spend that much; a window's `limit` stands in the place of the tier's."""
        limit = self.limit(tier) if limit is None else limit
        if holds_weaker(charges, self.unit):
            return limit == float("inf")
        return filters.fits(charges, limit, delta=self.delta, adjacency=self.adjacency, first_order=first_order)


@dataclass(frozen=True, kw_only=True)
class Window:
    """Some of the charges of an account, which have a limit of their own beside the account's.

    What a window's charges release is bounded by their composition, whatever the charges outside it were: these are
    given before, or follow from what was released (`filters`, conditional on them). Which rounds of a course fall into
    a month may be chosen by looking at releases, so the month's charges are a fixed list only where all are equal. A
    study holds its courses whole.

    Attributes:
        words: which they are, for an error.
        limit: epsilon of the window; that of the account where there is none.
        month: those of a month.
        study: those of a study, and those that nobody can tell the study of.

    """

    words: str = ""
    limit: float | None = None
    month: str | None = None
    study: str | None = None

    def holds(self, spend: Spend) -> bool:
        """Tell whether a charge is in it."""
        return self.month in (None, spend.month) and (self.study is None or spend.study in ("", self.study))

    def charged(self, charges: Sequence[Charged]) -> list[Charged]:
        """Return the charges in it as what can be accounted for together."""
        if self.month is None or len({charge.events for charge in charges}) <= 1:
            return list(charges)
        return [replace(charge, course="", covers=()) for charge in charges]


@dataclass(frozen=True, kw_only=True)
class OverlapBudget:
    """What somebody may spend who is in up to `overlap` of several cohorts: the composition of the costliest.

    Attributes:
        budget: epsilon, delta and the rest.
        overlap: of how many cohorts one may be.
        cohorts: which; all of the ledger when empty.

    Examples:
        >>> OverlapBudget(budget=Budget(epsilon=1.0, delta=1e-5), overlap=2).spent({})
        0.0

    """

    budget: Budget
    overlap: int
    cohorts: tuple[str, ...] = ()

    def spent(self, charges: Mapping[str, Sequence[Charged]]) -> float:
        """Return what the costliest cohorts spent together."""
        if any(holds_weaker(found, self.budget.unit) for found in charges.values()):
            return math.inf
        return filters.federation_epsilon(
            charges, delta=self.budget.delta, overlap=self.overlap, adjacency=self.budget.adjacency
        )


def holds_weaker(charges: Sequence[Charged], unit: UnitKind) -> bool:
    """Tell whether something that costs was charged for less than a unit: a frame, where a patient is asked about."""
    weaker = UNITS[UNITS.index(unit) + 1 :]
    events = (event for charge in charges for event in charge.events)
    return any(event.unit in weaker and accounting.merged_charges([event]) != () for event in events)


def of_tier(charge: Charged, tier: str) -> Charged:
    """Return what a charge costs units of one consent tier."""
    return replace(charge, events=tuple(event for event in charge.events if event.tier in ("", tier)))


def charge_of(before: Sequence[Charged], events: Sequence[Event], course: Course | None) -> Charged:
    """Make a charge: a part of its course if the events, with what that was charged before, are in what it declared."""
    alone = Charged(course="", events=tuple(events))
    if course is None:
        return alone
    mine = [charge for charge in before if charge.course == course.identity]
    declared, wanted = _steps(course.whole()), _steps([event for charge in (*mine, alone) for event in charge.total])
    if any(steps > declared.get(kind, 0) for kind, steps in wanted.items()):
        return alone
    covers: tuple[Event, ...] = ()
    if course.mechanism.schedule is not None:
        taken = {kind: steps for kind, steps in wanted.items() if kind[0] != EVALUATION}
        covers = course.beginning({kind[1:4]: steps for kind, steps in taken.items()})
        passed_over = sum(event.steps for event in covers) > sum(taken.values())
        if not passed_over and not any(filters.without_evaluations(charge.covers) for charge in mine):
            covers = ()  # in order so far: what was charged is the beginning itself
    return Charged(course=course.identity, events=tuple(events), covers=(*course.set_aside(), *covers))


def evaluations_made(charges: Sequence[Charged], course: Course) -> int:
    """Return how often the patients of these charges were charged for an evaluation that a course declares."""
    mine = [event for charge in charges if charge.course == course.identity for event in charge.total]
    return sum(event.steps for event in mine if event.mechanism == EVALUATION)


def _steps(events: Sequence[Event]) -> dict[tuple[str, str, float, float, str], int]:
    found: dict[tuple[str, str, float, float, str], int] = {}
    for event in events:
        kind = (event.mechanism, event.noise, event.sample_rate, event.noise_multiplier, event.tier)
        found[kind] = found.get(kind, 0) + event.steps
    return found
