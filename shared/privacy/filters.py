"""What a cohort has spent when every order may be chosen after the releases before it were seen.

Privacy-loss distributions (PLD) compose tightly, but only a list of steps that was fixed in advance. Whoever sees a
release and then chooses the *parameters* of the next order (its q, sigma or number of steps) is not bound by the PLD
of the list that came about: two such orders can reach epsilon 4.29 where their PLD says 4.0 (arXiv 2602.06756). A
check "PLD of all so far, plus this, is at most epsilon" is therefore no valid *filter*. Two rules are, and delta is
shared between them:

* **course** (three quarters of delta). Everything charged so far, and what is about to be, belongs to one course that
  was declared before its first round; its PLD at 3/4 delta is at most epsilon. What a run computes inside its course
  may depend on all earlier releases in any way: weights, who answers, when it stops. Only the list of events is
  fixed, and where its events differ (a schedule), nobody may pick among them: rounds that were passed over count as
  charged, up to the furthest one that was not (`Charged.covers`). Evaluations on private patients that a course
  declares stand before its rounds in that list: with the first charge of the course they all count, made or not.
* **Rényi filter** (a quarter of delta). The Rényi divergences of all charges, whatever chose them, summed at a fixed
  order alpha, convert to at most epsilon. Four fifths of the quarter go to one order that is fixed when the first
  charge is made; the last fifth is shared evenly by the orders of a fixed list, for charges of other kinds.

**Theorem.** A process that carries out a charge only if one of the rules then holds is (epsilon, delta)-DP in the
adjacency of the computation, for orders chosen by anybody who sees all releases ("adaptive": each next mechanism, its
parameters included, is a function of all outputs so far; its privacy parameters are known when it is chosen).

*Proof.* Sort the outcomes S of the process by the rule that held at the last charge. (i) Outcomes by the course rule
are outcomes of the process that stops when it leaves the first course, or when the course's PLD passes epsilon: a
fixed list of mechanisms, adaptively composed with fixed dominating pairs (Zhu, Dong, Wang 2022, theorem 10), then
post-processed. Beginnings of the list are nested, so all that is ever carried out is in the longest one within epsilon;
what of it is left out or done in another order costs the same or less. (ii) Outcomes by the Rényi rule at alpha are
outcomes of the process that stops when the sum at alpha passes its limit: a Rényi filter of fixed order (Feldman, Zrnic
2021, theorem 3.1; Lécuyer 2021), converted by Canonne, Kamath, Steinke 2020, proposition 12. Each part satisfies
P(S_i) <= e^epsilon P'(S_i) + delta_i, and the shares delta_i sum to delta. The parts' inequalities add up. ∎

Which order is the first one is decided by the first charge alone, before anything was released. A *lost* round that
is done again inside the numbers of its course stays in it; one that needs a new sigma is a new course.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wardpose.shared.privacy import accounting, composition
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.composition import Adjacency
from wardpose.shared.privacy.evaluation import EVALUATION

Rule = Literal["course", "renyi-filter"]

COURSE_SHARE = 0.75
"""Share of delta of the course rule; the rest is the Rényi filter's."""

_FIRST_ORDER_SHARE = 0.8  # of the filter's share
_LISTED_ORDERS = (3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)


@dataclass(frozen=True, kw_only=True)
class Charged:
    """What a reservation cost, or several equal ones.

    Attributes:
        course: identity of the declared course it is part of; empty where it is part of none.
        events: what was charged.
        covers: what of the course counts as charged by now, where that is more than was charged: all its evaluations,
            then the beginning of its rounds where some were passed over.
        times: by how many equal reservations.

    """

    course: str
    events: tuple[Event, ...]
    covers: tuple[Event, ...] = ()
    times: int = 1

    @property
    def total(self) -> tuple[Event, ...]:
        """What all of them charged: as many times the steps."""
        if self.times == 1:
            return self.events
        return tuple(replace(event, steps=event.steps * self.times) for event in self.events)


@dataclass(frozen=True, kw_only=True)
class Account:
    """Epsilon of charges, by each rule.

    Attributes:
        composed: PLD of the whole list at the full delta: right if nobody chose a later charge by earlier releases.
        course: by the course rule; infinite where the charges are of several courses or of none.
        renyi_filter: by the Rényi filter.

    """

    composed: float
    course: float
    renyi_filter: float

    @property
    def epsilon(self) -> float:
        """The figure that is enforced: the smaller of the two valid ones."""
        return min(self.course, self.renyi_filter)

    @property
    def rule(self) -> Rule:
        """By which rule it is valid."""
        return "course" if self.course <= self.renyi_filter else "renyi-filter"


def account(
    charges: Sequence[Charged], *, delta: float, adjacency: Adjacency = "add-remove", first_order: int | None = None
) -> Account:
    """Return what a unit that every charge touched has spent.

    Examples:
        >>> once = Event(
        ...     mechanism="dp-sgd", unit="patient", sample_rate=0.01, noise_multiplier=1.0, steps=500, max_grad_norm=1.0
        ... )
        >>> inside = account([Charged(course="c", events=(once,))] * 2, delta=1e-5)
        >>> round(inside.composed, 2), round(inside.epsilon, 2), inside.rule  # delta is shared
        (1.83, 1.87, 'course')
        >>> outside = account([Charged(course=name, events=(once,)) for name in ("c", "")], delta=1e-5)
        >>> round(outside.epsilon, 2), outside.rule  # orders that were chosen by looking cost more
        (2.91, 'renyi-filter')

    Args:
        charges: in order; events of several tiers are reduced to the costliest of each charge, for whoever might have
            been of any tier.
        delta: at which epsilon is computed.
        adjacency: for which it is computed.
        first_order: the order fixed at the first charge (`best_order`); `None`: only the listed ones.

    """
    costly = _costly(charges)
    events = [event for charge in costly for event in charge.total]
    covered = _covered(costly) if _of_one_course(costly) else None
    return Account(
        composed=accounting.epsilon(events, delta=delta, adjacency=adjacency),
        course=math.inf
        if covered is None
        else accounting.epsilon(covered, delta=COURSE_SHARE * delta, adjacency=adjacency),
        renyi_filter=_filter(events, delta, adjacency, first_order),
    )


def fits(
    charges: Sequence[Charged],
    limit: float,
    *,
    delta: float,
    adjacency: Adjacency = "add-remove",
    first_order: int | None = None,
) -> bool:
    """Tell whether `account(...).epsilon` is at most `limit`; the rule that is faster to compute is asked first.

    Arguments as for `account`.
    """
    costly = _costly(charges)
    events = [event for charge in costly for event in charge.total]
    if _filter(events, delta, adjacency, first_order) <= limit:
        return True
    covered = _covered(costly) if _of_one_course(costly) else None
    return covered is not None and accounting.epsilon(covered, delta=COURSE_SHARE * delta, adjacency=adjacency) <= limit


def _of_one_course(charges: Sequence[Charged]) -> bool:
    """Tell whether everything was one list that nobody could choose by looking: one charge, or one declared course."""
    courses = {charge.course for charge in charges}
    return sum(charge.times for charge in charges) <= 1 or (len(courses) == 1 and "" not in courses)


def _costly(charges: Iterable[Charged]) -> list[Charged]:
    """Reduce charges to their costliest tiers, without those that cost nothing."""
    found = [replace(charge, events=costliest(charge.events)) for charge in charges]
    return [charge for charge in found if accounting.merged_charges(charge.events) != ()]


def _covered(charges: Sequence[Charged]) -> list[Event] | None:
    """Return what counts as charged of the one course of all these charges; `None` where that is no fixed list.

    That are all evaluations that the course declares, and the furthest beginning of its rounds, if some were passed
    over. Whoever was charged for more than is in it was in several cohorts, each with a beginning of its own.
    """
    events = [event for charge in charges for event in charge.total]
    furthest = max((charge.covers for charge in charges), key=_steps, default=())
    if not furthest:
        return events
    rounds = without_evaluations(events)
    aside = [event for event in furthest if event.mechanism == EVALUATION]
    beginning = without_evaluations(furthest)
    if not _within([event for event in events if event.mechanism == EVALUATION], aside):
        return None
    if beginning and not _within(rounds, beginning):
        return None
    return [*aside, *(beginning or rounds)]


def without_evaluations(events: Iterable[Event]) -> list[Event]:
    """Return the events of rounds alone."""
    return [event for event in events if event.mechanism != EVALUATION]


def _within(events: Iterable[Event], held: Iterable[Event]) -> bool:
    """Tell whether there are no more steps of any kind in `events` than in `held`."""
    most = {(noise, *kind): steps for noise, *kind, steps in accounting.merged_charges(held) or ()}
    own = {(noise, *kind): steps for noise, *kind, steps in accounting.merged_charges(events) or ()}
    return all(steps <= most.get(kind, 0) for kind, steps in own.items())


def _steps(events: Iterable[Event]) -> int:
    return sum(event.steps for event in events)


def best_order(events: Sequence[Event], *, epsilon: float, delta: float, adjacency: Adjacency = "add-remove") -> int:
    """Return the order at which a budget holds the most repetitions of `events`, fixed at the first charge.

    Examples:
        >>> best_order([Event(
        ...     mechanism="dp-sgd", unit="patient", sample_rate=0.01, noise_multiplier=1.0, steps=500, max_grad_norm=1.0
        ... )], epsilon=4, delta=1e-5)
        6

    """
    curve, orders = _curve(costliest(events), adjacency), np.asarray(composition.INTEGER_ORDERS, dtype=np.float64)
    if curve is None or not curve.any() or not math.isfinite(epsilon):
        return _LISTED_ORDERS[0]
    room = epsilon - _conversion(orders, _FIRST_ORDER_SHARE * (1 - COURSE_SHARE) * delta)
    return int(orders[int(np.argmax(np.where(room > 0, room, 0) / np.maximum(curve, 1e-300)))])


def costliest(events: Iterable[Event]) -> tuple[Event, ...]:
    """Return what a charge costs at most, whichever consent tier a unit is of; the result names no tier.

    Events of different tiers in one charge are alternatives. Where one of them samples at least as often, as long and
    with as little noise as all others, it stands for them; otherwise they are all kept, which charges too much. Between
    charges tiers are no alternatives: somebody may have been of one and then of another.

    Examples:
        >>> event = Event(
        ...     mechanism="dp-sgd", unit="patient", sample_rate=0.01, noise_multiplier=1.0, steps=500, max_grad_norm=1.0
        ... )
        >>> tiers = [replace(event, tier="strict"), replace(event, tier="open", sample_rate=0.02)]
        >>> [event.sample_rate for event in costliest(tiers)]
        [0.02]

    """
    everybody: list[Event] = []
    tiers: list[Event] = []
    for event in events:
        (tiers if event.tier else everybody).append(event)
    worst = next((event for event in tiers if all(_dominates(event, other) for other in tiers)), None)
    names = {event.tier for event in tiers}
    if worst is not None and len(names) == len(tiers):  # several events of one tier compose
        tiers = [worst]
    return (*everybody, *(replace(event, tier="") for event in tiers))


def _dominates(event: Event, other: Event) -> bool:
    return (
        (event.noise, event.mechanism) == (other.noise, other.mechanism)
        and event.sample_rate >= other.sample_rate
        and event.noise_multiplier <= other.noise_multiplier
        and event.steps >= other.steps
    )


def _filter(events: Sequence[Event], delta: float, adjacency: Adjacency, first_order: int | None) -> float:
    curve = _curve(events, adjacency)
    if curve is None:
        return math.inf
    return _filter_of(curve, delta, first_order) if curve.any() else 0.0


def _filter_of(curve: NDArray[np.float64], delta: float, first_order: int | None) -> float:
    share = (1 - COURSE_SHARE) * delta
    candidates = [(order, share * (1 - _FIRST_ORDER_SHARE) / len(_LISTED_ORDERS)) for order in _LISTED_ORDERS]
    if first_order is not None:
        candidates.append((first_order, share * _FIRST_ORDER_SHARE))
    places = {order: place for place, order in enumerate(composition.INTEGER_ORDERS)}
    return float(
        min(
            max(0.0, curve[places[order]] + float(_conversion(np.array([float(order)]), part)[0]))
            for order, part in candidates
        )
    )


def _conversion(orders: NDArray[np.float64], delta: float) -> NDArray[np.float64]:
    """Epsilon minus the Rényi divergence at each order (Canonne, Kamath, Steinke 2020, proposition 12)."""
    values: NDArray[np.float64] = np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return values


def _curve(events: Iterable[Event], adjacency: Adjacency) -> NDArray[np.float64] | None:
    """Sum the Rényi divergences at the integer orders; `None` where something has no privacy."""
    charges = accounting.merged_charges(events)
    return None if charges is None else composition.summed_curve(charges, adjacency)


def federation_epsilon(
    per_site: Mapping[str, Sequence[Charged]],
    *,
    delta: float,
    overlap: int = 1,
    adjacency: Adjacency = "add-remove",
) -> float:
    """Epsilon of a patient who may be known at up to `overlap` sites, by the rules of `account`.

    While all sites are in one declared course, what a patient pays at several of them is still one fixed list (PLD).
    Otherwise the `overlap` largest Rényi divergences are summed at each order of the fixed list, which bounds every
    choice of sites. Distributed noise is counted once (`composition.overlapping_curve`).

    Examples:
        >>> charges = [Charged(course="c", events=(Event(
        ...     mechanism="dp-sgd", unit="patient", sample_rate=0.01, noise_multiplier=1.0, steps=500, max_grad_norm=1.0
        ... ),))]
        >>> [round(federation_epsilon({"north": charges, "south": charges}, delta=1e-5, overlap=k), 2) for k in (1, 2)]
        [1.36, 1.87]

    Raises:
        ConfigError: `overlap` is below 1; otherwise as `accounting.epsilon`.

    """
    costly = {site: _costly(charges) for site, charges in per_site.items()}
    events = {site: [event for charge in charges for event in charge.total] for site, charges in costly.items()}
    courses = {charge.course for charges in costly.values() for charge in charges}
    together = math.inf
    if len(courses) <= 1 and "" not in courses:
        covered = {site: _covered(charges) for site, charges in costly.items()}
        lists = {site: found for site, found in covered.items() if found is not None}
        if len(lists) == len(covered):
            together = accounting.federation_epsilon(lists, COURSE_SHARE * delta, overlap, adjacency=adjacency)
    charged = [accounting.merged_charges(site) for site in events.values()]
    merged = [charges for charges in charged if charges is not None]
    if len(merged) < len(charged):
        return math.inf
    every, size = [charge for charges in merged for charge in charges], min(overlap, len(merged))
    known = [composition.overlapping_curve(charges, size, every, adjacency) for charges in merged]
    if not known or not any(curve.any() for curve in known):
        return 0.0
    summed = np.sort(np.stack(known), axis=0)[-size:].sum(axis=0)
    return min(together, _filter_of(summed, delta, None))
