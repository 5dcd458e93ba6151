"""What a ledger's entries add up to: kept while they are read one by one, and small however many they are.

Equal charges of a cohort are counted, never listed, so that a million rounds of one course are one number. A
*checkpoint* is an entry that holds the hash of the tally before it: whoever has the tally's text and a chain from the
checkpoint on needs no earlier entry to know what was spent (`chain`).
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from wardpose.shared.errors import ConfigError, LedgerError
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.entries import CHECKPOINT, COHORT, GENESIS, NOTHING, RESERVE, Entry
from wardpose.shared.privacy.filters import Charged
from wardpose.shared.privacy.membership import Membership, Spend, spend_of

_VERSION = 1


@dataclass
class CohortTally:
    """What is known of one cohort.

    Attributes:
        identity: of its data set as last declared; `None` where it never was.
        units: its number of units as last declared.
        spent: how often each charge was reserved, in order of first appearance.
        courses: identities of the courses that were declared with a charge.

    """

    identity: str | None = None
    units: int | None = None
    spent: dict[Spend, int] = field(default_factory=dict)
    courses: list[str] = field(default_factory=list)


@dataclass
class Tally:
    """What the entries so far say.

    Attributes:
        count: how many they are.
        head: hash of the last one, 64 zeros for none.
        checkpoint: sequence of the last checkpoint, 0 for none.
        ledger: random identity of the ledger.
        order: of the Rényi filter, fixed with the first charge.
        cohorts: by name, in order of first appearance.
        identities: data set -> cohorts that it was declared for.
        membership: patients' accounts.
        size: characters that it last took when it was written down.

    """

    count: int = 0
    head: str = NOTHING
    checkpoint: int = 0
    ledger: str = ""
    order: int | None = None
    cohorts: dict[str, CohortTally] = field(default_factory=dict)
    identities: dict[str, list[str]] = field(default_factory=dict)
    membership: Membership = field(default_factory=Membership)
    size: int = 0

    def add(self, entry: Entry) -> None:
        """Take the next entry in; its place in the chain is checked already.

        Raises:
            LedgerError: it contradicts what was before, or cannot be understood.

        """
        body = entry.body
        try:
            if entry.kind == GENESIS:
                self.ledger = str(body["ledger"])
            elif entry.kind == COHORT:
                self._declare(entry)
            elif entry.kind == RESERVE:
                self._reserve(entry)
            elif entry.kind == CHECKPOINT:
                if body["state"] != self.digest():
                    raise LedgerError("it is no sum of what was before; the ledger was tampered with")
                self.checkpoint = entry.sequence
        except LedgerError as error:
            raise LedgerError(f"entry {entry.sequence}: {error}") from error
        except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise LedgerError(
                f"entry {entry.sequence}, cohort {body.get('cohort')!r}: was written by another version: {error}"
            ) from error
        self.count, self.head = entry.sequence, entry.hash

    def _declare(self, entry: Entry) -> None:
        body = entry.body
        name, identity = str(body["cohort"]), str(body["identity"])
        cohort = self._cohort(name)
        cohort.identity, cohort.units = identity, body["units"]
        names = self.identities.setdefault(identity, [])
        if name not in names:
            names.append(name)
        if "reservation" in body:
            self.membership.note(entry.sequence, int(body["reservation"]), body)
        else:
            self.membership.names_nobody(name)

    def _reserve(self, entry: Entry) -> None:
        body = entry.body
        name, course = str(body["cohort"]), str(body.get("course", ""))
        spend, cohort = spend_of(course, body["events"], body.get("covers", ())), self._cohort(name)
        cohort.spent[spend] = cohort.spent.get(spend, 0) + 1
        if "declared" in body and course not in cohort.courses:
            cohort.courses.append(course)
        if self.order is None and "order" in body:
            self.order = int(body["order"])
        self.membership.reserve(entry.sequence, name, spend)

    def _cohort(self, name: str) -> CohortTally:
        return self.cohorts.setdefault(name, CohortTally())

    def charges(self, cohort: str | None) -> list[Charged]:
        """Return what a cohort was charged, equal charges once with their number; of all cohorts for `None`."""
        chosen = self.cohorts.values() if cohort is None else [self.cohorts.get(cohort, CohortTally())]
        return [spend.charged(times) for found in chosen for spend, times in found.spent.items()]

    def knows_course(self, cohort: str, course: Course) -> bool:
        """Tell whether a course was declared with a charge of the cohort."""
        return course.identity in self.cohorts.get(cohort, CohortTally()).courses

    def other_names(self, cohort: str, identity: str) -> Iterator[str]:
        """Cohorts of other names that this data set was declared for."""
        return (name for name in self.identities.get(identity, ()) if name != cohort)

    def dump(self) -> str:
        """Write everything as JSON that follows from the entries alone; `load` is the inverse."""
        content = {
            "version": _VERSION,
            "count": self.count,
            "head": self.head,
            "checkpoint": self.checkpoint,
            "ledger": self.ledger,
            "order": self.order,
            "cohorts": {
                name: {
                    "identity": cohort.identity,
                    "units": cohort.units,
                    "spent": [[*spend, times] for spend, times in cohort.spent.items()],
                    "courses": cohort.courses,
                }
                for name, cohort in self.cohorts.items()
            },
            "identities": self.identities,
            "membership": self.membership.dump(),
        }
        return json.dumps(content, separators=(",", ":"))

    def digest(self) -> str:
        """Hexadecimal SHA-256 of `dump`."""
        return text_digest(self.dump())

    @classmethod
    def load(cls, text: str) -> "Tally":
        """Read what `dump` wrote.

        Raises:
            ValueError: another version wrote it.

        """
        content: dict[str, Any] = json.loads(text)
        if content.pop("version") != _VERSION:
            raise ValueError("a tally of another version")
        cohorts = {
            name: CohortTally(
                identity=cohort["identity"],
                units=cohort["units"],
                spent={Spend(*spend): times for *spend, times in cohort["spent"]},
                courses=cohort["courses"],
            )
            for name, cohort in content.pop("cohorts").items()
        }
        membership = Membership.load(content.pop("membership"))
        return cls(**content, cohorts=cohorts, membership=membership, size=len(text))


def text_digest(text: str) -> str:
    """Hexadecimal SHA-256 of a tally's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def events_of(charges: Sequence[Charged]) -> tuple[Event, ...]:
    """Every event, as often as it was incurred."""
    return tuple(event for charge in charges for _ in range(charge.times) for event in charge.events)
