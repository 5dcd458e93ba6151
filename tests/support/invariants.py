"""What holds after every crash, whatever was going on: nothing leaves unpaid, and both sides know what was spent."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from wardpose.client.journal import SiteJournal
from wardpose.server.heads import Heads
from wardpose.shared.messages import SiteRelease
from wardpose.shared.privacy.entries import COMMIT, EXPIRE, RESERVE, Entry
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.signing import load_public_key
from wardpose.shared.site_config import load_site


@dataclass(frozen=True, kw_only=True)
class Left:
    """A release at the moment it left."""

    site: str
    run: str
    round: int
    steps: int
    sequence: int
    head: str

    @classmethod
    def of(cls, release: SiteRelease) -> "Left":
        """Take what matters out of a release."""
        return cls(
            site=release.site,
            run=release.run,
            round=release.round,
            steps=release.steps,
            sequence=release.ledger_sequence,
            head=release.ledger_head,
        )


def open_site_ledger(config: Path) -> Ledger:
    """Open and check a site's ledger: pages, chain, the head that its journal remembers, and the site's signatures."""
    site = load_site(config)
    witness = SiteJournal(site.state / "journal.sqlite")
    ledger = Ledger(site.ledger, witness=witness)
    ledger.verify(witness.head())
    if site.ledger.exists():
        signed, unsigned = ledger.check_signatures(load_public_key(config.parent / "node.pub"))
        assert signed > 0 == unsigned, f"{unsigned} rows are not signed by the site"
    return ledger


def nothing_left_unpaid(ledger: Ledger, left: Iterable[Left]) -> None:
    """Each release has a reservation of its own that was committed before it left (`open_site_ledger`: and signed)."""
    entries = ledger.entries() if ledger.path.exists() else ()
    reserved = {entry.sequence: entry for entry in entries if entry.kind == RESERVE}
    committed = {int(entry.body["reservation"]): entry for entry in entries if entry.kind == COMMIT}
    used: set[int] = set()
    for release in left:
        assert 0 < release.sequence <= len(entries), f"{release} is ahead of the ledger's {len(entries)} entries"
        assert entries[release.sequence - 1].hash == release.head, f"{release} states another ledger"
        own = [
            number
            for number, entry in reserved.items()
            if number not in used
            and (entry.body["run"], entry.body["round"]) == (release.run, release.round)
            and number in committed
            and committed[number].sequence <= release.sequence
            and sum(event["steps"] for event in entry.body["events"]) == release.steps
        ]
        assert own, f"{release} was not paid for"
        used.add(own[-1])


def nothing_left_uncharged(ledger: Ledger, site: str, left: Iterable[Left]) -> None:
    """A server charged a site for each release that left it: round for round, tries that were lost included."""
    charged, sent = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
    for entry in standing(ledger, site):
        charged[entry.body["run"], entry.body["round"]] += sum(event["steps"] for event in entry.body["events"])
    for release in left:
        sent[release.run, release.round] += release.steps
    for key, steps in sent.items():
        assert charged[key] >= steps, f"{site}: {steps} steps left in {key}, the server knows of {charged[key]}"


def standing(ledger: Ledger, cohort: str) -> list[Entry]:
    """A cohort's reservations that no signed word has taken back."""
    entries = ledger.entries() if ledger.path.exists() else ()
    gone = {entry.body["reservation"] for entry in entries if entry.kind == EXPIRE}
    own = [entry for entry in entries if entry.kind == RESERVE and entry.body["cohort"] == cohort]
    return [entry for entry in own if entry.sequence not in gone]


def steps_in(ledger: Ledger, cohort: str, run: str | None = None) -> int:
    """Steps that a ledger charges a cohort, for a run or in all."""
    return _steps(entry for entry in standing(ledger, cohort) if run in (None, entry.body["run"]))


def shows_all(shown: int, ledger: Ledger, site: str, run: str) -> None:
    """What a journal shows of a run is what was charged when its rows were written: later words may take some back."""
    ever = _steps(
        entry
        for entry in ledger.entries()
        if entry.kind == RESERVE and entry.body["cohort"] == site and entry.body["run"] == run
    )
    assert steps_in(ledger, site, run) <= shown <= ever, f"{site}: {shown} steps are shown, {ever} were charged"


def _steps(entries: Iterable[Entry]) -> int:
    return sum(event["steps"] for entry in entries for event in entry.body["events"])


def agrees(heads: Heads, site: str, ledger: Ledger) -> None:
    """The last head that a server believes is in the site's ledger."""
    known = heads.last(site)
    if known is not None:
        ledger.verify(known)


def no_leftovers(folder: Path) -> None:
    """No temporary file is left: what is there has the name of something that is read again."""
    left = [
        path
        for path in folder.rglob("*")
        if path.is_file() and (path.name.startswith(".") or path.name.endswith(("-journal", ".tmp", ".part")))
    ]
    assert not left, f"left behind: {left}"
