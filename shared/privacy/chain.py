"""An append-only chain of entries in one SQLite file: what makes a ledger durable and tampering visible.

Every entry holds the hash of the one before it. Appending happens inside `BEGIN IMMEDIATE`, with a write-ahead log and
`synchronous=FULL`: when a transaction returns, it is on the disk; a process killed inside one has written nothing.
No connection and no cache outlives a call.
"""

import contextlib
import hashlib
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wardpose.shared.errors import LedgerError

GENESIS, COHORT, RESERVE, COMMIT = "genesis", "cohort", "reserve", "commit"
_APPLICATION_ID = 0x57504C31  # "WPL1", in the header of every ledger file
_PATIENCE = 120.0  # seconds to wait for another process's transaction
_READ_PATIENCE = 2.0  # readers do not wait for writers; a file that is locked as a whole is soon given up
_SCHEMA = (
    "CREATE TABLE entries (sequence INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, "
    "previous TEXT NOT NULL, hash TEXT NOT NULL) STRICT",
    "CREATE TRIGGER entries_keep BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END",
    "CREATE TRIGGER entries_stay BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END",
    f"PRAGMA application_id = {_APPLICATION_ID}",
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row.

    Attributes:
        sequence: 1 for the first, without gaps.
        kind: `genesis`, `cohort`, `reserve` or `commit`.
        body: what it says, plain JSON values.
        previous: hash of the entry before it, 64 zeros for the first.
        hash: hexadecimal SHA-256 over all of the above.

    """

    sequence: int
    kind: str
    body: Mapping[str, Any]
    previous: str
    hash: str


class Chain:
    """One file; made, with its folder, by the first transaction.

    Attributes:
        path: of the SQLite file.
        readonly: whether writing is refused.

    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time, readonly: bool = False) -> None:
        self.path = path
        self.readonly = readonly
        self._clock = clock

    def entries(self) -> tuple[Entry, ...]:
        """Every entry, in order, after checking the whole chain.

        Raises:
            LedgerError: the file is no ledger, is damaged, or was tampered with.

        """
        if not self.path.exists():
            return ()
        with self._connect() as connection:
            return self._read(connection)

    def verify(self, expected_head: tuple[int, str] | None = None) -> None:
        """Check the file's pages, the chain, and that the chain still contains a head that was seen before.

        Raises:
            LedgerError: says what is wrong.

        """
        entries = self.entries()
        if self.path.exists():
            with self._connect() as connection:
                problems = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
            if problems != ["ok"]:
                raise LedgerError(f"{self.path}: damaged: {'; '.join(problems)}")
        if expected_head is None or expected_head[0] == 0:
            return
        sequence, expected = expected_head
        if len(entries) < sequence:
            raise LedgerError(f"{self.path}: cut short: {len(entries)} entries, but {sequence} were seen before")
        if entries[sequence - 1].hash != expected:
            raise LedgerError(f"{self.path}: entry {sequence} is not the one seen before; the ledger was rewritten")

    @contextlib.contextmanager
    def transaction(self) -> Iterator["Appender"]:
        """Hold the write lock; what was appended is durable afterwards, or gone if the block raises."""
        if self.readonly:
            raise LedgerError(f"{self.path}: opened read-only")
        with self._connect() as connection:
            connection.execute("BEGIN IMMEDIATE")
            appender = Appender(connection, list(self._read(connection)), int(self._clock()))
            if not appender.entries:
                for statement in _SCHEMA:
                    connection.execute(statement)
                appender(GENESIS, {"ledger": secrets.token_hex(16), "version": 1})
            yield appender
            connection.execute("COMMIT")

    def _read(self, connection: sqlite3.Connection) -> tuple[Entry, ...]:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application == 0 and tables == 0:
            return ()  # created, and killed before the first transaction
        if application != _APPLICATION_ID:
            raise LedgerError(f"{self.path}: an SQLite file, but not a Wardpose ledger")
        rows = connection.execute("SELECT sequence, kind, body, previous, hash FROM entries ORDER BY sequence")
        return _checked(rows.fetchall(), self.path)

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        connection: sqlite3.Connection | None = None
        try:
            if self.readonly:
                connection = sqlite3.connect(_readonly_uri(self.path), uri=True, timeout=_READ_PATIENCE)
            else:
                created = not self.path.exists()
                self.path.parent.mkdir(parents=True, exist_ok=True)
                connection = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)
                _set_journal(connection)
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA wal_autocheckpoint = 1")
                if created:
                    _sync_folder(self.path.parent)
            yield connection
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
            patience = _READ_PATIENCE if self.readonly else _PATIENCE
            raise LedgerError(f"{self.path}: {_advice(error, patience)}") from error
        finally:
            if connection is not None:
                connection.close()  # rolls back what was not committed


class Appender:
    """Adds entries to the chain inside a transaction."""

    def __init__(self, connection: sqlite3.Connection, entries: list[Entry], now: int) -> None:
        self._connection = connection
        self._now = now
        self.entries = entries

    def __call__(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """Add an entry; durable when the transaction ends without an error."""
        count, previous = head_of(self.entries)
        # The nonce tells a repeated history from the history itself.
        stamped = {**body, "time": self._now, "nonce": secrets.token_hex(8)}
        text = json.dumps(stamped, sort_keys=True, separators=(",", ":"), allow_nan=False)
        entry = Entry(
            sequence=count + 1,
            kind=kind,
            body=json.loads(text),
            previous=previous,
            hash=_hash(count + 1, kind, text, previous),
        )
        self._connection.execute(
            "INSERT INTO entries VALUES (?, ?, ?, ?, ?)", (entry.sequence, kind, text, previous, entry.hash)
        )
        self.entries.append(entry)
        return entry


def _checked(rows: Sequence[tuple[int, str, str, str, str]], path: Path) -> tuple[Entry, ...]:
    """Check every row against the one before it.

    Raises:
        LedgerError: names the first row that does not fit.

    """
    entries: list[Entry] = []
    for sequence, kind, text, previous, digest in rows:
        count, head = head_of(entries)
        where = f"{path}: entry {sequence}"
        if sequence != count + 1:
            raise LedgerError(f"{path}: entry {count + 1} is missing; the next one is {sequence}")
        if previous != head or digest != _hash(sequence, kind, text, previous):
            raise LedgerError(f"{where} does not continue the chain; the ledger was tampered with")
        if (kind == GENESIS) != (sequence == 1) or kind not in (GENESIS, COHORT, RESERVE, COMMIT):
            raise LedgerError(f"{where} is of kind {kind!r}, which does not belong there")
        entries.append(Entry(sequence=sequence, kind=kind, body=json.loads(text), previous=previous, hash=digest))
    if not entries:
        raise LedgerError(f"{path}: its first entry is missing; the ledger was tampered with")
    return tuple(entries)


def _hash(sequence: int, kind: str, text: str, previous: str) -> str:
    return hashlib.sha256(json.dumps([sequence, kind, text, previous]).encode()).hexdigest()


def head_of(entries: Sequence[Entry]) -> tuple[int, str]:
    """Sequence number and hash of the last entry, (0, 64 zeros) where there is none."""
    return (len(entries), entries[-1].hash) if entries else (0, "0" * 64)


def _set_journal(connection: sqlite3.Connection) -> None:
    """Switch to the write-ahead log. SQLite does not wait for other connections here, so we do."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            if mode != "wal":
                raise sqlite3.OperationalError(f"this file system allows no write-ahead log (journal mode {mode})")
            return


def _readonly_uri(path: Path) -> str:
    """Readers share memory in a file beside the ledger; where they may not make it, a settled ledger is read alone."""
    log = path.with_name(f"{path.name}-wal")
    settled = not log.exists() or log.stat().st_size == 0
    alone = settled and not os.access(path.parent, os.W_OK)
    return f"{path.absolute().as_uri()}?{'immutable=1' if alone else 'mode=ro'}"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _advice(error: Exception, patience: float = _PATIENCE) -> str:
    """Say what to do about an error; `patience` is how many seconds a lock was waited for."""
    text = str(error)
    for part, advice in {
        "full": "the disk is full; nothing was written",
        "readonly": "the file or its folder is read-only; nothing was written",
        "unable to open": "cannot be opened; is its folder there, and are you allowed to write to it?",
        "disk I/O": "the disk refused; nothing was written",
        "locked": f"another process held it for more than {patience:.0f} s",
        "not a database": "not an SQLite file, so not a ledger",
        "malformed": "damaged",
        "no such": "damaged: its table is gone",
    }.items():
        if part in text:
            return f"{advice} ({text})"
    return text
