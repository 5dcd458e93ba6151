"""What a ledger's entries add up to: kept while they are read one by one, and small however many they are.

Equal charges of a cohort are counted, never listed, so that a million rounds of one course are one number. A
*checkpoint* is an entry that holds the hash of the tally before it: whoever has the tally's text and a chain from the
checkpoint on needs no earlier entry to know what was spent (`chain`).

The *month* of a charge is that of the latest time that any entry up to it had: a clock that is set back opens no month
that is over.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from wardpose.shared.errors import ConfigError, LedgerError
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.entries import CHECKPOINT, COHORT, EXPIRE, GENESIS, NOTHING, RESERVE, SITE_KEY, Entry
from wardpose.shared.privacy.expiry import check_expiry
from wardpose.shared.privacy.filters import Charged
from wardpose.shared.privacy.membership import Membership, Spend, listed, spend_of, total
from wardpose.shared.signing import SignatureError

_VERSION = 2
_DAY = 86400
FORM = 2
"""Of the sum that a checkpoint holds the hash of; those of 0.1.0, which name none, knew neither studies nor months."""


@dataclass
class CohortTally:
    """What is known of one cohort.

    Attributes:
        identity: of its data set as last declared; `None` where it never was.
        units: its number of units as last declared.
        spent: how often each charge was reserved, in order of first appearance.
        courses: identities of the courses that were declared with a charge.
        key: public key of the site whose account it is, as last bound; empty where none was.

    """

    identity: str | None = None
    units: int | None = None
    spent: dict[Spend, int] = field(default_factory=dict)
    courses: list[str] = field(default_factory=list)
    key: str = ""


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
        time: latest time of any entry, Unix seconds.
        studies: identity of a declared course -> name of its federation.
        names: name under which a site was registered -> the cohort that is its account.
        keys: public key of a site -> the cohort that is its account.
        imported: identities of ledgers whose charges are in this one.
        expired: sequences of reservations for which a site signed that nothing was released.
        size: characters that it last took when it was written down.
        form: of its last checkpoint; 1 for those of 0.1.0.

    """

    count: int = 0
    head: str = NOTHING
    checkpoint: int = 0
    ledger: str = ""
    order: int | None = None
    cohorts: dict[str, CohortTally] = field(default_factory=dict)
    identities: dict[str, list[str]] = field(default_factory=dict)
    membership: Membership = field(default_factory=Membership)
    time: int = 0
    studies: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    imported: list[str] = field(default_factory=list)
    expired: list[int] = field(default_factory=list)
    size: int = 0
    form: int = FORM

    def add(self, entry: Entry) -> None:
        """Take the next entry in; its place in the chain is checked already.

        Raises:
            LedgerError: it contradicts what was before, or cannot be understood.

        """
        body = entry.body
        try:
            self.time = max(self.time, int(body.get("time", 0)))
            if entry.kind == GENESIS:
                self.ledger = str(body["ledger"])
            elif entry.kind == COHORT:
                self._declare(entry)
            elif entry.kind == RESERVE:
                self._reserve(entry)
            elif entry.kind == SITE_KEY:
                self._bind(body)
            elif entry.kind == EXPIRE:
                self._expire(body)
            elif entry.kind == CHECKPOINT:
                self.form = int(body.get("form", 1))
                if body["state"] != self.digest(form=self.form):
                    raise LedgerError("it is no sum of what was before; the ledger was tampered with")
                self.checkpoint = entry.sequence
        except LedgerError as error:
            raise LedgerError(f"entry {entry.sequence}: {error}") from error
        except SignatureError as error:
            raise LedgerError(f"entry {entry.sequence}: {error}") from error
        except (ConfigError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
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
        cohort = self._cohort(name)
        if "declared" in body and course not in cohort.courses:
            cohort.courses.append(course)
        if "declared" in body and course not in self.studies:
            self.studies[course] = str(json.loads(body["declared"])["federation"])
        study, month = str(body.get("study", self.studies.get(course, ""))), month_of(self.time)
        if body.get("month", month) != month:
            raise LedgerError(f"it says that it was charged in {body['month']}, and stands in {month}")
        spend = spend_of(course, body["events"], body.get("covers", ()), study=study, month=month)
        cohort.spent[spend] = cohort.spent.get(spend, 0) + 1
        if self.order is None and "order" in body:
            self.order = int(body["order"])
        source = str(body.get("imported", "")).partition(":")[0]
        if source and source not in self.imported:
            self.imported.append(source)
        self.membership.reserve(entry.sequence, name, spend)

    def _bind(self, body: Mapping[str, Any]) -> None:
        account, name, key = str(body["cohort"]), str(body["name"]), str(body["key"])
        for known, value in ((self.names, name), (self.keys, key)):
            if known.setdefault(value, account) != account:
                raise LedgerError(f"{value[:60]!r} has the account {known[value]!r} already")
        self._cohort(account).key = key

    def _expire(self, body: Mapping[str, Any]) -> None:
        """Take back what a reservation charged, for which its site signed that nothing was released.

        What the entry says of the reservation was held against it when the entry was written, and is again when the
        whole chain is verified.
        """
        sequence, spend = check_expiry(body, self.ledger)
        cohort = self.cohorts.get(str(body["cohort"]), CohortTally())
        if sequence in self.expired:
            raise LedgerError(f"reservation {sequence} was taken back before")
        if not cohort.spent.get(spend):
            raise LedgerError(f"reservation {sequence} charged something else")
        self.membership.forget(sequence, spend)
        cohort.spent[spend] -= 1
        if not cohort.spent[spend]:
            del cohort.spent[spend]
        self.expired.append(sequence)

    def _cohort(self, name: str) -> CohortTally:
        return self.cohorts.setdefault(name, CohortTally())

    def charges(self, cohort: str | None, chosen: Callable[[Spend], bool] = lambda spend: True) -> list[Charged]:
        """Return what a cohort was charged, equal charges once with their number; of all cohorts for `None`."""
        found = self.cohorts.values() if cohort is None else [self.cohorts.get(cohort, CohortTally())]
        return [charge for each in found for charge in total(each.spent.items(), chosen)]

    def month(self, now: int) -> str:
        """Return the month that a charge made now belongs to."""
        return month_of(max(self.time, now))

    def knows_course(self, cohort: str, course: Course) -> bool:
        """Tell whether a course was declared with a charge of the cohort."""
        return course.identity in self.cohorts.get(cohort, CohortTally()).courses

    def other_names(self, cohort: str, identity: str) -> Iterator[str]:
        """Cohorts of other names that this data set was declared for."""
        return (name for name in self.identities.get(identity, ()) if name != cohort)

    def dump(self, *, form: int = FORM) -> str:
        """Write everything as JSON that follows from the entries alone; `load` is the inverse for today's form."""
        timeless = form == 1
        cohorts: dict[str, dict[str, Any]] = {
            name: {
                "identity": cohort.identity,
                "units": cohort.units,
                "spent": listed(cohort.spent, timeless=timeless),
                "courses": cohort.courses,
                **({} if timeless else {"key": cohort.key}),
            }
            for name, cohort in self.cohorts.items()
        }
        content = {
            "version": form,
            "count": self.count,
            "head": self.head,
            "checkpoint": self.checkpoint,
            "ledger": self.ledger,
            "order": self.order,
            "cohorts": cohorts,
            "identities": self.identities,
            "membership": self.membership.dump(timeless=timeless),
        }
        if not timeless:
            content |= {name: getattr(self, name) for name in _LATER}
        return json.dumps(content, separators=(",", ":"))

    def digest(self, *, form: int = FORM) -> str:
        """Hexadecimal SHA-256 of `dump`."""
        return text_digest(self.dump(form=form))

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
                key=cohort["key"],
            )
            for name, cohort in content.pop("cohorts").items()
        }
        membership = Membership.load(content.pop("membership"))
        return cls(**content, cohorts=cohorts, membership=membership, size=len(text))


_LATER = ("time", "studies", "names", "keys", "imported", "expired")


def month_of(seconds: int) -> str:
    """Return the calendar month of a Unix time, UTC.

    >>> month_of(1_709_251_199), month_of(1_709_251_200)  # the 29th of February 2024 has a last second
    ('2024-02', '2024-03')

    """
    return _month_of_day(seconds // _DAY)


@lru_cache(maxsize=4096)
def _month_of_day(day: int) -> str:
    return time.strftime("%Y-%m", time.gmtime(day * _DAY))


def text_digest(text: str) -> str:
    """Hexadecimal SHA-256 of a tally's text."""
    return hashlib.sha256(text.encode()).hexdigest()


def events_of(charges: Sequence[Charged]) -> tuple[Event, ...]:
    """Every event, as often as it was incurred."""
    return tuple(event for charge in charges for _ in range(charge.times) for event in charge.events)
