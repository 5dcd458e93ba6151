"""Where a run's ledger is, and whether it is the whole story: held against the journal before a figure is read."""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from wardpose.server.journal import RunJournal
from wardpose.server.ledger import ServerLedger
from wardpose.server.witness import LedgerWitness
from wardpose.shared.errors import LedgerError
from wardpose.shared.ledger_state import LedgerState, ledger_state


@dataclass(frozen=True, kw_only=True)
class LedgerPlace:
    """The ledger that a run was charged to, for whoever only reads it.

    Attributes:
        path: of its file.
        witness: of its witness; `None` where it has none.

    """

    path: Path
    witness: LedgerWitness | None

    def open(self) -> ServerLedger:
        """Open it for reading.

        Raises:
            LedgerError: it is missing, broken, or not the one that its witness remembers.

        """
        return ServerLedger(self.path, readonly=True, witness=self.witness)


def ledger_of(directory: Path) -> LedgerPlace:
    """Return the ledger of the latest run of a run directory; the directory's own where the journal names none."""
    try:
        runs = RunJournal(directory / "journal.sqlite").runs()
    except sqlite3.Error:
        runs = []
    named, witness = (str(runs[-1].get(key, "")) for key in ("ledger", "witness")) if runs else ("", "")
    return LedgerPlace(
        path=Path(named) if named else directory / "ledger.sqlite",
        witness=LedgerWitness(Path(witness)) if witness else None,
    )


def state_of(directory: Path) -> tuple[LedgerState, str]:
    """Tell what became of the ledger of a run directory; see `ledger_state`."""
    return state_at(directory, ledger_of(directory))


def state_at(directory: Path, place: LedgerPlace) -> tuple[LedgerState, str]:
    """Tell whether a ledger holds what the journal of a run directory knows was paid; see `ledger_state`."""
    journal = RunJournal(directory / "journal.sqlite")
    paid: set[tuple[str, int]] | None = None  # a journal that cannot be read may have known of charges
    try:
        rows = [row for run in journal.runs() for row in journal.sites(run["run"])]
        paid = {(row.run, row.round) for row in rows if row.status == "released"}
    except sqlite3.Error:
        pass
    return ledger_state(place.path, paid, witness=place.witness)


def refuse_lost(directory: Path, place: LedgerPlace | None = None) -> None:
    """Refuse a ledger that is not the whole story; before the first charge there need be none.

    Raises:
        LedgerError: says what became of it.

    """
    _, problem = state_at(directory, place or ledger_of(directory))
    if problem:
        raise LedgerError(problem)
