"""What became of a ledger's file, for everybody who only reads it: a lost one is not a new one.

A ledger that is gone, empty, locked, broken or put back from an old backup looks, at first sight, like that of somebody
who was never charged. A journal lies in another file and knows which rounds were paid for.
"""

import sqlite3
from collections.abc import Set
from pathlib import Path
from typing import Literal, get_args

from wardpose.shared.errors import LedgerError
from wardpose.shared.files import size_of
from wardpose.shared.privacy.chain import Witness
from wardpose.shared.privacy.entries import RESERVE
from wardpose.shared.privacy.expiry import verify_expiries
from wardpose.shared.privacy.ledger import Ledger

LedgerState = Literal["ok", "none", "missing", "empty", "locked", "broken", "rolled-back"]
LEDGER_STATES: tuple[LedgerState, ...] = get_args(LedgerState)


def ledger_state(
    path: Path, paid: Set[tuple[str, int]] | None, *, witness: Witness | None = None
) -> tuple[LedgerState, str]:
    """Tell what became of a ledger, without writing anything.

    Args:
        path: of the ledger.
        paid: run and round of everything that a journal knows was charged; `None` where it cannot be read.
        witness: remembers the ledger's head, where it has one; a ledger behind it was rolled back.

    Returns:
        `none` (nothing was ever charged), `ok`, or what is wrong; and then a sentence that names the file.

    """
    restore = "restore the newest backup"
    try:
        known = None if witness is None else witness.head()  # before the rows: they only become more
    except LedgerError as error:
        return "broken", str(error)
    if not path.exists():
        if paid is None or paid or (known is not None and known[0]):
            return "missing", f"{path}: is gone, but rounds were charged to it, and stay charged ({restore})"
        return "none", ""
    try:
        if size_of(path) == 0 and not size_of(path.with_name(f"{path.name}-wal")):
            return "empty", f"{path}: empty; a ledger never is once it was made ({restore})"
        ledger = Ledger.open_readonly(path)
        ledger.verify()
        entries = ledger.entries()
        verify_expiries(entries)
    except (LedgerError, OSError) as error:
        locked = isinstance(error.__cause__, sqlite3.OperationalError) and "locked" in str(error.__cause__)
        return "locked" if locked else "broken", str(error)
    if not entries:
        return "empty", f"{path}: empty; it holds no entry ({restore})"
    if known is not None and known[0] and (len(entries) < known[0] or entries[known[0] - 1].hash != known[1]):
        seen = f"its witness has seen {known[0]} entries, the last of which is not there"
        return "rolled-back", f"{path}: rolled back: {seen} ({restore})"
    charged = {(str(entry.body["run"]), int(entry.body["round"])) for entry in entries if entry.kind == RESERVE}
    for run, number in sorted((paid or set()) - charged):
        return "rolled-back", f"{path}: rolled back: it lacks round {number} of run {run!r}, which was paid ({restore})"
    return "ok", ""
