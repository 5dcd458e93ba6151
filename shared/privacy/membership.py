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
* one that was never followed by a note (the process died) charges everybody who was in that cohort before.
"""

import hashlib
import hmac
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from wardpose.shared.errors import ConfigError, LedgerError
from wardpose.shared.patient_ids import fold
from wardpose.shared.privacy.accounting import UNTIERED, Event
from wardpose.shared.privacy.chain import COHORT, GENESIS, RESERVE, Entry
from wardpose.shared.privacy.filters import Charged

ANY_TIER = "*"
"""Stands for whichever consent tier costs most, where it is not known of which one somebody was."""

_KEY_DIGITS = 32


@dataclass(frozen=True)
class History:
    """Which reservations charged a patient, and as of which tier.

    Attributes:
        charges: (sequence of the reservation, tier) in order.
        tier: of the patient now.

    """

    charges: tuple[tuple[int, str], ...]
    tier: str

    def __iter__(self) -> Any:
        """Go through the charges."""
        return iter(self.charges)


def keys(entries: Sequence[Entry], patients: Iterable[str]) -> dict[str, str]:
    """Return the key of each patient's account, the keyed hash of their folded id: 128 bits, hexadecimal."""
    secret = _secret(entries)
    return {name: _hashed(secret, fold(name)) for name in patients}


def tiers_by_key(entries: Sequence[Entry], patients: Mapping[str, str]) -> dict[str, str]:
    """Return the tier of each account; `ANY_TIER` where people of several share one."""
    found: dict[str, str] = {}
    for name, key in keys(entries, patients).items():
        found[key] = patients[name] if found.get(key, patients[name]) == patients[name] else ANY_TIER
    return found


def spellings(entries: Sequence[Entry], patients: Iterable[str]) -> dict[str, str]:
    """Map the keys that an earlier version noted, hashes of ids as they are written, to those of accounts."""
    secret = _secret(entries)
    return {_hashed(secret, name): key for name, key in keys(entries, patients).items()}


def body(entries: Sequence[Entry], cohort: str, reservation: int, members: Mapping[str, str]) -> dict[str, Any]:
    """Return what an entry notes: the members, or the earlier entry of this cohort that has the same."""
    last = next(
        (entry for entry in reversed(entries) if entry.kind == COHORT and _is_note(entry) and "members" in entry.body),
        None,
    )
    if last is not None and last.body["cohort"] == cohort and last.body["members"] == dict(members):
        return {"reservation": reservation, "as": last.sequence}
    return {"reservation": reservation, "members": dict(members)}


def histories(
    entries: Sequence[Entry], patients: Mapping[str, str], *, written: Mapping[str, str] | None = None
) -> dict[str, History]:
    """Return each patient's history, by key.

    Args:
        entries: of the ledger.
        patients: key -> tier now.
        written: further keys that mean one of these, see `spellings`.

    """
    notes = {int(entry.body["reservation"]): _members(entries, entry) for entry in entries if _is_note(entry)}
    nameless = _nameless(entries, notes)
    same = written or {}
    seen: dict[str, dict[str, str]] = {}  # cohort -> everybody who was in it so far
    found: dict[str, dict[tuple[int, str], None]] = {key: {} for key in patients}
    for entry in entries:
        if entry.kind != RESERVE:
            continue
        cohort = str(entry.body["cohort"])
        charged = notes.get(entry.sequence, seen.get(cohort, {}))
        seen.setdefault(cohort, {}).update(charged)
        if entry.sequence in nameless:
            charged = dict.fromkeys(patients, ANY_TIER)
        for key, tier in charged.items():
            account = same.get(key, key)
            if account in found:
                found[account][entry.sequence, tier] = None
    return {key: History(tuple(charges), patients[key]) for key, charges in found.items()}


def _nameless(entries: Sequence[Entry], noted: Collection[int]) -> set[int]:
    """Reservations after which it was declared what the cohort is, and not who is in it."""
    found: set[int] = set()
    open_ones: dict[str, set[int]] = {}
    for entry in entries:
        if entry.kind == RESERVE and entry.sequence not in noted:
            open_ones.setdefault(str(entry.body["cohort"]), set()).add(entry.sequence)
        elif entry.kind == COHORT and not _is_note(entry):
            found |= open_ones.pop(str(entry.body["cohort"]), set())
    return found


def everybody(entries: Sequence[Entry]) -> dict[str, str]:
    """Return all patients that were ever noted: key -> last tier."""
    found: dict[str, str] = {}
    for entry in entries:
        if _is_note(entry):
            found.update(_members(entries, entry))
    return found


def charged(entries: Sequence[Entry], charges: Any) -> list[Charged]:
    """Return what (reservation, tier) pairs cost."""
    out = []
    for sequence, tier in charges:
        whole = charge_of(entries[sequence - 1])
        events = tuple(event for event in whole.events if _pays(event, tier))
        out.append(replace(whole, events=events))
    return out


def charge_of(entry: Entry) -> Charged:
    """Read what a reservation charged.

    Raises:
        LedgerError: its events cannot be understood.

    """
    try:
        events, covers = (
            tuple(Event.from_json(event) for event in part)
            for part in (entry.body["events"], entry.body.get("covers", ()))
        )
    except (ConfigError, TypeError) as error:
        raise LedgerError(
            f"entry {entry.sequence}, cohort {entry.body['cohort']!r}: was written by another version: {error}"
        ) from error
    return Charged(course=str(entry.body.get("course", "")), events=events, covers=covers)


def _pays(event: Event, tier: str) -> bool:
    return tier == ANY_TIER or event.tier in ("", tier or UNTIERED)


def _secret(entries: Sequence[Entry]) -> bytes:
    return str(next(entry for entry in entries if entry.kind == GENESIS).body["ledger"]).encode()


def _hashed(secret: bytes, text: str) -> str:
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()[:_KEY_DIGITS]


def _is_note(entry: Entry) -> bool:
    return entry.kind == COHORT and "reservation" in entry.body


def _members(entries: Sequence[Entry], entry: Entry) -> dict[str, str]:
    known = (
        entry.body if "members" in entry.body else entries[int(entry.body["as"]) - 1].body if "as" in entry.body else {}
    )
    return dict(known.get("members", {}))
