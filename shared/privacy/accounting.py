"""What private training costs: events that compose, and the epsilon that they amount to.

An `Event` says what was done (Poisson rate, noise multiplier, steps); it is what ledgers store and wires
carry. An epsilon is a view of events at a delta (`composition`), held against Google's dp-accounting in tests:

* `pld` (default): the smallest of upper bounds that never fall when events are added, nearly always that by
  privacy-loss distributions, rounded up (dp-accounting's own falls below the truth at small deltas);
* `rdp`: Rényi accounting, looser, an independent cross-check.

The Gaussian central-limit approximation ("GDP") is not offered: it lies below the truth.

    >>> event = Event(
    ...     mechanism="dp-sgd", unit="patient", sample_rate=0.01, noise_multiplier=1.0, steps=500, max_grad_norm=1.0
    ... )
    >>> epsilon([event], delta=1e-5)
    1.32607235

**Adjacency and sensitivity.** `noise_multiplier` is always the standard deviation divided by C =
`max_grad_norm`, the most that *one unit* can contribute. Under `add-remove` a unit comes or goes and the
sum moves by at most C. Under `replace-one` one unit becomes another: with the same coins the sum moves by
up to 2C, from v to v' with norms at most C each, and exactly that pair, (1-q) N(0) + q N(C) against (1-q)
N(0) + q N(-C), is accounted. No caller doubles C.

**Discrete Gaussian.** Noise on an integer grid has no privacy-loss distribution in dp-accounting. Its Rényi
divergences of integer order are *equal* to the continuous ones: for an integer shift v, sum_x exp(-(k
|x-v|² - (k-1) |x|²) / 2s²) = exp(k (k-1) |v|² / 2s²) sum_x exp(-|x-kv|² / 2s²), and the last sum does not
depend on the integer vector kv. The binomial expansion of the Poisson-sampled moment (Mironov, Talwar,
Zhang 2019, eq. 6) uses integer orders only, and the other direction is bounded by it because x -> v - x
swaps the two distributions (their theorem 5). So a composition that holds a discrete event is accounted by
RDP at integer orders, whatever accountant was asked for: rigorous, at the price of RDP's slack (usually
10-20 % of epsilon).

**Distributed noise.** Under secure aggregation only the sum over sites is seen, and each site adds a share of its
noise. `noise_multiplier` is then that of the sum of the `shares` that the plan guarantees, which holds against the
server and as many colluding sites as it declares (`distributed` has the theorem); `local_events` gives what a site's
own share amounts to, against somebody who could see that site's sum alone.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import dp_accounting
import numpy as np
from scipy.optimize import brentq

from wardpose.shared.errors import BudgetExceeded, ConfigError
from wardpose.shared.privacy import composition
from wardpose.shared.privacy.composition import DISTRIBUTED, Accountant, Adjacency, Charge, Noise

__all__ = [
    "ANY_TIER",
    "UNITS",
    "UNTIERED",
    "Accountant",
    "Adjacency",
    "Event",
    "Noise",
    "UnitKind",
    "as_seeded",
    "calibrate",
    "epsilon",
    "epsilon_by_tier",
    "federation_epsilon",
    "group_epsilon",
    "local_events",
    "merged_charges",
]

MINIMUM_DELTA = 1e-12
"""Below it the convolutions' rounding (about 1e-15 of mass) would be a visible part of delta."""

UNTIERED = "untiered"
"""Tier of the units without a consent tier, in events of a mechanism that samples tiers at rates of their own."""

ANY_TIER = "*"
"""Stands for whichever consent tier costs most, where it is not known of which one somebody was."""

UnitKind = Literal["patient", "frame", "record"]
"""What may be protected, the strongest first: a patient's frames, a picture, one annotated person of a picture."""

UNITS: tuple[UnitKind, ...] = get_args(UnitKind)

_OPTIONAL = {"noise", "tier", "adjacency", "seeded", "shares"}  # keys that entries of earlier versions do not have
_FREE = "public-only"
_MOST_SHARES = 10_000
_NOT_PRIVATE = "none"
_Tiers = tuple[tuple[Charge, ...], ...]  # what each tier's units were charged
_NOISE_EXPONENTS = (-14, 40)  # powers of two between which a noise multiplier is sought
_COARSE = 4  # how often the accountant's grid is halved while it is sought
_MOST_CHOICES = 200  # of sites that a patient may be at, before a bound replaces the enumeration


@dataclass(frozen=True, kw_only=True)
class Event:
    """Steps of one Poisson-sampled Gaussian query, or one released statistic: what a ledger charges.

    Examples:
        >>> round_one = Event(
        ...     mechanism="dp-sgd", unit="patient", sample_rate=0.01, noise_multiplier=1.0, steps=500, max_grad_norm=1.0
        ... )
        >>> Event.from_json(round_one.to_json()) == round_one
        True

    Attributes:
        mechanism: name of the mechanism or of the released statistic; `none` has no privacy (infinite
            epsilon) and `public-only` touches nothing private (costs nothing).
        unit: whose presence is protected: `patient`, `frame` (a picture and all it shows) or `record` (one annotated
            person of a picture).
        sample_rate: probability, in [0, 1], with which each unit takes part in a step; 1 for a statistic
                over all units.
        noise_multiplier: noise's standard deviation divided by `max_grad_norm`, at least 0 (0: no privacy).
        steps: how often, at least 0.
        max_grad_norm: the most that one unit contributes to the released sum (L2), greater than 0.
        noise: `gaussian`, `discrete-gaussian` or, of a sum over sites, `distributed-discrete-gaussian`.
        tier: consent tier whose units are charged; empty charges *every* unit, `UNTIERED` those of no tier.
        adjacency: neighbouring relation that the charge was made for.
        seeded: the coins and noise came from a seed, so whoever knows it can subtract the noise: not private, whatever
            the epsilon says. Everything that shows it says so.
        shares: of distributed noise: most independent shares that `noise_multiplier` is the sum of; otherwise 1.

    Raises:
        ConfigError: a value is outside its range.

    """

    mechanism: str
    unit: UnitKind
    sample_rate: float
    noise_multiplier: float
    steps: int
    max_grad_norm: float
    noise: Noise = "gaussian"
    tier: str = ""
    adjacency: Adjacency = "add-remove"
    seeded: bool = False
    shares: int = 1

    def __post_init__(self) -> None:
        """Refuse values that have no meaning; numbers are normalised to float and int."""
        for name in ("sample_rate", "noise_multiplier", "max_grad_norm"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ConfigError(f"event: {name} is {value!r}; it must be a finite number")
            object.__setattr__(self, name, float(value))
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise ConfigError(f"event: steps is {self.steps!r}; it must be a whole number, at least 0")
        if not 0 <= self.sample_rate <= 1:
            raise ConfigError(f"event: sample_rate is {self.sample_rate}; it must be between 0 and 1")
        if self.noise_multiplier < 0:
            raise ConfigError(f"event: noise_multiplier is {self.noise_multiplier}; it must be at least 0")
        if self.max_grad_norm <= 0:
            raise ConfigError(f"event: max_grad_norm is {self.max_grad_norm}; it must be greater than 0")
        if not isinstance(self.mechanism, str) or not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", self.mechanism):
            raise ConfigError(
                f"event: mechanism is {self.mechanism!r}; it must be lower-case letters, digits and hyphens"
            )
        if self.unit not in UNITS:
            raise ConfigError(f"event: unit is {self.unit!r}; it must be one of {', '.join(UNITS)}")
        if self.noise not in get_args(Noise):
            raise ConfigError(f"event: noise is {self.noise!r}; it must be one of {', '.join(get_args(Noise))}")
        most = _MOST_SHARES if self.noise == DISTRIBUTED else 1
        if isinstance(self.shares, bool) or not isinstance(self.shares, int) or not 1 <= self.shares <= most:
            raise ConfigError(f"event: shares is {self.shares!r}; with {self.noise} noise it must be 1 to {most}")
        if not isinstance(self.tier, str):
            raise ConfigError(f"event: tier is {self.tier!r}; it must be a name")
        if self.adjacency not in ("add-remove", "replace-one"):
            raise ConfigError(f"event: adjacency is {self.adjacency!r}; it must be add-remove or replace-one")
        if not isinstance(self.seeded, bool):
            raise ConfigError(f"event: seeded is {self.seeded!r}; it must be true or false")

    @property
    def is_unprotected(self) -> bool:
        """Whether it released something as it is: mechanism `none`, or no noise."""
        released = self.mechanism == _NOT_PRIVATE or (self.noise_multiplier == 0 and self.sample_rate > 0)
        return released and self.mechanism != _FREE and self.steps > 0

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for `json.dumps`; `from_json` gives the equal event back."""
        values = asdict(self)
        if self.noise != DISTRIBUTED:
            del values["shares"]  # as entries of earlier versions: equal charges are counted as equal
        return values

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Event":
        """Inverse of `to_json`.

        Raises:
            ConfigError: a key is unknown or missing, or a value is out of range.

        """
        known = {field.name for field in fields(cls)}
        unknown = set(value) - known
        missing = known - _OPTIONAL - set(value)
        if unknown or missing:
            raise ConfigError(f"event: unknown keys {sorted(unknown)}, missing keys {sorted(missing)}")
        return cls(**value)

    def dp_event(self) -> dp_accounting.DpEvent:
        """Write it in dp-accounting's algebra, a discrete Gaussian as the Gaussian of equal multiplier."""
        if self.is_unprotected:
            return dp_accounting.NonPrivateDpEvent()
        if self.mechanism == _FREE or self.steps == 0 or self.sample_rate == 0:
            return dp_accounting.NoOpDpEvent()
        step: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if self.sample_rate < 1:
            step = dp_accounting.PoissonSampledDpEvent(self.sample_rate, step)
        return dp_accounting.SelfComposedDpEvent(step, self.steps)


def as_seeded(events: Iterable[Event]) -> tuple[Event, ...]:
    """Return the events as a site with repeatable noise charges them: nobody must take their epsilon for privacy.

    Examples:
        >>> as_seeded([Event(
        ...     mechanism="dp-sgd", unit="patient", sample_rate=0.01, noise_multiplier=1.0, steps=500, max_grad_norm=1.0
        ... )])[0].seeded
        True

    """
    return tuple(replace(event, seeded=True) for event in events)


def local_events(events: Iterable[Event]) -> tuple[Event, ...]:
    """Return what the events cost against somebody who could see each site's own sum: its smallest share of the noise.

    Examples:
        >>> [event.noise_multiplier for event in local_events([Event(
        ...     mechanism="dp-sgd", unit="patient", sample_rate=0.01, noise_multiplier=1.0, steps=1, max_grad_norm=1.0,
        ...     noise="distributed-discrete-gaussian", shares=4,
        ... )])]
        [0.5]

    """
    return tuple(
        replace(
            event,
            noise="discrete-gaussian",
            noise_multiplier=event.noise_multiplier / math.sqrt(event.shares),
            shares=1,
        )
        if event.noise == DISTRIBUTED
        else event
        for event in events
    )


def epsilon(
    events: Sequence[Event],
    *,
    delta: float,
    accountant: Accountant = "pld",
    adjacency: Adjacency = "add-remove",
) -> float:
    """Epsilon at `delta` of everything in `events`, for the unit that was charged most.

    Events of a tier charge that tier's units only; the result is the maximum over the tiers. Computed once per distinct
    composition: equal (rate, multiplier) pairs are merged and results are remembered.

    Examples:
        >>> steps = Event(
        ...     mechanism="dp-sgd", unit="patient", sample_rate=0.01, noise_multiplier=1.0, steps=500, max_grad_norm=1.0
        ... )
        >>> epsilon([steps], delta=1e-5)
        1.32607235
        >>> round(epsilon([steps, steps], delta=1e-5), 3) < 2 * 1.326  # composing is cheaper than adding up
        True
        >>> epsilon([replace(steps, noise_multiplier=0.0)], delta=1e-5)  # without noise there is no bound
        inf

    Returns:
        Epsilon, at least 0; infinity where something was released without noise.

    Raises:
        ConfigError: delta is outside [1e-12, 1), or the accountant or adjacency is unknown.

    """
    return max(epsilon_by_tier(events, delta=delta, accountant=accountant, adjacency=adjacency).values())


def group_epsilon(events: Sequence[Event], size: int, *, delta: float) -> float:
    """Epsilon of a group of `size` units under add-remove: of a patient with so many frames in frame-level events, say.

    With probability Bin(size, q)(j) j of the group take part in a step, and then the sum moves by at most j C. The
    mixture of Gaussians at 0, C .. size C against the one at 0 dominates (arXiv 2401.10294); it is composed by PLD.
    Events that were noised on a grid are taken as continuous ones here, as the mixture has no other event.

    Examples:
        >>> steps = replace(Event(
        ...     mechanism="dp-sgd", unit="patient", sample_rate=0.01, noise_multiplier=1.0, steps=500, max_grad_norm=1.0
        ... ), unit="frame")
        >>> [round(group_epsilon([steps], frames, delta=1e-5), 1) for frames in (1, 4)]
        [1.3, 6.3]

    Raises:
        ConfigError: `size` is below 1; otherwise as `epsilon`.

    """
    _check(delta, "pld", "add-remove")
    if size < 1:
        raise ConfigError(f"a group has {size} units; it must have 1 at least")
    charges = merged_charges(events)
    if charges is None:
        return math.inf
    return composition.group_epsilon(charges, size, float(delta)) if charges else 0.0


def epsilon_by_tier(
    events: Sequence[Event],
    *,
    delta: float,
    accountant: Accountant = "pld",
    adjacency: Adjacency = "add-remove",
) -> dict[str, float]:
    """Epsilon of each tier's units: the tier's own events composed with those that charge everybody.

    The key "" stands for a unit that none of the tiers' events charged. Arguments and errors as for `epsilon`.

    Examples:
        >>> steps = Event(
        ...     mechanism="dp-sgd", unit="patient", sample_rate=0.01, noise_multiplier=1.0, steps=500, max_grad_norm=1.0
        ... )
        >>> tiers = [replace(steps, tier="strict", sample_rate=0.005), replace(steps, tier="open", sample_rate=0.02)]
        >>> epsilon_by_tier(tiers, delta=1e-5)
        {'': 0.0, 'strict': 0.632985608, 'open': 2.77346295}

    """
    _check(delta, accountant, adjacency)
    tiers = dict.fromkeys(["", *(event.tier for event in events)])
    own = {tier: merged_charges(event for event in events if event.tier in ("", tier)) for tier in tiers}
    return {tier: _epsilon(found, delta, accountant, adjacency) for tier, found in own.items()}


def calibrate(
    *,
    epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    spent: Sequence[Event] = (),
    accountant: Accountant = "pld",
    adjacency: Adjacency = "add-remove",
    noise: Noise = "gaussian",
    digits: int = 4,
) -> float:
    """Smallest noise multiplier with which `steps` more steps stay within (epsilon, delta) on top of `spent`.

    Examples:
        >>> calibrate(epsilon=4, delta=1e-5, sample_rate=0.1, steps=200)
        1.762

    Returns:
        The multiplier rounded up to so many significant `digits`: its epsilon is within the budget, and that of the
        next smaller one is not (unless it is below 2^-14, the least that is tried).

    Raises:
        BudgetExceeded: what was spent leaves nothing.
        ConfigError: a value is out of range, or no multiplier up to 2^40 is enough.

    """
    _check(delta, accountant, adjacency)
    if not 0 < epsilon < math.inf:
        raise ConfigError(f"calibrate: epsilon is {epsilon}; it must be finite and greater than 0")
    if steps == 0 or sample_rate == 0:
        return 0.0
    tiers = _charges_by_tier(spent)
    already = math.inf if tiers is None else max(_epsilon(tier, delta, accountant, adjacency) for tier in tiers)
    if tiers is None or already >= epsilon:
        raise BudgetExceeded(f"epsilon {already:.4g} is spent already, of {epsilon:.4g} at delta {delta:g}")
    Event(
        mechanism="plan",
        unit="patient",
        sample_rate=sample_rate,
        noise_multiplier=1,
        steps=steps,
        max_grad_norm=1,
    )

    def cost(noise_multiplier: float, coarser: int = 0) -> float:
        new = [(noise, float(sample_rate), noise_multiplier, steps)]
        totals = [composition.merge(tier, new) for tier in tiers]
        return max(
            composition.composed_epsilon(total, float(delta), accountant, adjacency, coarser) for total in totals
        )

    def excess(logarithm: float, coarser: int) -> float:
        total = cost(math.exp(logarithm), coarser=coarser)
        return math.log(min(max(total, 1e-9 * epsilon), 1e9 * epsilon) / epsilon)

    # A power of two that is enough, half of which is not; coarsely, which is fast and errs towards more noise.
    low, high = _NOISE_EXPONENTS
    if cost(2.0**high) > epsilon:
        raise ConfigError(
            f"no noise multiplier up to 2^{high} keeps {steps} steps at rate {sample_rate} within epsilon "
            f"{epsilon:g} at delta {delta:g}" + (", what is spent included" if spent else "")
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(2.0**middle, _COARSE) <= epsilon else (middle, high)
    found = 2.0**high
    for coarser in (_COARSE, 0):
        below = 0.97 * found if coarser == 0 else found / 2
        while below > 2.0 ** _NOISE_EXPONENTS[0] and cost(below, coarser) <= epsilon:
            below, found = below * below / found, below
        if cost(below, coarser) > epsilon >= cost(found, coarser):
            found = math.exp(brentq(excess, math.log(below), math.log(found), (coarser,), xtol=0.1 * 10.0**-digits))
    digit = 10.0 ** (math.floor(math.log10(found)) - digits + 1)
    units = math.ceil(found / digit)

    def rounded(count: int) -> float:
        return float(f"{count * digit:.{digits}g}")

    while cost(rounded(units)) > epsilon:
        units += 1
    while units > 1 and cost(rounded(units - 1)) <= epsilon and rounded(units - 1) >= 2.0 ** _NOISE_EXPONENTS[0]:
        units -= 1
    return rounded(units)


def federation_epsilon(
    per_site_events: Mapping[str, Sequence[Event]],
    delta: float,
    overlap: int = 1,
    *,
    accountant: Accountant = "pld",
    adjacency: Adjacency = "add-remove",
) -> float:
    """Epsilon of a patient of the federation who may be known at up to `overlap` sites.

    With disjoint patients (`overlap` 1) sites compose in parallel: the maximum over them. Otherwise the
    patient's sites compose, and which `overlap` of them is not known: the maximum over all choices, and over the
    consent tiers that the patient may be of at each. Sites that did the same are counted as one kind; should more
    than 200 different choices remain, or sites have their noise in common (`composition.overlapping_curve`), the sum of
    the `overlap` largest Rényi divergences of every order is taken instead, which bounds every choice.

    Examples:
        >>> north = Event(
        ...     mechanism="dp-sgd", unit="patient", sample_rate=0.01, noise_multiplier=1.0, steps=500, max_grad_norm=1.0
        ... )
        >>> sites = {"north": [north], "south": [replace(north, sample_rate=0.005)]}
        >>> [federation_epsilon(sites, 1e-5, overlap) for overlap in (1, 2)]
        [1.32607235, 1.44625536]

    Raises:
        ConfigError: `overlap` is below 1; otherwise as `epsilon`.

    """
    _check(delta, accountant, adjacency)
    if overlap < 1:
        raise ConfigError(f"overlap is {overlap}; a patient is at 1 site at least")
    sites = [_charges_by_tier(events) for events in per_site_events.values()]
    if any(tiers is None for tiers in sites):
        return math.inf
    kinds = Counter(tiers for tiers in sites if tiers is not None)
    size = min(overlap, len(sites))
    every = [charge for tiers in kinds for charges in tiers for charge in charges]
    independent = size <= 1 or all(charge[0] != DISTRIBUTED for charge in every)
    choices = list(itertools.islice(_choices(sorted(kinds.items()), size), _MOST_CHOICES + 1)) if independent else []
    if independent and len(choices) <= _MOST_CHOICES:
        return max(
            (_epsilon(composition.merge(*choice), delta, accountant, adjacency) for choice in choices),
            default=0.0,
        )
    curves = np.stack(
        [
            np.max([composition.overlapping_curve(charges, size, every, adjacency) for charges in tiers], axis=0)
            for tiers in kinds.elements()
        ]
    )
    return composition.curve_epsilon(np.sort(curves, axis=0)[-size:].sum(axis=0), delta)


def _choices(kinds: Sequence[tuple[_Tiers, int]], size: int) -> Iterator[tuple[tuple[Charge, ...], ...]]:
    """Every multiset of `size` sites, of kinds (charges of each tier, how many sites are of this kind)."""
    if size == 0:
        yield ()
    elif kinds:
        (tiers, available), others = kinds[0], kinds[1:]
        for taken in range(min(available, size), -1, -1):
            for own in itertools.combinations_with_replacement(tiers, taken):
                for rest in _choices(others, size - taken):
                    yield (*own, *rest)


def merged_charges(events: Iterable[Event]) -> tuple[Charge, ...] | None:
    """Merge what the events cost; `None` where one of them has no privacy.

    Examples:
        >>> steps = Event(
        ...     mechanism="dp-sgd", unit="patient", sample_rate=0.01, noise_multiplier=1.0, steps=500, max_grad_norm=1.0
        ... )
        >>> merged_charges([steps, replace(steps, steps=3)])
        (('gaussian', 0.01, 1.0, 503),)

    """
    found: list[Charge] = []
    for event in events:
        if event.steps == 0 or event.mechanism == _FREE:
            continue
        if event.is_unprotected:
            return None
        if event.sample_rate == 0:
            continue
        found.append((event.noise, event.sample_rate, event.noise_multiplier, event.steps))
    return composition.merge(found)


def _charges_by_tier(events: Sequence[Event]) -> _Tiers | None:
    """Charges of each tier's units, equal ones once; `None` where one of them has no privacy.

    Which tier costs most may turn when something is composed with it, so none is left out here.
    """
    tiers = dict.fromkeys(["", *(event.tier for event in events)])
    charges = [merged_charges(event for event in events if event.tier in ("", tier)) for tier in tiers]
    if any(part is None for part in charges):
        return None
    distinct = {part for part in charges if part is not None}
    return tuple(sorted(distinct - {()} or distinct))  # who was charged nothing is never the worst


def _epsilon(charges: tuple[Charge, ...] | None, delta: float, accountant: Accountant, adjacency: Adjacency) -> float:
    if charges is None:
        return math.inf
    return composition.composed_epsilon(charges, float(delta), accountant, adjacency)


def _check(delta: float, accountant: str, adjacency: str) -> None:
    if not MINIMUM_DELTA <= delta < 1:
        raise ConfigError(f"delta is {delta}; it must be at least {MINIMUM_DELTA:g} and below 1")
    if accountant not in ("pld", "rdp"):
        raise ConfigError(f"accountant is {accountant!r}; it must be pld or rdp")
    if adjacency not in ("add-remove", "replace-one"):
        raise ConfigError(f"adjacency is {adjacency!r}; it must be add-remove or replace-one")
