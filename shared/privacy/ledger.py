"""The record of what was spent: durable, append-only, hash-chained, reserved before anything private is computed.

    ledger = Ledger(path)
    reservation = ledger.reserve("ward-7", events, run_id="r1", round=3, budget=Budget(epsilon=2.0, delta=1e-5))
    ...  # train
    ledger.commit(reservation)
    ledger.epsilon("ward-7", delta=1e-5)

* **A reservation counts in full, for ever**, committed or not: whatever dies afterwards, the total can only
  be too high.
* **The budget is checked inside the transaction** that appends the reservation (`BEGIN IMMEDIATE`): two
  processes cannot both spend the last of it.
* **When `reserve` returns, the reservation is on the disk** (write-ahead log, `synchronous=FULL`).
* **Events are stored, never epsilons**; epsilon is computed from them (`accounting`).
* **Every entry holds the hash of the one before it.** A changed, deleted or reordered row is a
  `LedgerError` at every use. A ledger cut short, or rewritten from some row on, is a valid chain and can
  only be told by somebody who remembers a head: `verify(expected_head=...)`.

One file holds several cohorts; at the server each site is a cohort. A `Ledger` keeps no connection and no
cache: it may be used from threads, and forked.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wardpose.shared.errors import BudgetExceeded, ConfigError, LedgerError
from wardpose.shared.privacy import accounting
from wardpose.shared.privacy.accounting import Accountant, Adjacency, Event
from wardpose.shared.privacy.chain import COHORT, COMMIT, RESERVE, Chain, Entry, head_of


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a cohort may spend in all, over every run.

    Attributes:
        epsilon: limit of every unit whose tier has no limit of its own; infinity for none.
        delta: at which epsilon is computed.
        adjacency: for which epsilon is computed.
        by_tier: limits of consent tiers, by tier name.

    Raises:
        ConfigError: a limit is negative or not a number, or delta or adjacency is out of range.

    """

    epsilon: float
    delta: float
    adjacency: Adjacency = "add-remove"
    by_tier: Mapping[str, float] = field(default_factory=dict)

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

    Attributes:
        path: of the SQLite file.
        readonly: whether writing is refused.

    """

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.time, readonly: bool = False) -> None:
        """Open a ledger, and check it when it exists.

        Raises:
            LedgerError: the file is no ledger, is damaged, or was tampered with; or `readonly` and missing.

        """
        self.path = Path(path)
        self.readonly = readonly
        self._chain = Chain(self.path, clock=clock, readonly=readonly)
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

    def declare(self, cohort: str, *, identity: str, units: int | None = None) -> None:
        """Record what a cohort is. Repeating the same declaration adds nothing.

        Args:
            cohort: its name.
            identity: hash of its data set. A cohort may get a new identity when patients join it; what was
            spent stays.
            units: its declared number of units.

        Raises:
            LedgerError: the same data set is known under another name: a new name is not a new budget.

        """
        body = {"cohort": _name(cohort), "identity": identity, "units": units}
        with self._chain.transaction() as append:
            known = [entry.body for entry in append.entries if entry.kind == COHORT]
            for other in known:
                if other["identity"] == identity and other["cohort"] != cohort:
                    raise LedgerError(
                        f"{self.path}: cohort {cohort!r} is the data set of cohort {other['cohort']!r}; "
                        "a new name is not a new budget"
                    )
            mine = [other for other in known if other["cohort"] == cohort]
            if not mine or any(mine[-1][key] != body[key] for key in body):
                append(COHORT, body)

    def check(self, cohort: str, events: Sequence[Event], *, budget: Budget) -> None:
        """Ask whether `reserve` would succeed now; charges nothing and promises nothing.

        Raises:
            BudgetExceeded: it would not.
            LedgerError: the ledger cannot be read.

        """
        _check_budget(cohort, self.events(cohort), events, budget)

    def reserve(
        self,
        cohort: str,
        events: Sequence[Event],
        *,
        run_id: str,
        round: int,  # noqa: A002 - the project's word
        budget: Budget,
    ) -> Reservation:
        """Charge a cohort, before any of its frames is read. Durable when it returns; it can never be undone.

        A round that is tried again is charged again: its noise is drawn anew, so both tries count.

        Raises:
            BudgetExceeded: the cohort, or a consent tier of it, would be over its limit; nothing is charged.
            LedgerError: the ledger cannot be read or written; nothing is charged.

        """
        self.check(cohort, events, budget=budget)  # the slow arithmetic, remembered, outside the lock
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
            _check_budget(cohort, _events(append.entries, cohort), events, budget)
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

    def events(self, cohort: str) -> tuple[Event, ...]:
        """Everything that was ever reserved for a cohort, in order; empty for one that is not known."""
        return _events(self.entries(), cohort)

    def events_by_cohort(self) -> dict[str, tuple[Event, ...]]:
        """Return the events of every cohort, by one reading of the file."""
        entries = self.entries()
        return {name: _events(entries, name) for name in _cohorts(entries)}

    def epsilon(
        self, cohort: str, delta: float, *, adjacency: Adjacency = "add-remove", accountant: Accountant = "pld"
    ) -> float:
        """Epsilon spent by the cohort's most charged units, see `accounting.epsilon`."""
        return accounting.epsilon(self.events(cohort), delta=delta, adjacency=adjacency, accountant=accountant)

    def epsilon_by_tier(
        self, cohort: str, delta: float, *, adjacency: Adjacency = "add-remove", accountant: Accountant = "pld"
    ) -> dict[str, float]:
        """Epsilon spent by each consent tier's units, see `accounting.epsilon_by_tier`."""
        return accounting.epsilon_by_tier(self.events(cohort), delta=delta, adjacency=adjacency, accountant=accountant)

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

    def _find(self, entries: Sequence[Entry], reservation: Reservation) -> None:
        index = reservation.sequence - 1
        if not 0 <= index < len(entries) or entries[index].hash != reservation.hash:
            raise LedgerError(f"{self.path}: it has no reservation {reservation.sequence} of {reservation.cohort!r}")


def _cohorts(entries: Sequence[Entry]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(entry.body["cohort"]) for entry in entries if "cohort" in entry.body))


def _events(entries: Sequence[Entry], cohort: str) -> tuple[Event, ...]:
    reserved = [entry for entry in entries if entry.kind == RESERVE and entry.body["cohort"] == cohort]
    try:
        return tuple(Event.from_json(event) for entry in reserved for event in entry.body["events"])
    except (ConfigError, TypeError) as error:
        raise LedgerError(f"cohort {cohort!r}: the ledger was written by another version: {error}") from error


def _committed(entries: Sequence[Entry], reservation: Reservation) -> bool:
    return any(entry.kind == COMMIT and entry.body["reservation"] == reservation.sequence for entry in entries)


def _check_budget(cohort: str, before: Sequence[Event], events: Sequence[Event], budget: Budget) -> None:
    tiers = accounting.epsilon_by_tier([*before, *events], delta=budget.delta, adjacency=budget.adjacency)
    for tier in dict.fromkeys([*tiers, *budget.by_tier]):
        total = tiers.get(tier, tiers[""])
        if total > budget.limit(tier):
            spent = accounting.epsilon_by_tier(before, delta=budget.delta, adjacency=budget.adjacency)
            who = f"cohort {cohort!r}" + (f", tier {tier!r}" if tier else "")
            raise BudgetExceeded(
                f"{who}: epsilon would be {total:.4g} of {budget.limit(tier):.4g} at delta {budget.delta:g} "
                f"({spent.get(tier, spent['']):.4g} is spent)"
            )


def _name(cohort: str) -> str:
    if not cohort or not cohort.isprintable():
        raise ConfigError(f"cohort is {cohort!r}; it must be a printable name")
    return cohort
