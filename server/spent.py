"""Whether the server's ledger is the whole story: held against the run journal before a figure is read off it."""

import sqlite3
from pathlib import Path

from wardpose.server.journal import RunJournal
from wardpose.shared.errors import LedgerError
from wardpose.shared.ledger_state import LedgerState, ledger_state


def state_of(directory: Path) -> tuple[LedgerState, str]:
    """Tell what became of the ledger of a run directory; see `ledger_state`."""
    journal = RunJournal(directory / "journal.sqlite")
    paid: set[tuple[str, int]] | None = None  # a journal that cannot be read may have known of charges
    try:
        rows = [row for run in journal.runs() for row in journal.sites(run["run"])]
        paid = {(row.run, row.round) for row in rows if row.status == "released"}
    except sqlite3.Error:
        pass
    return ledger_state(directory / "ledger.sqlite", paid)


def refuse_lost(directory: Path) -> None:
    """Refuse a ledger that is not the whole story; before the first charge there need be none.

    Raises:
        LedgerError: says what became of it.

    """
    _, problem = state_of(directory)
    if problem:
        raise LedgerError(problem)
