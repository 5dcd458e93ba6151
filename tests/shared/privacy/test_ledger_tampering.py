"""A ledger that was changed, damaged, replaced or cannot be written says so, at every use."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from support.ledgers import BUDGET, DELTA, EVENT, UNLIMITED, spend

from wardpose.shared.errors import LedgerError
from wardpose.shared.privacy.ledger import Ledger


def tamper(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript("DROP TRIGGER entries_keep; DROP TRIGGER entries_stay;" + ";".join(statements))
    connection.commit()
    connection.close()


SMALLER = "UPDATE entries SET body = replace(body, '\"steps\":5', '\"steps\":1') WHERE sequence = {}"


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ([SMALLER.format(2)], "entry 2 does not continue the chain"),
        ([SMALLER.format(8)], "entry 8 does not continue the chain"),
        (["UPDATE entries SET kind = 'commit' WHERE sequence = 4"], "entry 4 does not continue"),
        (["UPDATE entries SET hash = 'x' WHERE sequence = 9"], "entry 9 does not continue"),
        (["DELETE FROM entries WHERE sequence = 4"], "entry 4 is missing"),
        (["DELETE FROM entries WHERE sequence = 1"], "entry 1 is missing"),
        (["DELETE FROM entries"], "first entry is missing"),
        (
            ["DELETE FROM entries WHERE sequence = 4", "UPDATE entries SET sequence = sequence - 1 WHERE sequence > 4"],
            "entry 4 does not continue",
        ),
        (
            [
                "UPDATE entries SET sequence = 99 WHERE sequence = 2",
                "UPDATE entries SET sequence = 2 WHERE sequence = 4",
                "UPDATE entries SET sequence = 4 WHERE sequence = 99",
            ],
            "entry 2 does not continue",
        ),
        (["INSERT INTO entries SELECT 10, kind, body, previous, hash FROM entries WHERE sequence = 9"], "entry 10"),
        (["DROP TABLE entries"], "table is gone"),
        (["PRAGMA application_id = 7"], "not a Wardpose ledger"),
    ],
)
def test_tampering_is_found_at_every_use(path: Path, statements: list[str], message: str) -> None:
    ledger = Ledger(path)
    spend(ledger, 4)
    tamper(path, *statements)
    uses: list[Callable[[], object]] = [
        ledger.verify,
        lambda: ledger.epsilon("ward", DELTA),
        lambda: ledger.reserve("ward", [EVENT], run_id="run", round=9, budget=BUDGET),
        lambda: Ledger(path),
        lambda: Ledger.open_readonly(path),
    ]
    for use in uses:
        with pytest.raises(LedgerError, match=message):
            use()


def test_rows_cannot_be_changed_by_accident(path: Path) -> None:
    spend(Ledger(path), 1)
    connection = sqlite3.connect(path)
    for statement in ("DELETE FROM entries", "UPDATE entries SET kind = 'commit'"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_a_ledger_cut_short_or_rewritten_is_told_by_a_remembered_head(path: Path, tmp_path: Path) -> None:
    ledger = Ledger(path)
    spend(ledger, 2)
    shutil.copy(path, tmp_path / "backup.sqlite")
    early = ledger.head()
    spend(ledger, 2)
    late = ledger.head()
    ledger.verify(early)
    ledger.verify(late)
    ledger.verify((0, "0" * 64))
    with pytest.raises(LedgerError, match="not the one seen before"):
        ledger.verify((early[0], late[1]))
    shutil.copy(tmp_path / "backup.sqlite", path)  # the classic: restore an old backup to have the budget back
    ledger.verify(early)
    with pytest.raises(LedgerError, match="cut short: 5 entries, but 9 were seen"):
        ledger.verify(late)
    spend(ledger, 2)
    with pytest.raises(LedgerError, match="rewritten"):
        ledger.verify(late)
    path.unlink()
    with pytest.raises(LedgerError, match="is gone, but 9 entries were seen"):
        ledger.verify(late)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"not a ledger at all, but long enough to be one" * 40, "not an SQLite file"), (b"\x89PNG\r\n", "not an SQLite")],
)
def test_foreign_files_are_refused_and_left_alone(path: Path, content: bytes, message: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=message):
        Ledger(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE journal (a)")
    connection.close()
    with pytest.raises(LedgerError, match="not a Wardpose ledger"):
        Ledger(path)


def test_damaged_pages_are_an_error(path: Path) -> None:
    ledger = Ledger(path)
    spend(ledger, 30, budget=UNLIMITED)
    content = bytearray(path.read_bytes())
    for start in range(4096, len(content), 4096):
        content[start : start + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(LedgerError):
        ledger.verify()


def test_a_cut_file_is_an_error(path: Path) -> None:
    ledger = Ledger(path)
    spend(ledger, 30, budget=UNLIMITED)
    os.truncate(path, 8192)
    with pytest.raises(LedgerError):
        ledger.verify()


@pytest.mark.parametrize("size", [0, 4096])
def test_an_emptied_file_is_no_new_ledger(path: Path, size: int) -> None:
    """A full disk, a crashed copy or a clever engineer: what was charged does not go away with the file's content."""
    spend(Ledger(path), 1)
    if size:
        path.unlink()
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.close()
    else:
        os.truncate(path, 0)
    for rest in path.parent.glob("ledger.sqlite-*"):
        rest.unlink()
    before = path.read_bytes()
    for use in (lambda: Ledger(path), lambda: Ledger.open_readonly(path)):
        with pytest.raises(LedgerError, match="empty" if size == 0 else "not a Wardpose ledger"):
            use()
    assert path.read_bytes() == before


class Remembering:
    """A witness in memory."""

    def __init__(self) -> None:
        self.known: tuple[int, str] | None = None

    def head(self) -> tuple[int, str] | None:
        return self.known

    def remember(self, sequence: int, digest: str) -> None:
        if self.known is None or sequence > self.known[0]:
            self.known = (sequence, digest)


@pytest.mark.parametrize("loss", ["deleted", "old backup", "rewritten"])
def test_a_witness_tells_a_lost_ledger_from_a_new_one(path: Path, tmp_path: Path, loss: str) -> None:
    witness = Remembering()
    ledger = Ledger(path, witness=witness)
    spend(ledger, 2)
    shutil.copy(path, tmp_path / "backup.sqlite")
    spend(ledger, 2)
    assert witness.head() == ledger.head()
    path.unlink()
    if loss == "old backup":
        shutil.copy(tmp_path / "backup.sqlite", path)
    elif loss == "rewritten":
        spend(Ledger(path), 6)
    for use in (
        lambda: Ledger(path, witness=witness),
        lambda: ledger.reserve("ward", [EVENT], run_id="run", round=9, budget=UNLIMITED),
        lambda: ledger.epsilon("ward", DELTA),
    ):
        with pytest.raises(LedgerError, match=r"is gone|cut short|rewritten"):
            use()
    assert path.exists() == (loss != "deleted")


def test_folders_that_cannot_be_written_are_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LedgerError, match="file"):
        spend(Ledger(tmp_path / "file" / "ledger.sqlite"), 1)
    (tmp_path / "folder.sqlite").mkdir()
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(tmp_path / "folder.sqlite")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_readonly_files_are_a_clear_error(path: Path) -> None:
    ledger = Ledger(path)
    spend(ledger, 1)
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        with pytest.raises(LedgerError, match=r"read-only|cannot be opened"):
            spend(ledger, 1)
        assert Ledger.open_readonly(path).events("ward") == (EVENT,)
    finally:
        path.parent.chmod(0o700)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -float("inf"), -1.0, 1e30])
def test_a_clock_that_shows_no_time_is_an_error_and_charges_nothing(path: Path, seconds: float) -> None:
    with pytest.raises(LedgerError, match="the clock says"):
        spend(Ledger(path, clock=lambda: seconds), 1)
    assert not path.exists()
    spend(Ledger(path, clock=lambda: 2e9), 1)
    spend(Ledger(path, clock=lambda: 1e9), 1)  # set back: later is what stands later
    before = Ledger(path).head()
    with pytest.raises(LedgerError, match="the clock says"):
        spend(Ledger(path, clock=lambda: seconds), 1)
    assert Ledger(path).head() == before
