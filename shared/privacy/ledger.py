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
* **Every row is signed** where the ledger has a signer (`row_signatures`): nobody without the key can write one.
* **Patients keep their own account** (`membership`), whatever the cohort is called and whoever else is in it.

One file holds several cohorts; at the server each site is a cohort. A `Ledger` keeps no connection: it may be used
from threads, and forked.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from wardpose.shared.errors import BudgetExceeded, ConfigError, LedgerError
from wardpose.shared.privacy import accounting, filters
from wardpose.shared.privacy.accounting import Accountant, Adjacency, Event, UnitKind
from wardpose.shared.privacy.budget import Budget, OverlapBudget, Window, charge_of, holds_weaker, of_tier
from wardpose.shared.privacy.chain import Chain, Witness
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.entries import COHORT, COMMIT, NOTHING, RESERVE, Entry, Row
from wardpose.shared.privacy.filters import Account, Charged
from wardpose.shared.privacy.membership import Standing, patient_keys, tiers_by_key
from wardpose.shared.privacy.tally import Tally, events_of
from wardpose.shared.signing import PublicKey, Signer

__all__ = ["Budget", "Ledger", "Reservation"]


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
        signer: Signer | None = None,
    ) -> None:
        """Open a ledger, and check it when it exists.

        Args:
            path: of the file.
            clock: Unix time of new entries.
            readonly: refuse to write.
            witness: remembers the head elsewhere, so that a lost or old file is told from a new one.
            signer: signs every row, and must have signed the last one that is there.

        Raises:
            LedgerError: the file is no ledger, is empty, is damaged, was tampered with, is not signed by the signer, or
                is not the one that the witness remembers; or `readonly` and missing.

        """
        self.path = Path(path)
        self.readonly = readonly
        self._chain = Chain(self.path, clock=clock, readonly=readonly, witness=witness, signer=signer)
        if readonly and not self.path.is_file():
            raise LedgerError(f"{self.path}: there is no ledger")
        self._last_run: tuple[str, int, str, tuple[Entry, ...]] = ("", 0, NOTHING, ())
        with self._chain.reading():
            pass

    @classmethod
    def open_readonly(cls, path: str | Path) -> "Ledger":
        """Open an existing ledger for an exporter; nothing is ever written.

        Raises:
            LedgerError: as for the class, and when there is no file.

        """
        return cls(path, readonly=True)

    def begin(self) -> None:
        """Make the file where there is none, so that its first head is told from that of any other ledger.

        Raises:
            LedgerError: it cannot be written, or is lost.

        """
        if not self.path.exists():
            with self._chain.transaction():
                pass

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
            tally = append.tally
            if patients is None or reservation is None or budget is None:
                for other in tally.other_names(cohort, identity):
                    raise LedgerError(
                        f"{self.path}: cohort {cohort!r} is the data set of cohort {other!r}; "
                        "a new name is not a new budget"
                    )
                known = tally.cohorts.get(cohort)
                if reservation is not None or known is None or (known.identity, known.units) != (identity, units):
                    append(COHORT, body)
                return frozenset()
            self._find(append.entry(reservation.sequence), reservation)
            keys, tiers = patient_keys(tally.ledger, patients), tiers_by_key(tally.ledger, patients)
            out = self._cannot_bear(tally, reservation, keys, tiers, budget)
            members = {keys[name]: tiers[keys[name]] for name in patients if name not in out}
            append(COHORT, body | tally.membership.body(cohort, reservation.sequence, members))
        return out

    def _cannot_bear(
        self,
        tally: Tally,
        reservation: Reservation,
        keys: Mapping[str, str],
        tiers: Mapping[str, str],
        budget: Budget,
    ) -> frozenset[str]:
        """Patients whose account would be over the budget's limit with a reservation; equal accounts are asked once."""
        membership = tally.membership
        spend = membership.waiting(reservation.sequence).spend
        windows = budget.windows(spend.study, spend.month)
        over: dict[tuple[Standing, str], bool] = {}
        out = set()
        for name, key in keys.items():
            tier, standing = tiers[key], membership.standing(key, without=reservation.sequence)
            if (standing, tier) not in over:
                mine = spend.of_tier(tier)
                over[standing, tier] = not all(
                    budget.bears(
                        window.charged(membership.charges(standing, mine, chosen=window.holds)),
                        tally.order,
                        tier=tier,
                        limit=window.limit,
                    )
                    for window in windows
                )
            if over[standing, tier]:
                out.add(name)
        return frozenset(out)

    def check(
        self,
        cohort: str,
        events: Sequence[Event],
        *,
        budget: Budget,
        course: Course | None = None,
        further: Sequence[Budget | OverlapBudget] = (),
    ) -> None:
        """Ask whether `reserve` would succeed now; charges nothing and promises nothing.

        Raises:
            BudgetExceeded: it would not.
            LedgerError: the ledger cannot be read.

        """
        with self._chain.reading() as tally:
            self._check(tally, self._chain.month(tally), cohort, events, (budget, *further), course)

    def reserve(
        self,
        cohort: str,
        events: Sequence[Event],
        *,
        run_id: str,
        round: int,  # noqa: A002 - the project's word
        budget: Budget,
        course: Course | None = None,
        further: Sequence[Budget | OverlapBudget] = (),
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
            further: other limits that must hold as well, checked in the same transaction.

        Raises:
            BudgetExceeded: the cohort, or a consent tier of it, would be over a limit; nothing is charged.
            LedgerError: the ledger cannot be read or written; nothing is charged.

        """
        # The slow arithmetic, which is remembered, outside the lock. What it says of an older sum decides nothing.
        with self._chain.lately() as tally, contextlib.suppress(BudgetExceeded):
            if tally is not None:
                self._check(tally, self._chain.month(tally), cohort, events, (budget, *further), course)
        if tally is None:
            self.check(cohort, events, budget=budget, course=course, further=further)
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
                **({"per_month": budget.per_month} if budget.per_month < math.inf else {}),
                **({"studies": dict(budget.studies)} if budget.studies else {}),
            },
        }
        with self._chain.transaction() as append:
            new = self._check(append.tally, append.month, cohort, events, (budget, *further), course)
            body["study"], body["month"] = _study(course), append.month
            if new.course and course is not None and not append.tally.knows_course(cohort, course):
                body["declared"] = course.model_dump_json()  # with the first charge: what the rest must be a part of
            if append.tally.order is None:
                limit = min([budget.epsilon, *budget.by_tier.values()])
                body["order"] = filters.best_order(
                    events, epsilon=limit, delta=budget.delta, adjacency=budget.adjacency
                )
            body["course"] = new.course
            if new.covers:
                body["covers"] = [event.to_json() for event in new.covers]
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
            self._find(append.entry(reservation.sequence), reservation)
            if append.is_committed(reservation.sequence):
                raise LedgerError(f"{self.path}: reservation {reservation.sequence} was committed before")
            if reservation.sequence in append.tally.expired:
                raise LedgerError(f"{self.path}: reservation {reservation.sequence} was taken back")
            append(COMMIT, {"cohort": reservation.cohort, "reservation": reservation.sequence})

    def is_committed(self, reservation: Reservation) -> bool:
        """Tell whether the reservation is of this ledger and was committed."""
        with self._chain.reading():
            self._find(self._chain.entry(reservation.sequence), reservation)
        commits = self._chain.after(reservation.sequence, COMMIT)
        return any(entry.body["reservation"] == reservation.sequence for entry in commits)

    def first_order(self) -> int | None:
        """Return the order of the Rényi filter that was fixed with the first charge; `None` before it."""
        with self._chain.reading() as tally:
            return tally.order

    def month(self) -> str:
        """Return the month that a charge made now would belong to: that of the latest time the ledger knows."""
        with self._chain.reading() as tally:
            return self._chain.month(tally)

    def last_month(self) -> str:
        """Return the month of the latest time that the ledger knows: that of its last charges."""
        with self._chain.reading() as tally:
            return tally.month(0)

    def charges(self, cohort: str, window: Window | None = None) -> list[Charged]:
        """Return what the reservations of a cohort charged, in a window or ever; equal ones once, with their number."""
        with self._chain.reading() as tally:
            return tally.charges(cohort, (window or Window()).holds)

    def events(self, cohort: str) -> tuple[Event, ...]:
        """Everything that was ever reserved for a cohort, equal charges together; empty for one that is not known."""
        return events_of(self.charges(cohort))

    def reservations(self, cohort: str, run_id: str) -> Iterator[Entry]:
        """Entries that charged a cohort for a run, in order, but for those that were taken back."""
        with self._chain.reading() as tally:
            expired, found = frozenset(tally.expired), self._of_run(run_id, tally)
        yield from (entry for entry in found if entry.body["cohort"] == cohort and entry.sequence not in expired)

    def _of_run(self, run_id: str, tally: Tally) -> tuple[Entry, ...]:
        """Entries that charged anybody for a run; those of the run last asked for are not searched for again."""
        run, upto, head, found = self._last_run
        if run != run_id or upto > tally.count or not self._chain.still_holds(upto, head):
            upto, found = 0, ()
        new = (entry for entry in self._chain.after(upto, RESERVE) if entry.sequence <= tally.count)
        found = (*found, *(entry for entry in new if entry.body["run"] == run_id))
        self._last_run = (run_id, tally.count, tally.head, found)
        return found

    def all_reservations(self) -> Iterator[Entry]:
        """Entries that charged anybody, in order."""
        with self._chain.reading():
            pass
        yield from self._chain.after(0, RESERVE)

    def account(
        self,
        cohort: str,
        delta: float,
        *,
        adjacency: Adjacency = "add-remove",
        tier: str | None = None,
        whole_ledger: bool = False,
        unit: UnitKind = "record",
        window: Window | None = None,
    ) -> Account:
        """Return what was spent by whoever was in the cohort at every charge, by each rule (`filters.account`).

        Args:
            cohort: whose charges.
            delta: at which epsilon is computed.
            adjacency: for which it is computed.
            tier: units of this consent tier ("" for none); whoever paid most, also by changing tiers, when absent.
            whole_ledger: the charges of all cohorts of the file.
            unit: whose epsilon it is; infinite where a charge was for a weaker unit, of which they may have many.
            window: of the charges in it alone.

        """
        window = window or Window()
        with self._chain.reading() as tally:
            charges, order = tally.charges(None if whole_ledger else cohort, window.holds), tally.order
        if tier is not None:
            charges = [of_tier(charge, tier) for charge in charges]
        charges = window.charged(charges)
        if holds_weaker(charges, unit):
            return Account(composed=math.inf, course=math.inf, renyi_filter=math.inf)
        return filters.account(charges, delta=delta, adjacency=adjacency, first_order=order)

    def patients(
        self, *, delta: float, adjacency: Adjacency = "add-remove", window: Window | None = None
    ) -> list[tuple[int, float]]:
        """Return how many patients have spent how much, most first. Private: it must not leave the site.

        Args:
            delta: at which epsilon is computed.
            adjacency: for which it is computed.
            window: of the charges in it alone.

        """
        window = window or Window()
        with self._chain.reading() as tally:
            membership, order = tally.membership, tally.order
            counts: dict[Standing, int] = {}
            for key in membership.patients:
                standing = membership.standing(key)
                counts[standing] = counts.get(standing, 0) + 1
            charges = {
                standing: window.charged(membership.charges(standing, chosen=window.holds)) for standing in counts
            }
        spent = [
            (
                count,
                filters.account(charges[standing], delta=delta, adjacency=adjacency, first_order=order).epsilon,
            )
            for standing, count in counts.items()
        ]
        return sorted(spent, key=lambda row: -row[1])

    def epsilon(
        self,
        cohort: str,
        delta: float,
        *,
        adjacency: Adjacency = "add-remove",
        accountant: Accountant | None = None,
        unit: UnitKind = "record",
    ) -> float:
        """Epsilon spent by the cohort's most charged units.

        By default the figure that is enforced (`account`). With an accountant, that of the bare list of events, which
        is right if nobody chose a later charge by looking at earlier releases.
        """
        if accountant is None:
            return self.account(cohort, delta, adjacency=adjacency, unit=unit).epsilon
        events = [event for charge in self.charges(cohort) for event in charge.total]
        return accounting.epsilon(events, delta=delta, adjacency=adjacency, accountant=accountant)

    def epsilon_by_tier(self, cohort: str, delta: float, *, adjacency: Adjacency = "add-remove") -> dict[str, float]:
        """Epsilon spent by each consent tier's units, as enforced; the key "" stands for units of no tier."""
        tiers = dict.fromkeys(["", *(event.tier for charge in self.charges(cohort) for event in charge.events)])
        return {tier: self.account(cohort, delta, adjacency=adjacency, tier=tier).epsilon for tier in tiers}

    def seeded(self, cohort: str) -> bool:
        """Tell whether a charge of the cohort was made with noise from a seed: not private, whatever epsilon says."""
        return any(event.seeded for charge in self.charges(cohort) for event in charge.events)

    def cohorts(self) -> tuple[str, ...]:
        """Names of all cohorts that were declared or charged, in order of first appearance."""
        with self._chain.reading() as tally:
            return tuple(tally.cohorts)

    def identity(self) -> str:
        """Return the random identity that the ledger was made with; empty before its first entry."""
        with self._chain.reading() as tally:
            return tally.ledger

    def head(self) -> tuple[int, str]:
        """Sequence number and hash of the last entry, (0, 64 zeros) for a ledger that was never written.

        Remember it elsewhere: it pins everything before it.
        """
        with self._chain.reading() as tally:
            return tally.count, tally.head

    def contains(self, head: tuple[int, str]) -> bool:
        """Tell whether a head that was seen before is still in the chain."""
        sequence, digest = head
        return digest == NOTHING if sequence == 0 else self._chain.hash_at(sequence) == digest != NOTHING

    def renewed(self, signer: Signer, why: str) -> Entry:
        """Let another key sign from here on: the old one was replaced, or rows were not signed before.

        Raises:
            LedgerError: there is no ledger, or the key signs already.

        """
        return self._chain.renew_key(signer, why)

    def check_signatures(self, key: PublicKey) -> tuple[int, int]:
        """Check the chain and who signed it; returns how many rows a key signed, and how many it did not.

        Raises:
            LedgerError: the last row is not signed by this key, or one of its signatures is false.

        """
        return self._chain.check_signatures(key)

    def entries(self) -> tuple[Entry, ...]:
        """Every entry, in order, after checking the whole chain.

        Raises:
            LedgerError: the file is no ledger, is damaged, or was tampered with.

        """
        return self._chain.entries()

    def stored(self, after: int, until: int) -> list[Row]:
        """Return the rows behind an entry, up to another, as they are stored: to be checked by whoever reads them.

        Raises:
            LedgerError: the file cannot be read.

        """
        return self._chain.stored(after, until)

    def verify(self, expected_head: tuple[int, str] | None = None) -> None:
        """Check the file's pages, the chain, and that the chain still contains a head that was seen before.

        Raises:
            LedgerError: says what is wrong.

        """
        self._chain.verify(expected_head)

    def _check(
        self,
        tally: Tally,
        month: str,
        cohort: str,
        events: Sequence[Event],
        budgets: Sequence[Budget | OverlapBudget],
        course: Course | None,
    ) -> Charged:
        """Refuse what a budget cannot bear; return the charge, which is of its declared course or stands alone."""
        (budget, *_) = budgets
        whole_ledger = isinstance(budget, Budget) and budget.whole_ledger
        new = charge_of(tally.charges(None if whole_ledger else cohort), events, course)
        for limit in budgets:
            refuse = _refuse_overlap if isinstance(limit, OverlapBudget) else _refuse
            refuse(tally, cohort, new, limit, _study(course), month)  # type: ignore[arg-type]
        return new

    def _find(self, entry: Entry | None, reservation: Reservation) -> None:
        if entry is None or entry.hash != reservation.hash:
            raise LedgerError(f"{self.path}: it has no reservation {reservation.sequence} of {reservation.cohort!r}")


def _refuse(tally: Tally, cohort: str, new: Charged, budget: Budget, study: str, month: str) -> None:
    """Refuse a charge that a cohort's budget cannot bear.

    Raises:
        BudgetExceeded: says which limit, and what is spent of it.

    """
    for window in budget.windows(study, month):
        before = tally.charges(None if budget.whole_ledger else cohort, window.holds)
        tiers = [event.tier for charge in (*before, new) for event in charge.events]
        for tier in dict.fromkeys(["", *tiers, *budget.by_tier]):
            # Where nobody is named, whoever is of this tier now may have been of another one at every charge before.
            earlier = window.charged(before if budget.whole_ledger else [of_tier(charge, tier) for charge in before])
            charges = window.charged([*earlier, of_tier(new, tier)])
            if not budget.bears(charges, tally.order, tier=tier, limit=window.limit):
                total, spent = budget.spent(charges, tally.order), budget.spent(earlier, tally.order)
                who = f"cohort {cohort!r}" + (f", tier {tier!r}" if tier else "") + window.words
                allowed = budget.limit(tier) if window.limit is None else window.limit
                raise BudgetExceeded(
                    f"{who}: epsilon would be {total:.4g} of {allowed:.4g} at delta {budget.delta:g} "
                    f"({spent:.4g} is spent)"
                )


def _refuse_overlap(tally: Tally, cohort: str, new: Charged, limit: OverlapBudget, study: str, month: str) -> None:
    """Refuse a charge by which somebody in several cohorts would spend too much.

    Raises:
        BudgetExceeded: says which limit.

    """
    accounts = {tally.names.get(name, name) for name in limit.cohorts} or set(tally.cohorts)
    for window in limit.budget.windows(study, month):
        charges = {name: tally.charges(name, window.holds) for name in accounts}
        charges[cohort] = [*charges.get(cohort, []), new]
        total = limit.spent({name: window.charged(found) for name, found in charges.items()})
        allowed = limit.budget.epsilon if window.limit is None else window.limit
        if total > allowed:
            sites = min(limit.overlap, len(charges))
            raise BudgetExceeded(
                f"cohort {cohort!r}{window.words}: epsilon of a patient at {sites} sites would be {total:.4g} "
                f"of {allowed:.4g} at delta {limit.budget.delta:g}"
            )


def _study(course: Course | None) -> str:
    return "" if course is None else course.federation


def _name(cohort: str) -> str:
    if not cohort or not cohort.isprintable():
        raise ConfigError(f"cohort is {cohort!r}; it must be a printable name")
    return cohort
