"""The record of what was spent: durable, append-only, hash-chained, reserved before anything private is computed.

    ledger = Ledger(path)
    budget = Budget(epsilon=2.0, delta=1e-5)
    reservation = ledger.reserve("ward-7", course.events(3), course=course, run_id="r1", round=3, budget=budget)
    ...  # train
    ledger.commit(reservation)
    ledger.account("ward-7", delta=1e-5).epsilon

* **A reservation counts in full, for ever**, committed or not: whatever dies afterwards, the total can only
  be too high.
* **The budget is checked inside the transaction** that appends the reservation (`BEGIN IMMEDIATE`): two
  processes cannot both spend the last of it. The check is a valid filter for orders that are chosen by looking at
  releases (`filters`).
* **When `reserve` returns, the reservation is on the disk** (write-ahead log, `synchronous=FULL`).
* **Events are stored, never epsilons**; epsilon is computed from them (`accounting`).
* **Every entry holds the hash of the one before it.** A changed, deleted or reordered row is a
  `LedgerError` at every use. A ledger cut short, deleted, or rewritten from some row on is told by the witness that
  remembers its head (`chain`), and by `verify(expected_head=...)`.
* **Patients keep their own account** (`membership`), whatever the cohort is called and whoever else is in it.

One file holds several cohorts; at the server each site is a cohort. A `Ledger` keeps no connection and no
cache: it may be used from threads, and forked.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wardpose.shared.errors import BudgetExceeded, ConfigError, LedgerError
from wardpose.shared.privacy import accounting, filters, membership
from wardpose.shared.privacy.accounting import UNITS, Accountant, Adjacency, Event, UnitKind
from wardpose.shared.privacy.chain import COHORT, COMMIT, RESERVE, Chain, Entry, Witness, head_of
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.filters import Account, Charged


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
        """Epsilon that units of `tier` may spend."""
        return self.by_tier.get(tier, self.epsilon)


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """Events that are charged, whatever happens next.

    Attributes:
        sequence: of its entry.
        hash: of its entry.
        cohort: that is charged.
        run_id: for which run.
        round: for which round.
        events: what was charged.

    """

    sequence: int
    hash: str
    cohort: str
    run_id: str
    round: int
    events: tuple[Event, ...]


class Ledger:
    """One ledger file; made, with its folder, on the first write.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> ledger = Ledger(Path(folder.name) / "ledger.sqlite")
        >>> event = Event(
        ...     mechanism="dp-sgd", unit="patient", sample_rate=0.1, noise_multiplier=1.0, steps=10, max_grad_norm=1.0
        ... )
        >>> budget = Budget(epsilon=4.0, delta=1e-5, unit="patient")
        >>> reservation = ledger.reserve("ward-7", [event], run_id="r1", round=1, budget=budget)
        >>> round(ledger.epsilon("ward-7", delta=1e-5), 2), ledger.is_committed(reservation)  # counts at once
        (2.93, False)
        >>> ledger.commit(reservation)
        >>> ledger.reserve("ward-7", [event], run_id="r1", round=2, budget=budget)  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
            ...
        BudgetExceeded: cohort 'ward-7': epsilon would be ...
        >>> ledger.verify(ledger.head())
        >>> folder.cleanup()

    Attributes:
        path: of the SQLite file.
        readonly: whether writing is refused.

    """

    def __init__(
        self,
        path: str | Path,
        *,
        clock: Callable[[], float] = time.time,
        readonly: bool = False,
        witness: Witness | None = None,
    ) -> None:
        """Open a ledger, and check it when it exists.

        Args:
            path: of the file.
            clock: Unix time of new entries.
            readonly: refuse to write.
            witness: remembers the head elsewhere, so that a lost or old file is told from a new one.

        Raises:
            LedgerError: the file is no ledger, is empty, is damaged, was tampered with, or is not the one that the
                witness remembers; or `readonly` and missing.

        """
        self.path = Path(path)
        self.readonly = readonly
        self._chain = Chain(self.path, clock=clock, readonly=readonly, witness=witness)
        if readonly and not self.path.is_file():
            raise LedgerError(f"{self.path}: there is no ledger")
        self.entries()

    @classmethod
    def open_readonly(cls, path: str | Path) -> "Ledger":
        """Open an existing ledger for an exporter; nothing is ever written.

        Raises:
            LedgerError: as for the class, and when there is no file.

        """
        return cls(path, readonly=True)

    def declare(
        self,
        cohort: str,
        *,
        identity: str,
        units: int | None = None,
        reservation: Reservation | None = None,
        patients: Mapping[str, str] | None = None,
        budget: Budget | None = None,
    ) -> frozenset[str]:
        """Record what a cohort is and whom a reservation touches, before a frame is read.

        Args:
            cohort: its name.
            identity: hash of its data set. A cohort may get a new identity when patients join it; what was
                spent stays.
            units: its declared number of units.
            reservation: of the round that is about to read it.
            patients: the patients that are named in it, with their consent tiers ("" for none); absent where records
                name none.
            budget: of each patient.

        Returns:
            Patients whose own account cannot bear the reservation, whatever cohort it was spent in: they must take no
            part. They are not charged. Who they are is private.

        Raises:
            LedgerError: no patients are named and the same data set is known under another name: a new name is not a
                new budget.

        """
        body: dict[str, object] = {"cohort": _name(cohort), "identity": identity, "units": units}
        with self._chain.transaction() as append:
            known = [entry.body for entry in append.entries if entry.kind == COHORT]
            if patients is None or reservation is None or budget is None:
                for other in known:
                    if other["identity"] == identity and other["cohort"] != cohort:
                        raise LedgerError(
                            f"{self.path}: cohort {cohort!r} is the data set of cohort {other['cohort']!r}; "
                            "a new name is not a new budget"
                        )
                mine = [other for other in known if other["cohort"] == cohort]
                if reservation is not None or not mine or any(mine[-1].get(key) != body[key] for key in body):
                    append(COHORT, body)
                return frozenset()
            self._find(append.entries, reservation)
            keys = membership.keys(append.entries, patients)
            earlier = [entry for entry in append.entries if entry.sequence != reservation.sequence]
            histories = membership.histories(earlier, {keys[name]: tier for name, tier in patients.items()})
            order = _first_order(append.entries)
            spent: dict[membership.History, bool] = {}
            for history in histories.values():
                if history not in spent:
                    charged = membership.charged(append.entries, (*history, (reservation.sequence, history.tier)))
                    spent[history] = _total(charged, budget, order) > budget.limit(history.tier)
            out = frozenset(name for name in patients if spent[histories[keys[name]]])
            members = {keys[name]: tier for name, tier in patients.items() if name not in out}
            append(COHORT, body | membership.body(append.entries, cohort, reservation.sequence, members))
        return out

    def check(self, cohort: str, events: Sequence[Event], *, budget: Budget, course: Course | None = None) -> None:
        """Ask whether `reserve` would succeed now; charges nothing and promises nothing.

        Raises:
            BudgetExceeded: it would not.
            LedgerError: the ledger cannot be read.

        """
        self._check(self.entries(), cohort, events, budget, course)

    def reserve(
        self,
        cohort: str,
        events: Sequence[Event],
        *,
        run_id: str,
        round: int,  # noqa: A002 - the project's word
        budget: Budget,
        course: Course | None = None,
    ) -> Reservation:
        """Charge a cohort, before any of its frames is read. Durable when it returns; it can never be undone.

        A round that is tried again is charged again: its noise is drawn anew, so both tries count.

        Args:
            cohort: who is charged.
            events: what for.
            run_id: for which run.
            round: for which round.
            budget: what may be spent in all.
            course: the declared course that the events are part of; without one a charge stands alone, and from the
                second on only the Rényi filter holds.

        Raises:
            BudgetExceeded: the cohort, or a consent tier of it, would be over its limit; nothing is charged.
            LedgerError: the ledger cannot be read or written; nothing is charged.

        """
        self.check(cohort, events, budget=budget, course=course)  # the slow arithmetic, remembered, outside the lock
        body = {
            "cohort": _name(cohort),
            "run": run_id,
            "round": round,
            "events": [event.to_json() for event in events],
            "budget": {
                "epsilon": budget.epsilon if budget.epsilon < float("inf") else None,
                "delta": budget.delta,
                "adjacency": budget.adjacency,
                "by_tier": dict(budget.by_tier),
            },
        }
        with self._chain.transaction() as append:
            within = self._check(append.entries, cohort, events, budget, course)
            if within and course is not None and not _knows_course(append.entries, cohort, course):
                body["declared"] = course.model_dump_json()  # with the first charge: what the rest must be a part of
            if _first_order(append.entries) is None:
                limit = min([budget.epsilon, *budget.by_tier.values()])
                body["order"] = filters.best_order(
                    events, epsilon=limit, delta=budget.delta, adjacency=budget.adjacency
                )
            body["course"] = course.identity if within and course is not None else ""
            entry = append(RESERVE, body)
        return Reservation(
            sequence=entry.sequence, hash=entry.hash, cohort=cohort, run_id=run_id, round=round, events=tuple(events)
        )

    def commit(self, reservation: Reservation) -> None:
        """Record that the reserved work was done. It changes no total.

        Raises:
            LedgerError: the reservation is not of this ledger, or was committed before.

        """
        with self._chain.transaction() as append:
            self._find(append.entries, reservation)
            if _committed(append.entries, reservation):
                raise LedgerError(f"{self.path}: reservation {reservation.sequence} was committed before")
            append(COMMIT, {"cohort": reservation.cohort, "reservation": reservation.sequence})

    def is_committed(self, reservation: Reservation) -> bool:
        """Tell whether the reservation is of this ledger and was committed."""
        entries = self.entries()
        self._find(entries, reservation)
        return _committed(entries, reservation)

    def first_order(self) -> int | None:
        """Return the order of the Rényi filter that was fixed with the first charge; `None` before it."""
        return _first_order(self.entries())

    def charges(self, cohort: str) -> list[Charged]:
        """Return what each reservation of a cohort charged, in order."""
        return _charged(self.entries(), cohort)

    def events(self, cohort: str) -> tuple[Event, ...]:
        """Everything that was ever reserved for a cohort, in order; empty for one that is not known."""
        return _events(self.entries(), cohort)

    def events_by_cohort(self) -> dict[str, tuple[Event, ...]]:
        """Return the events of every cohort, by one reading of the file."""
        entries = self.entries()
        return {name: _events(entries, name) for name in _cohorts(entries)}

    def account(
        self,
        cohort: str,
        delta: float,
        *,
        adjacency: Adjacency = "add-remove",
        tier: str | None = None,
        whole_ledger: bool = False,
    ) -> Account:
        """Return what was spent by whoever was in the cohort at every charge, by each rule (`filters.account`).

        Args:
            cohort: whose charges.
            delta: at which epsilon is computed.
            adjacency: for which it is computed.
            tier: units of this consent tier ("" for none); whoever paid most, also by changing tiers, when absent.
            whole_ledger: the charges of all cohorts of the file.

        """
        entries = self.entries()
        charged = _charged(entries, None if whole_ledger else cohort)
        if tier is not None:
            charged = [_of_tier(charge, tier) for charge in charged]
        return filters.account(charged, delta=delta, adjacency=adjacency, first_order=_first_order(entries))

    def patients(self, *, delta: float, adjacency: Adjacency = "add-remove") -> list[tuple[int, float]]:
        """Return how many patients have spent how much, most first. Private: it must not leave the site."""
        entries = self.entries()
        order = _first_order(entries)
        counts: dict[membership.History, int] = {}
        for history in membership.histories(entries, membership.everybody(entries)).values():
            counts[history] = counts.get(history, 0) + 1
        spent = [
            (count, filters.account(charged, delta=delta, adjacency=adjacency, first_order=order).epsilon)
            for history, count in counts.items()
            for charged in [membership.charged(entries, history)]
        ]
        return sorted(spent, key=lambda row: -row[1])

    def epsilon(
        self, cohort: str, delta: float, *, adjacency: Adjacency = "add-remove", accountant: Accountant | None = None
    ) -> float:
        """Epsilon spent by the cohort's most charged units.

        By default the figure that is enforced (`account`). With an accountant, that of the bare list of events, which
        is right if nobody chose a later charge by looking at earlier releases.
        """
        if accountant is None:
            return self.account(cohort, delta, adjacency=adjacency).epsilon
        return accounting.epsilon(self.events(cohort), delta=delta, adjacency=adjacency, accountant=accountant)

    def epsilon_by_tier(self, cohort: str, delta: float, *, adjacency: Adjacency = "add-remove") -> dict[str, float]:
        """Epsilon spent by each consent tier's units, as enforced; the key "" stands for units of no tier."""
        tiers = dict.fromkeys(["", *(event.tier for event in self.events(cohort))])
        return {tier: self.account(cohort, delta, adjacency=adjacency, tier=tier).epsilon for tier in tiers}

    def seeded(self, cohort: str) -> bool:
        """Tell whether a charge of the cohort was made with noise from a seed: not private, whatever epsilon says."""
        return any(event.seeded for event in self.events(cohort))

    def cohorts(self) -> tuple[str, ...]:
        """Names of all cohorts that were declared or charged, in order of first appearance."""
        return _cohorts(self.entries())

    def head(self) -> tuple[int, str]:
        """Sequence number and hash of the last entry, (0, 64 zeros) for a ledger that was never written.

        Remember it elsewhere: it pins everything before it.
        """
        return head_of(self.entries())

    def entries(self) -> tuple[Entry, ...]:
        """Every entry, in order, after checking the whole chain.

        Raises:
            LedgerError: the file is no ledger, is damaged, or was tampered with.

        """
        return self._chain.entries()

    def verify(self, expected_head: tuple[int, str] | None = None) -> None:
        """Check the file's pages, the chain, and that the chain still contains a head that was seen before.

        Raises:
            LedgerError: says what is wrong.

        """
        self._chain.verify(expected_head)

    def _check(
        self,
        entries: Sequence[Entry],
        cohort: str,
        events: Sequence[Event],
        budget: Budget,
        course: Course | None,
    ) -> bool:
        """Refuse what a budget cannot bear; return whether the events are within their declared course."""
        before = _charged(entries, None if budget.whole_ledger else cohort)
        within = course is not None and _within(before, events, course)
        new = Charged(course=course.identity if within and course is not None else "", events=tuple(events))
        tiers = [event.tier for charge in (*before, new) for event in charge.events]
        for tier in dict.fromkeys(["", *tiers, *budget.by_tier]):
            charges = [_of_tier(charge, tier) for charge in (*before, new)]
            total = _total(charges, budget, _first_order(entries))
            if total > budget.limit(tier):
                spent = _total(charges[:-1], budget, _first_order(entries))
                who = f"cohort {cohort!r}" + (f", tier {tier!r}" if tier else "")
                raise BudgetExceeded(
                    f"{who}: epsilon would be {total:.4g} of {budget.limit(tier):.4g} at delta {budget.delta:g} "
                    f"({spent:.4g} is spent)"
                )
        return within

    def _find(self, entries: Sequence[Entry], reservation: Reservation) -> None:
        index = reservation.sequence - 1
        if not 0 <= index < len(entries) or entries[index].hash != reservation.hash:
            raise LedgerError(f"{self.path}: it has no reservation {reservation.sequence} of {reservation.cohort!r}")


def _cohorts(entries: Sequence[Entry]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(entry.body["cohort"]) for entry in entries if "cohort" in entry.body))


def _events(entries: Sequence[Entry], cohort: str) -> tuple[Event, ...]:
    return tuple(event for charge in _charged(entries, cohort) for event in charge.events)


def _charged(entries: Sequence[Entry], cohort: str | None) -> list[Charged]:
    """Return what each reservation charged; of all cohorts where `cohort` is `None`."""
    return [
        membership.charge_of(entry)
        for entry in entries
        if entry.kind == RESERVE and cohort in (None, entry.body["cohort"])
    ]


def _of_tier(charge: Charged, tier: str) -> Charged:
    return Charged(course=charge.course, events=tuple(event for event in charge.events if event.tier in ("", tier)))


def _first_order(entries: Sequence[Entry]) -> int | None:
    return next((int(entry.body["order"]) for entry in entries if "order" in entry.body), None)


def _knows_course(entries: Sequence[Entry], cohort: str, course: Course) -> bool:
    return any(
        entry.body["cohort"] == cohort and entry.body["course"] == course.identity
        for entry in entries
        if entry.kind == RESERVE and "declared" in entry.body
    )


def _within(before: Sequence[Charged], events: Sequence[Event], course: Course) -> bool:
    """Tell whether the events, with what the course was charged before, are a part of what it declared."""
    declared, wanted = _steps(course.whole()), _steps(events)
    for charge in before:
        if charge.course == course.identity:
            for kind, steps in _steps(charge.events).items():
                wanted[kind] = wanted.get(kind, 0) + steps
    return all(steps <= declared.get(kind, 0) for kind, steps in wanted.items())


def _steps(events: Sequence[Event]) -> dict[tuple[object, ...], int]:
    found: dict[tuple[object, ...], int] = {}
    for event in events:
        kind = (event.mechanism, event.noise, event.sample_rate, event.noise_multiplier, event.tier)
        found[kind] = found.get(kind, 0) + event.steps
    return found


def _total(charges: Sequence[Charged], budget: Budget, first_order: int | None) -> float:
    """Epsilon of charges for the budget's unit and adjacency, as enforced."""
    weaker = UNITS[UNITS.index(budget.unit) + 1 :]
    events = [event for charge in charges for event in charge.events]
    if any(event.unit in weaker and accounting.merged_charges([event]) != () for event in events):
        return float("inf")
    return filters.account(charges, delta=budget.delta, adjacency=budget.adjacency, first_order=first_order).epsilon


def _committed(entries: Sequence[Entry], reservation: Reservation) -> bool:
    return any(entry.kind == COMMIT and entry.body["reservation"] == reservation.sequence for entry in entries)


def _name(cohort: str) -> str:
    if not cohort or not cohort.isprintable():
        raise ConfigError(f"cohort is {cohort!r}; it must be a printable name")
    return cohort
