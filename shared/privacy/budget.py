"""What may be spent, and whether some charges stay within it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy import accounting, filters
from wardpose.shared.privacy.accounting import ANY_TIER, UNITS, Adjacency, Event, UnitKind
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.evaluation import EVALUATION
from wardpose.shared.privacy.filters import Charged


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

    Raises:
        ConfigError: a limit is negative or not a number, or delta or adjacency is out of range.

    """

    epsilon: float
    delta: float
    adjacency: Adjacency = "add-remove"
    by_tier: Mapping[str, float] = field(default_factory=dict)
    unit: UnitKind = "record"
    whole_ledger: bool = False

    def __post_init__(self) -> None:
        """Refuse limits that have no meaning."""
        for tier, limit in {"": self.epsilon, **self.by_tier}.items():
            if not limit >= 0:
                raise ConfigError(
                    f"budget{f' of tier {tier!r}' if tier else ''}: epsilon is {limit}; it must be at least 0"
                )
        accounting.epsilon((), delta=self.delta, adjacency=self.adjacency)

    def limit(self, tier: str) -> float:
        """Epsilon that units of `tier` may spend; the least of all where it may be any."""
        if tier == ANY_TIER:
            return min([self.epsilon, *self.by_tier.values()])
        return self.by_tier.get(tier, self.epsilon)

    def spent(self, charges: Sequence[Charged], first_order: int | None) -> float:
        """Epsilon of charges for the budget's unit and adjacency, as enforced; infinite for those of a weaker unit."""
        if holds_weaker(charges, self.unit):
            return float("inf")
        return filters.account(charges, delta=self.delta, adjacency=self.adjacency, first_order=first_order).epsilon

    def bears(self, charges: Sequence[Charged], first_order: int | None, *, tier: str) -> bool:
        """Tell whether units of `tier` may spend that much."""
        limit = self.limit(tier)
        if holds_weaker(charges, self.unit):
            return limit == float("inf")
        return filters.fits(charges, limit, delta=self.delta, adjacency=self.adjacency, first_order=first_order)


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
