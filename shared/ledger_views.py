"""A ledger as an auditor reads it: what was charged, what it amounts to, and how two ledgers agree.

For either side's: at a site cohorts are its own, at the server each site is one. What epsilon is stated at (delta, the
neighbouring relation, the budget) is what the last reservation of each cohort was checked against.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wardpose.shared.errors import LedgerError
from wardpose.shared.privacy.accounting import Adjacency, Event, epsilon, local_events
from wardpose.shared.privacy.budget import Window
from wardpose.shared.privacy.entries import COHORT, EXPIRE, NOTHING, RESERVE, Entry, Row, next_entry
from wardpose.shared.privacy.filters import account
from wardpose.shared.privacy.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class Study:
    """What one run was charged to one cohort.

    Attributes:
        run: its identity.
        federation: its name; empty where the ledger does not say.
        mechanisms: names of what was charged.
        rounds: how many reservations.
        first: Unix time of the first.
        last: of the last.
        epsilon: of this run alone, as a bare list; `None` for infinity.

    """

    run: str
    federation: str
    mechanisms: tuple[str, ...]
    rounds: int
    first: int
    last: int
    epsilon: float | None


@dataclass(frozen=True, kw_only=True)
class WindowView:
    """What was charged in a month, or by the runs of one federation.

    Attributes:
        window: the month ("2026-11", UTC), or the federation's name.
        budget: epsilon that may be spent in it; `None` for no limit of its own.
        spent: epsilon as enforced; `None` for infinity.

    """

    window: str
    budget: float | None
    spent: float | None


@dataclass(frozen=True, kw_only=True)
class CohortView:
    """What was charged to one cohort, and the terms that it is stated at.

    Attributes:
        cohort: its name.
        units: whom charges protect (`patient`, `frame`, `record`).
        delta: at which epsilon is stated.
        adjacency: neighbouring relation.
        budget: epsilon that may be spent; `None` for no limit.
        spent: epsilon as enforced, of whoever paid most of those who may be in the cohort, other cohorts of the ledger
            included; `None` for infinity.
        rule: by which it is valid (`filters`).
        composed: epsilon of the bare list of charges; `None` for infinity.
        local: epsilon of the charges against somebody who could see this site's own sums, with its share of the noise
            alone; `None` where no noise was distributed, and it is the same.
        not_private: why the epsilon means nothing, empty where it does.
        studies: what each run was charged.
        month: what was charged in the last month in which anything was.
        federations: what the runs of each federation were charged together.

    """

    cohort: str
    units: tuple[str, ...]
    delta: float
    adjacency: Adjacency
    budget: float | None
    spent: float | None
    rule: str
    composed: float | None
    local: float | None
    not_private: str
    studies: tuple[Study, ...]
    month: WindowView | None = None
    federations: tuple[WindowView, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Rounds that two ledgers were charged differently for.

    Attributes:
        run: of which run.
        round: which one.
        what: `only at the server` (it may have ordered in vain), `only at the site`, `less at the server`, `less at the
            site` (it may have refused) or `otherwise`: events that are not the same.
        alarming: whether the server believes less was spent than the site does, or something else.

    """

    run: str
    round: int
    what: str
    alarming: bool


def finite(epsilon: float | None) -> float | None:
    """Return the value, or `None` where JSON has no number for it."""
    return epsilon if epsilon is not None and math.isfinite(epsilon) else None


def cohort_views(ledger: Ledger, entries: Sequence[Entry], cohort: str | None = None) -> list[CohortView]:
    """Return what every cohort was charged, or one.

    Raises:
        LedgerError: the cohort is not known.

    """
    known = ledger.cohorts()
    if cohort is not None and cohort not in known:
        raise LedgerError(f"{ledger.path}: cohort {cohort!r} is unknown (allowed: {', '.join(known) or 'none yet'})")
    charged = _standing(entries)
    names = known if cohort is None else (cohort,)
    declared = [entry.body for entry in entries if entry.kind == COHORT]
    named = {str(body["cohort"]) for body in declared if "reservation" in body}
    nameless = {str(body["cohort"]) for body in declared} - named
    return [
        _cohort_view(
            ledger,
            name,
            [entry for entry in charged if entry.body["cohort"] == name],
            named=name in named,
            nameless=name in nameless,
        )
        for name in names
    ]


def _cohort_view(ledger: Ledger, name: str, charged: Sequence[Entry], *, named: bool, nameless: bool) -> CohortView:
    """Look at one cohort; at a site, whose cohorts are declared, patients may be in several of them."""
    terms: Mapping[str, Any] = charged[-1].body["budget"] if charged else {}
    delta, adjacency = float(terms.get("delta", 1e-5)), terms.get("adjacency", "add-remove")
    figures = ledger.account(name, delta, adjacency=adjacency, whole_ledger=nameless)
    patients = ledger.patients(delta=delta, adjacency=adjacency) if named else []
    spent = max(figures.epsilon, *(paid for _, paid in patients), 0.0)
    events = [event for charge in ledger.charges(name) for event in charge.events]
    studies = tuple(_studies(charged, delta, adjacency))

    def window(words: str, budget: float | None, chosen: Window) -> WindowView:
        paid = ledger.patients(delta=delta, adjacency=adjacency, window=chosen) if named else []
        mine = ledger.account(name, delta, adjacency=adjacency, whole_ledger=nameless, window=chosen).epsilon
        return WindowView(window=words, budget=budget, spent=finite(max([mine, *(epsilon for _, epsilon in paid)])))

    last, limits = ledger.last_month(), terms.get("studies", {})
    return CohortView(
        cohort=name,
        units=tuple(sorted({event.unit for event in events})),
        delta=delta,
        adjacency=adjacency,
        budget=terms.get("epsilon"),
        spent=finite(spent),
        rule=figures.rule,
        composed=finite(figures.composed),
        local=_local(ledger, name, delta, adjacency),
        not_private=_why_not_private(events),
        studies=studies,
        month=window(last, terms.get("per_month"), Window(month=last)) if charged else None,
        federations=tuple(
            window(study, limits.get(study), Window(study=study))
            for study in dict.fromkeys([*(found.federation for found in studies), *limits])
            if study
        ),
    )


def _local(ledger: Ledger, name: str, delta: float, adjacency: Adjacency) -> float | None:
    """Epsilon of a cohort's charges as if nothing but the site's own noise hid it; by the same rules."""
    charges = ledger.charges(name)
    own = [
        replace(charge, events=local_events(charge.events), covers=local_events(charge.covers)) for charge in charges
    ]
    if own == charges:
        return None
    return finite(account(own, delta=delta, adjacency=adjacency, first_order=ledger.first_order()).epsilon)


def _studies(charged: Sequence[Entry], delta: float, adjacency: Adjacency) -> Iterator[Study]:
    runs = dict.fromkeys(str(entry.body["run"]) for entry in charged)
    for run in runs:
        mine = [entry for entry in charged if entry.body["run"] == run]
        events = [Event.from_json(event) for entry in mine for event in entry.body["events"]]
        declared: dict[str, Any] = next(
            (json.loads(entry.body["declared"]) for entry in mine if "declared" in entry.body), {}
        )
        yield Study(
            run=run,
            federation=str(declared.get("federation", "")),
            mechanisms=tuple(dict.fromkeys(event.mechanism for event in events)),
            rounds=len(mine),
            first=int(mine[0].body["time"]),
            last=int(mine[-1].body["time"]),
            epsilon=finite(epsilon(events, delta=delta, adjacency=adjacency)),
        )


def _why_not_private(events: Iterable[Event]) -> str:
    for event in events:
        if event.seeded:
            return "noise came from a seed: whoever knows it can subtract it"
        if event.is_unprotected:
            return f"mechanism {event.mechanism}: something was released without noise"
    return ""


def _standing(entries: Sequence[Entry]) -> list[Entry]:
    """Return the reservations that were not taken back by the word of a site."""
    gone = {entry.body["reservation"] for entry in entries if entry.kind == EXPIRE}
    return [entry for entry in entries if entry.kind == RESERVE and entry.sequence not in gone]


def compare(site: Sequence[Entry], server: Sequence[Entry], name: str) -> list[Difference]:
    """Hold a site's ledger against the server's account of that site, round by round.

    Args:
        site: entries of the site's ledger, all cohorts of which are the site's.
        server: entries of the server's.
        name: of the site, which is a cohort of the server's ledger.

    """
    mine, theirs = _by_round(site, None), _by_round(server, name)
    found = []
    for place in sorted(mine.keys() | theirs.keys()):
        here, there = mine.get(place, Counter()), theirs.get(place, Counter())
        if here == there:
            continue
        if not here:
            what, alarming = "only at the server", False
        elif not there:
            what, alarming = "only at the site", True
        elif here <= there:
            what, alarming = "less at the site", False
        elif there <= here:
            what, alarming = "less at the server", True
        else:
            what, alarming = "otherwise", True
        found.append(Difference(run=place[0], round=place[1], what=what, alarming=alarming))
    return found


def _by_round(entries: Sequence[Entry], cohort: str | None) -> dict[tuple[str, int], Counter[str]]:
    found: dict[tuple[str, int], Counter[str]] = {}
    for entry in _standing(entries):
        if cohort in (None, entry.body["cohort"]):
            place = (str(entry.body["run"]), int(entry.body["round"]))
            found.setdefault(place, Counter())[json.dumps(entry.body["events"], sort_keys=True)] += 1
    return found


def export_lines(entries: Iterable[Entry], *, members: bool) -> Iterator[str]:
    """Write entries as JSON, one a line.

    Args:
        entries: of a ledger, in order.
        members: keep the keyed hashes of patients and the key; without them the rows that hold them say `redacted`, and
            their own hash cannot be recomputed (their place in the chain can).

    """
    for entry in entries:
        body, hidden = dict(entry.body), False
        for secret in ("members", "ledger"):
            if not members and secret in body:
                body[secret], hidden = None, True
        row = {"sequence": entry.sequence, "kind": entry.kind, "body": body, "previous": entry.previous}
        yield json.dumps({**row, "hash": entry.hash, **({"redacted": True} if hidden else {})}, sort_keys=True)


def verify_export(path: Path) -> tuple[int, str, int]:
    """Check an export's chain; return number of entries, head, and how many are redacted.

    Raises:
        LedgerError: a line is no entry, or does not continue the chain.

    """
    count, head, redacted = 0, NOTHING, 0
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LedgerError(f"{path}: cannot be read ({error})") from error
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text)
            body = json.dumps(line["body"], sort_keys=True, separators=(",", ":"))
            row: Row = (line["sequence"], line["kind"], body, line["previous"], line["hash"])
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerError(f"{path}: line {number} is no entry of a ledger ({error})") from error
        if line.get("redacted") is True:
            if (row[0], row[3]) != (count + 1, head):
                raise LedgerError(f"{path}: entry {row[0]} does not continue the chain; the export was tampered with")
            redacted += 1
        else:
            next_entry(row, count, head, path)
        count, head = row[0], row[4]
    if not count:
        raise LedgerError(f"{path}: holds no entry")
    return count, head, redacted
