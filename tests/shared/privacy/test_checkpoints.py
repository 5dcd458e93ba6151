"""A long ledger is read from a checkpoint on, and no forged, lost or stale one makes anybody's account smaller."""

import itertools
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ledgers import BUDGET, COURSE, DELTA, EVENT, UNLIMITED, spend

from wardpose.client.journal import SiteJournal
from wardpose.shared.errors import LedgerError
from wardpose.shared.privacy import chain
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.entries import CHECKPOINT, COHORT, COMMIT, GENESIS, RESERVE, Entry, entry_hash
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.privacy.tally import Tally, text_digest

SPACING = 8


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteJournal:
    monkeypatch.setattr(chain, "_SPACING", SPACING)
    return SiteJournal(tmp_path / "state" / "journal.sqlite")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def change(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(
        "DROP TRIGGER IF EXISTS entries_keep; DROP TRIGGER IF EXISTS entries_stay;" + ";".join(statements)
    )
    connection.commit()
    connection.close()


def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sequences of the entries that are read from now on."""
    read: list[int] = []
    real = chain.next_entry
    monkeypatch.setattr(chain, "next_entry", lambda row, *rest: (read.append(row[0]), real(row, *rest))[1])
    return read


def charged(ledger: Ledger) -> int:
    return sum(event.steps for charge in ledger.charges("ward") for event in charge.total)


def test_a_use_reads_no_further_back_than_the_checkpoint(
    path: Path, journal: SiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    spend(Ledger(path, witness=journal), 20, budget=UNLIMITED)
    entries = Ledger(path).entries()
    places = [entry.sequence for entry in entries if entry.kind == CHECKPOINT]
    assert len(places) >= 4
    assert all(after - before >= SPACING for before, after in itertools.pairwise(places))
    read = rows_read(monkeypatch)
    ledger = Ledger(path, witness=journal)
    assert min(read) == places[-1]
    read.clear()
    assert charged(ledger) == 20 * EVENT.steps
    assert read == []  # this object has read them
    spend(ledger, 1, budget=UNLIMITED)
    assert min(read) > places[-1]
    read.clear()
    Ledger(path)
    assert read[0] == 1  # nobody vouches for a checkpoint here


def test_totals_are_those_of_a_whole_reading(path: Path, journal: SiteJournal) -> None:
    for number in range(25):
        ledger = Ledger(path, witness=journal)
        spend(ledger, 1, cohort="ward" if number % 3 else "clinic", budget=UNLIMITED)
        whole = Ledger(path)
        for cohort in ("ward", "clinic"):
            assert ledger.charges(cohort) == whole.charges(cohort)
            assert ledger.account(cohort, DELTA) == whole.account(cohort, DELTA)
        assert ledger.head() == whole.head()


def test_what_was_changed_before_a_checkpoint_frees_nobody_and_is_found(path: Path, journal: SiteJournal) -> None:
    spend(Ledger(path, witness=journal), 20, budget=UNLIMITED)
    before = Ledger(path, witness=journal).account("ward", DELTA)
    change(path, "UPDATE entries SET body = replace(body, '\"steps\":5', '\"steps\":1') WHERE sequence < 20")
    ledger = Ledger(path, witness=journal)
    assert ledger.account("ward", DELTA) == before
    for look in (ledger.verify, ledger.entries, lambda: Ledger(path)):
        with pytest.raises(LedgerError, match="entry 2 does not continue the chain"):
            look()


def test_a_checkpoint_that_somebody_appended_is_not_believed(path: Path, journal: SiteJournal) -> None:
    """It names the sum of a ledger in which nothing was spent, and continues the chain."""
    spend(Ledger(path, witness=journal), 20, budget=UNLIMITED)
    whole = Ledger(path)
    count, head = whole.head()
    empty = Tally(count=count, head=head, ledger=str(whole.entries()[0].body["ledger"])).dump()
    body = json.dumps({"nonce": "0", "state": text_digest(empty), "time": 1}, sort_keys=True, separators=(",", ":"))
    digest = entry_hash(count + 1, CHECKPOINT, body, head)
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", (count + 1, CHECKPOINT, body, head, digest))
    connection.execute("INSERT INTO sums VALUES (?, ?)", (count + 1, empty))
    connection.commit()
    connection.close()
    for witness in (journal, None):
        with pytest.raises(LedgerError, match=f"entry {count + 1}: it is no sum of what was before"):
            Ledger(path, witness=witness)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sums SET text = replace(text, '\"spent\":[[', '\"spent\":[[1,')",
        "UPDATE sums SET text = '{}'",
        "UPDATE sums SET text = '[' || text",
        "UPDATE sums SET text = (SELECT text FROM sums ORDER BY sequence LIMIT 1)",
        "UPDATE sums SET sequence = sequence + 1",
        "UPDATE sums SET sequence = 3 WHERE sequence = (SELECT max(sequence) FROM sums)",
        "DELETE FROM sums",
        "DROP TABLE sums",
    ],
)
def test_a_sum_that_is_not_the_one_of_its_checkpoint_is_made_anew(
    path: Path, journal: SiteJournal, statement: str
) -> None:
    spend(Ledger(path, witness=journal), 20, budget=UNLIMITED)
    change(path, statement)
    ledger = Ledger(path, witness=journal)
    assert charged(ledger) == 20 * EVENT.steps
    spend(ledger, 10, budget=UNLIMITED)
    assert charged(Ledger(path, witness=journal)) == 30 * EVENT.steps
    ledger.verify()


def test_an_old_copy_is_found_by_witness_and_by_whoever_has_read_more(path: Path, journal: SiteJournal) -> None:
    ledger = Ledger(path, witness=journal)
    spend(ledger, 10, budget=UNLIMITED)
    shutil.copy(path, path.with_suffix(".backup"))
    spend(ledger, 10, budget=UNLIMITED)
    shutil.copy(path.with_suffix(".backup"), path)
    uses: list[Callable[[], object]] = [
        lambda: Ledger(path, witness=journal),
        lambda: ledger.account("ward", DELTA),
        lambda: ledger.reserve("ward", [EVENT], run_id="run", round=99, budget=UNLIMITED, course=COURSE),
    ]
    for use in uses:
        with pytest.raises(LedgerError, match="cut short"):
            use()


def test_a_witness_that_is_behind_is_no_harm(path: Path, journal: SiteJournal, tmp_path: Path) -> None:
    """Killed between the ledger's commit and the witness's: the next use reads from the checkpoint before."""
    ledger = Ledger(path, witness=journal)
    spend(ledger, 10, budget=UNLIMITED)
    shutil.copytree(journal.path.parent, tmp_path / "before")
    spend(ledger, 6, budget=UNLIMITED)
    behind = SiteJournal(tmp_path / "before" / "journal.sqlite")
    assert (behind.head() or (0, ""))[0] < ledger.head()[0]
    assert charged(Ledger(path, witness=behind)) == 16 * EVENT.steps


def test_a_refused_charge_costs_the_next_use_nothing(
    path: Path, journal: SiteJournal, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(path, witness=journal)
    spend(ledger, 12, budget=UNLIMITED)
    reservation = ledger.reserve("ward", [EVENT], run_id="run", round=50, budget=UNLIMITED, course=COURSE)
    ledger.commit(reservation)
    ledger.head()
    read = rows_read(monkeypatch)
    with pytest.raises(LedgerError, match="committed before"):
        ledger.commit(reservation)
    read.clear()
    assert charged(ledger) == 13 * EVENT.steps
    assert read == []


# Patients' accounts, against the plain rule: a charge is a reservation's events of the patient's tier then.

TIERED = tuple(
    Event(
        mechanism="dp-sgd",
        unit="patient",
        sample_rate=rate,
        noise_multiplier=2.0,
        steps=5,
        max_grad_norm=1.0,
        tier=tier,
    )
    for tier, rate in (("", 0.1), ("strict", 0.05), ("untiered", 0.2))
)
MEMBERS = st.dictionaries(st.sampled_from("abcde"), st.sampled_from(["", "strict"]), max_size=5)
Acts = list[tuple[str, str, dict[str, str] | str]]
CRASH, NOBODY = "the process died", "nobody is named"
ACTS = st.lists(
    st.tuples(
        st.sampled_from(["ward", "clinic"]), st.sampled_from(["x", "y", ""]), st.sampled_from([CRASH, NOBODY]) | MEMBERS
    ),
    max_size=25,
)
Account = Counter[tuple[str, tuple[Event, ...]]]


def entries_of(acts: Acts) -> Iterator[Entry]:
    """A ledger in which each act reserves a round and, unless the process died, declares what the cohort is."""
    count, last = 1, dict[str, tuple[int, dict[str, str]]]()
    bodies: list[tuple[str, dict[str, object]]] = [(GENESIS, {"ledger": "l"})]
    for cohort, course, members in acts:
        bodies.append((RESERVE, {"cohort": cohort, "course": course, "events": [event.to_json() for event in TIERED]}))
        count += 1
        if members == CRASH:
            continue
        body: dict[str, object] = {"cohort": cohort, "identity": "i", "units": 3}
        if isinstance(members, dict):
            known = last.get(cohort)
            body |= {"reservation": count}
            body |= {"as": known[0]} if known is not None and known[1] == members else {"members": members}
            if "members" in body:
                last[cohort] = (count + 1, members)
        bodies += [(COHORT, body), (COMMIT, {"cohort": cohort, "reservation": count})]
        count += 2
    for number, (kind, body) in enumerate(bodies, start=1):
        yield Entry(sequence=number, kind=kind, body=body, previous="", hash=str(number))


def plain_rule(acts: Acts) -> dict[str, Account]:
    """Everybody's account, act by act, as the docstring of `membership` says it."""
    everybody = {name for _, _, members in acts if isinstance(members, dict) for name in members}
    accounts: dict[str, Account] = {name: Counter() for name in everybody}
    seen: dict[str, dict[str, str]] = {"ward": {}, "clinic": {}}
    for place, (cohort, course, members) in enumerate(acts):
        known = isinstance(members, dict)
        if not known and any(later[0] == cohort and later[2] == NOBODY for later in acts[place:]):
            for account in accounts.values():
                account[course, TIERED] += 1
            continue
        present = dict(members) if isinstance(members, dict) else seen[cohort]
        for name, tier in present.items():
            accounts[name][course, tuple(event for event in TIERED if event.tier in ("", tier or "untiered"))] += 1
        seen[cohort] |= present
    return accounts


@settings(deadline=None, max_examples=200)
@given(ACTS, st.integers(0, 6))
def test_every_patient_pays_for_what_they_were_in_however_the_sum_is_kept(acts: Acts, cut: int) -> None:
    whole, kept = Tally(), Tally()
    for number, entry in enumerate(entries_of(acts)):
        whole.add(entry)
        kept.add(entry)
        if number % 7 == cut:
            kept = Tally.load(kept.dump())
    assert whole.dump() == kept.dump()
    expected, membership = plain_rule(acts), kept.membership
    assert set(membership.patients) == set(expected)
    for name, account in expected.items():
        found: Account = Counter()
        for charge in membership.charges(membership.standing(name)):
            found[charge.course, charge.events] += charge.times
        assert found == account
    for cohort in ("ward", "clinic"):
        assert sum(charge.times for charge in kept.charges(cohort)) == sum(act[0] == cohort for act in acts)


def test_reservations_that_were_never_noted_are_kept_apart_for_a_while_and_charged_for_ever() -> None:
    acts: Acts = [("ward", "x", {"a": "", "b": "strict"}), ("ward", "x", {"a": ""})]
    acts += [("ward", "x", CRASH)] * 600 + [("ward", "x", {"a": "", "c": ""})]
    tally = Tally()
    for entry in entries_of(acts):
        tally.add(entry)
    times = {
        name: sum(charge.times for charge in tally.membership.charges(tally.membership.standing(name)))
        for name in "abc"
    }
    assert times == {"a": 603, "b": 601, "c": 1}
    assert len(tally.dump()) < 200_000


def test_a_note_for_what_was_noted_is_refused(path: Path) -> None:
    ledger = Ledger(path)
    reservation = ledger.reserve("ward", [EVENT], run_id="run", round=1, budget=BUDGET, course=COURSE)
    ledger.declare("ward", identity="i", units=1, reservation=reservation, patients={"p": ""}, budget=BUDGET)
    head = ledger.head()
    with pytest.raises(LedgerError, match="was noted before"):
        ledger.declare("ward", identity="i", units=1, reservation=reservation, patients={"q": ""}, budget=BUDGET)
    assert ledger.head() == head
