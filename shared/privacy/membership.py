"""Whom a reservation charged: every patient has an account, in whatever cohorts, tiers and files they appear.

A ledger knows patients by keyed hashes of their ids (HMAC-SHA256, the key is the ledger's own random identity): equal
ids give equal hashes in one ledger, and nothing can be looked up in another. After a reservation, and before a frame is
read, the ledger notes who is in the cohort and of which consent tier. A patient's charges are those of the reservations
that noted them, each with the events of the tier that they were of *then*. Renaming a cohort, moving records between
cohorts or files, or changing a tier therefore gives nobody anything back, and whoever comes later starts with nothing
spent.

A reservation that was never followed by a note (the process died) charges everybody who was in that cohort before.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wardpose.shared.errors import ConfigError, LedgerError
from wardpose.shared.privacy.accounting import UNTIERED, Event
from wardpose.shared.privacy.chain import COHORT, GENESIS, RESERVE, Entry
from wardpose.shared.privacy.filters import Charged

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


def keys(entries: Sequence[Entry], patients: Mapping[str, str]) -> dict[str, str]:
    """Return the keyed hash of each patient's id: 128 bits, hexadecimal."""
    genesis = next(entry for entry in entries if entry.kind == GENESIS)
    secret = str(genesis.body["ledger"]).encode()
    return {name: hmac.new(secret, name.encode(), hashlib.sha256).hexdigest()[:_KEY_DIGITS] for name in patients}


def body(entries: Sequence[Entry], cohort: str, reservation: int, members: Mapping[str, str]) -> dict[str, Any]:
    """Return what an entry notes: the members, or the earlier entry of this cohort that has the same."""
    last = next(
        (entry for entry in reversed(entries) if entry.kind == COHORT and _is_note(entry) and "members" in entry.body),
        None,
    )
    if last is not None and last.body["cohort"] == cohort and last.body["members"] == dict(members):
        return {"reservation": reservation, "as": last.sequence}
    return {"reservation": reservation, "members": dict(members)}


def histories(entries: Sequence[Entry], patients: Mapping[str, str]) -> dict[str, History]:
    """Return each patient's history, by key.

    Args:
        entries: of the ledger.
        patients: key -> tier now.

    """
    notes = {int(entry.body["reservation"]): _members(entries, entry) for entry in entries if _is_note(entry)}
    seen: dict[str, dict[str, str]] = {}  # cohort -> everybody who was in it so far
    found: dict[str, list[tuple[int, str]]] = {key: [] for key in patients}
    for entry in entries:
        if entry.kind != RESERVE:
            continue
        cohort = str(entry.body["cohort"])
        charged = notes.get(entry.sequence, seen.get(cohort, {}))
        seen.setdefault(cohort, {}).update(charged)
        for key, tier in charged.items():
            if key in found:
                found[key].append((entry.sequence, tier))
    return {key: History(tuple(charges), patients[key]) for key, charges in found.items()}


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
        out.append(Charged(course=whole.course, events=events))
    return out


def charge_of(entry: Entry) -> Charged:
    """Read what a reservation charged.

    Raises:
        LedgerError: its events cannot be understood.

    """
    try:
        events = tuple(Event.from_json(event) for event in entry.body["events"])
    except (ConfigError, TypeError) as error:
        raise LedgerError(
            f"entry {entry.sequence}, cohort {entry.body['cohort']!r}: was written by another version: {error}"
        ) from error
    return Charged(course=str(entry.body.get("course", "")), events=events)


def _pays(event: Event, tier: str) -> bool:
    return event.tier in ("", tier or UNTIERED)


def _is_note(entry: Entry) -> bool:
    return entry.kind == COHORT and "reservation" in entry.body


def _members(entries: Sequence[Entry], entry: Entry) -> dict[str, str]:
    known = (
        entry.body if "members" in entry.body else entries[int(entry.body["as"]) - 1].body if "as" in entry.body else {}
    )
    return dict(known.get("members", {}))
