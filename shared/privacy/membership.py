"""Whom a reservation charged: every patient has an account, in whatever cohorts, tiers and files they appear.

A ledger knows patients by keyed hashes of their ids (HMAC-SHA256, the key is the ledger's own random identity): equal
ids give equal hashes in one ledger, and nothing can be looked up in another. After a reservation, and before a frame is
read, the ledger notes who is in the cohort and of which consent tier. A patient's charges are those of the reservations
that noted them, each with the events of the tier that they were of *then*. Renaming a cohort, moving records between
cohorts or files, or changing a tier therefore gives nobody anything back, and whoever comes later starts with nothing
spent.

What is not known is charged to all whom it may concern:

* ids that differ only in how they are written (`patient_ids.fold`) share an account, because which spelling stands for
  a patient may follow from the order of a file;
* a reservation for records that name no patient charges everybody who is ever named in the ledger;
* one that was never followed by a note (the process died) charges everybody who was in that cohort before it.

Patients who were charged the same share one account, a count of equal charges, so that what is kept grows with the
number of patients and of *different* charges, not with the number of rounds.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from wardpose.shared.errors import ConfigError, LedgerError
from wardpose.shared.patient_ids import fold
from wardpose.shared.privacy.accounting import ANY_TIER, UNTIERED, Event
from wardpose.shared.privacy.filters import Charged

_KEY_DIGITS = 32
_MOST_WAITING = 256  # reservations whose note may still come; an older one is taken to have been left alone

Members = Mapping[str, str]
"""Keys of patients, with the consent tier of each ("" for none)."""


class Spend(NamedTuple):
    """What one reservation charges, in a form that equal ones share.

    Attributes:
        course: identity of the declared course it is part of; empty where it is part of none.
        events: as canonical JSON.
        covers: the beginning of the course that counts as charged by it, as canonical JSON (`Charged`).
        study: name of the federation that it was charged for; empty where nobody knows, which may be any.
        month: in which it was charged ("2026-11", UTC), by the latest time that the ledger had seen.

    """

    course: str
    events: str
    covers: str = "[]"
    study: str = ""
    month: str = ""

    def charged(self, times: int = 1) -> Charged:
        """Return it as what the accountant takes, incurred so many times.

        Raises:
            ConfigError: the events cannot be understood.

        """
        return Charged(course=self.course, events=_events(self.events), covers=_events(self.covers), times=times)

    def of_tier(self, tier: str) -> "Spend":
        """Return what a unit of `tier` pays of it."""
        return self if tier == ANY_TIER else self._replace(events=_of_tier(self.events, tier or UNTIERED))

    @property
    def timeless(self) -> "Spend":
        """Return it as ledgers before studies and months knew it."""
        return self._replace(study="", month="")


def total(spent: Iterable[tuple[Spend, int]], chosen: Callable[[Spend], bool] = lambda spend: True) -> list[Charged]:
    """Return what was charged by those that are chosen, equal charges once with their number."""
    times: dict[Spend, int] = {}
    for spend, count in spent:
        if chosen(spend):
            times[spend.timeless] = times.get(spend.timeless, 0) + count
    return [spend.charged(count) for spend, count in times.items()]


def listed(spent: Mapping[Spend, int], *, timeless: bool) -> list[list[Any]]:
    """Return counted charges as plain JSON values, with or without their studies and months."""
    if not timeless:
        return [[*spend, count] for spend, count in spent.items()]
    times: dict[Spend, int] = {}
    for spend, count in spent.items():
        times[spend.timeless] = times.get(spend.timeless, 0) + count
    return [[*spend[:3], count] for spend, count in times.items()]


class Standing(NamedTuple):
    """What a patient was charged, equal for all who were charged the same.

    Attributes:
        account: number of the account that notes led to.
        waiting: charges of reservations that are not noted, or not yet.
        tier: of the patient when last noted.

    """

    account: int
    waiting: tuple[Spend, ...]
    tier: str


@dataclass
class _Waiting:
    """A reservation without a note; `seen` are the cohort's members before it, once others came after it."""

    cohort: str
    spend: Spend
    seen: dict[str, str] | None = None


@dataclass
class Membership:
    """All patients' accounts, as the entries so far say.

    Attributes:
        patients: key -> number of the account, and tier when last noted.
        notes: cohort -> sequence of its last note that lists members, and those.

    """

    patients: dict[str, tuple[int, str]] = field(default_factory=dict)
    notes: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    _accounts: dict[int, dict[Spend, int]] = field(default_factory=dict)
    _holders: dict[int, int] = field(default_factory=dict)  # account -> how many patients have it
    _seen: dict[str, dict[str, str]] = field(default_factory=dict)  # cohort -> everybody who was in it so far
    _waiting: dict[int, _Waiting] = field(default_factory=dict)  # by sequence
    _nameless: dict[Spend, int] = field(default_factory=dict)  # charged to everybody, now and later
    _next: int = 1

    def reserve(self, sequence: int, cohort: str, spend: Spend) -> None:
        """Take a reservation down; who pays it is said by a note, or by nobody."""
        self._waiting[sequence] = _Waiting(cohort, spend)
        if len(self._waiting) > _MOST_WAITING:
            oldest = self._waiting.pop(next(iter(self._waiting)))
            self._charge(self._before(oldest), oldest.spend, noted=False)

    def note(self, sequence: int, reservation: int, body: Mapping[str, Any]) -> None:
        """Charge a reservation to those whom a note lists.

        Args:
            sequence: of the note's entry.
            reservation: sequence of the reservation.
            body: of the note's entry.

        Raises:
            LedgerError: the reservation was noted before, or the note refers to one that is not known.

        """
        members = self._listed(sequence, body)
        waiting = self.waiting(reservation)
        del self._waiting[reservation]
        seen = self._seen.setdefault(waiting.cohort, {})
        for other, late in self._waiting.items():
            if late.cohort == waiting.cohort and other < reservation and late.seen is None:
                late.seen = dict(seen)
            elif late.cohort == waiting.cohort and other > reservation and late.seen is not None:
                late.seen.update(members)
        seen.update(members)
        self._charge(members, waiting.spend, noted=True)

    def names_nobody(self, cohort: str) -> None:
        """Charge everybody for the cohort's reservations without a note: it says what it is, and not who is in it."""
        for sequence in [number for number, waiting in self._waiting.items() if waiting.cohort == cohort]:
            spend = self._waiting.pop(sequence).spend
            self._nameless[spend] = self._nameless.get(spend, 0) + 1

    def waiting(self, reservation: int) -> _Waiting:
        """Return a reservation that is not noted yet.

        Raises:
            LedgerError: it was noted, or given up, before.

        """
        if reservation not in self._waiting:
            raise LedgerError(f"reservation {reservation} was noted before, or is too old to be noted")
        return self._waiting[reservation]

    def standing(self, key: str, *, without: int = 0) -> Standing:
        """Return what a patient was charged, but for the reservation `without`."""
        account, tier = self.patients.get(key, (0, ""))
        extra = (
            waiting.spend.of_tier(seen[key])
            for sequence, waiting in self._waiting.items()
            if sequence != without and key in (seen := self._before(waiting))
        )
        return Standing(account, tuple(extra), tier)

    def charges(
        self, standing: Standing, *more: Spend, chosen: Callable[[Spend], bool] = lambda spend: True
    ) -> list[Charged]:
        """Return the charges of a standing, and more; those that are chosen."""
        extra = [(spend, 1) for spend in (*standing.waiting, *more)]
        return total([*self._accounts.get(standing.account, {}).items(), *self._nameless.items(), *extra], chosen)

    def body(self, cohort: str, reservation: int, members: Members) -> dict[str, Any]:
        """Return what an entry notes: the members, or the earlier note of this cohort that has the same."""
        last = self.notes.get(cohort)
        if last is not None and last[1] == dict(members):
            return {"reservation": reservation, "as": last[0]}
        return {"reservation": reservation, "members": dict(members)}

    def _listed(self, sequence: int, body: Mapping[str, Any]) -> dict[str, str]:
        cohort = str(body["cohort"])
        if "members" in body:
            self.notes[cohort] = (sequence, dict(body["members"]))
        elif "as" not in body:
            return {}
        elif self.notes.get(cohort, (0, {}))[0] != body["as"]:
            raise LedgerError(f"the note refers to entry {body['as']}, which is not the last one of cohort {cohort!r}")
        return self.notes[cohort][1]

    def _before(self, waiting: _Waiting) -> dict[str, str]:
        return self._seen.get(waiting.cohort, {}) if waiting.seen is None else waiting.seen

    def _charge(self, members: Members, spend: Spend, *, noted: bool) -> None:
        moved: dict[tuple[int, str], int] = {}
        for key, tier in members.items():
            old, before = self.patients.get(key, (0, tier))
            if (old, tier) not in moved:
                part = spend.of_tier(tier)
                account = dict(self._accounts.get(old, {}))
                account[part] = account.get(part, 0) + 1
                moved[old, tier], self._next = self._next, self._next + 1
                self._accounts[moved[old, tier]] = account
            new = moved[old, tier]
            self.patients[key] = (new, tier if noted else before)
            self._holders[new] = self._holders.get(new, 0) + 1
            if old and self._holders[old] == 1:
                del self._holders[old], self._accounts[old]
            elif old:
                self._holders[old] -= 1

    def forget(self, sequence: int, spend: Spend) -> None:
        """Take a reservation back that nobody was, or will be, noted for: nothing was released for it.

        Raises:
            LedgerError: patients are named here; whom it charged is not known to the entry that takes it back.

        """
        if self.patients:
            raise LedgerError("a ledger that knows patients takes no reservation back")
        if self._waiting.pop(sequence, None) is None and spend in self._nameless:
            raise LedgerError("the reservation charged everybody; it cannot be taken back")

    def dump(self, *, timeless: bool = False) -> dict[str, Any]:
        """Return everything as plain JSON values that follow from the entries alone; `load` is the inverse.

        Args:
            timeless: in the form of ledgers before studies and months.

        """
        fields = 3 if timeless else len(Spend._fields)
        places = {key: place for place, key in enumerate(self.patients)}
        accounts = {account: place for place, account in enumerate(dict.fromkeys(a for a, _ in self.patients.values()))}

        def named(members: Members) -> list[list[Any]]:
            return [[places[key], tier] for key, tier in members.items()]

        return {
            "accounts": [listed(self._accounts[account], timeless=timeless) for account in accounts],
            "patients": [[key, accounts[account], tier] for key, (account, tier) in self.patients.items()],
            "notes": {cohort: [sequence, named(members)] for cohort, (sequence, members) in self.notes.items()},
            "seen": {cohort: named(members) for cohort, members in self._seen.items()},
            "nameless": listed(self._nameless, timeless=timeless),
            "waiting": [
                [sequence, late.cohort, *late.spend[:fields], None if late.seen is None else named(late.seen)]
                for sequence, late in self._waiting.items()
            ],
        }

    @classmethod
    def load(cls, content: Mapping[str, Any]) -> "Membership":
        """Read what `dump` made."""
        names = [key for key, _, _ in content["patients"]]

        def members(rows: Iterable[tuple[int, str]]) -> dict[str, str]:
            return {names[place]: tier for place, tier in rows}

        made = cls(
            patients={key: (account + 1, tier) for key, account, tier in content["patients"]},
            notes={cohort: (sequence, members(rows)) for cohort, (sequence, rows) in content["notes"].items()},
            _accounts={
                place: {Spend(*spend): count for *spend, count in account}
                for place, account in enumerate(content["accounts"], start=1)
            },
            _seen={cohort: members(rows) for cohort, rows in content["seen"].items()},
            _waiting={
                sequence: _Waiting(cohort, Spend(*spend), None if rows is None else members(rows))
                for sequence, cohort, *spend, rows in content["waiting"]
            },
            _nameless={Spend(*spend): count for *spend, count in content["nameless"]},
            _next=len(content["accounts"]) + 1,
        )
        for account, _ in made.patients.values():
            made._holders[account] = made._holders.get(account, 0) + 1
        return made


def patient_keys(ledger: str, patients: Iterable[str]) -> dict[str, str]:
    """Return the key of each patient's account, the keyed hash of their folded id: 128 bits, hexadecimal.

    Args:
        ledger: the ledger's random identity, which is the key of the hash.
        patients: their ids.

    """
    secret = ledger.encode()
    return {name: hmac.new(secret, fold(name).encode(), hashlib.sha256).hexdigest()[:_KEY_DIGITS] for name in patients}


def tiers_by_key(ledger: str, patients: Members) -> dict[str, str]:
    """Return the tier of each account, by key; `ANY_TIER` where people of several share one."""
    found: dict[str, str] = {}
    for name, key in patient_keys(ledger, patients).items():
        found[key] = patients[name] if found.get(key, patients[name]) == patients[name] else ANY_TIER
    return found


def spend_of(
    course: str,
    events: Iterable[Mapping[str, Any]],
    covers: Iterable[Mapping[str, Any]] = (),
    *,
    study: str = "",
    month: str = "",
) -> Spend:
    """Write down what a reservation charges.

    Raises:
        ConfigError: the events cannot be understood.

    """
    spend = Spend(course, _text(list(events)), _text(list(covers)), study, month)
    spend.charged()
    return spend


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def _text(events: list[Mapping[str, Any]]) -> str:
    return _ENCODER.encode(events)


@lru_cache(maxsize=16384)
def _events(text: str) -> tuple[Event, ...]:
    try:
        return tuple(Event.from_json(event) for event in json.loads(text))
    except (TypeError, AttributeError) as error:
        raise ConfigError(str(error)) from error


@lru_cache(maxsize=16384)
def _of_tier(text: str, tier: str) -> str:
    return _text([event for event in json.loads(text) if event.get("tier", "") in ("", tier)])
