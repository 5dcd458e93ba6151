"""A ledger that another process holds: what is said of it, and after how long."""

import sqlite3
from pathlib import Path

import pytest
from support.ledgers import spend

from wardpose.shared.errors import LedgerError
from wardpose.shared.privacy.chain import _PATIENCE, _READ_PATIENCE, _advice
from wardpose.shared.privacy.ledger import Ledger


@pytest.mark.parametrize(("readonly", "seconds"), [(True, "2 s"), (False, "120 s")])
def test_a_lock_is_said_to_have_been_waited_for_as_long_as_it_was(readonly: bool, seconds: str) -> None:
    patience = _READ_PATIENCE if readonly else _PATIENCE
    assert f"for more than {seconds}" in _advice(sqlite3.OperationalError("database is locked"), patience)


def test_a_reader_of_a_locked_ledger_says_how_long_it_waited(path: Path) -> None:
    spend(Ledger(path), 1)
    lock = sqlite3.connect(path, isolation_level=None)
    try:
        lock.execute("PRAGMA locking_mode = EXCLUSIVE")
        lock.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LedgerError, match="another process held it for more than 2 s"):
            Ledger.open_readonly(path)
    finally:
        lock.close()
