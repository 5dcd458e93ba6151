"""What may be spent, and whether some charges stay within it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy import accounting, filters
from wardpose.shared.privacy.accounting import UNITS, Adjacency, Event, UnitKind
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.filters import Charged


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a cohort may spend in all, over every run.

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
        """Epsilon that units of `tier` may spend."""
        return self.by_tier.get(tier, self.epsilon)

    def spent(self, charges: Sequence[Charged], first_order: int | None) -> float:
        """Epsilon of charges for the budget's unit and adjacency, as enforced; infinite for those of a weaker unit."""
        if self._holds_weaker(charges):
            return float("inf")
        return filters.account(charges, delta=self.delta, adjacency=self.adjacency, first_order=first_order).epsilon

    def bears(self, charges: Sequence[Charged], first_order: int | None, *, tier: str) -> bool:
        """Tell whether units of `tier` may spend that much."""
        limit = self.limit(tier)
        if self._holds_weaker(charges):
            return limit == float("inf")
        return filters.fits(charges, limit, delta=self.delta, adjacency=self.adjacency, first_order=first_order)

    def _holds_weaker(self, charges: Sequence[Charged]) -> bool:
        weaker = UNITS[UNITS.index(self.unit) + 1 :]
        events = (event for charge in charges for event in charge.events)
        return any(event.unit in weaker and accounting.merged_charges([event]) != () for event in events)


def of_tier(charge: Charged, tier: str) -> Charged:
    """Return what a charge costs units of one consent tier."""
    return replace(charge, events=tuple(event for event in charge.events if event.tier in ("", tier)))


def within(before: Sequence[Charged], events: Sequence[Event], course: Course) -> bool:
    """Tell whether the events, with what the course was charged before, are a part of what it declared."""
    declared, wanted = _steps(course.whole()), _steps(events)
    for charge in before:
        if charge.course == course.identity:
            for kind, steps in _steps(charge.total).items():
                wanted[kind] = wanted.get(kind, 0) + steps
    return all(steps <= declared.get(kind, 0) for kind, steps in wanted.items())


def _steps(events: Sequence[Event]) -> dict[tuple[object, ...], int]:
    found: dict[tuple[object, ...], int] = {}
    for event in events:
        kind = (event.mechanism, event.noise, event.sample_rate, event.noise_multiplier, event.tier)
        found[kind] = found.get(kind, 0) + event.steps
    return found
