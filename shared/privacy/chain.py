"""An append-only chain of entries in one SQLite file: what makes a ledger durable and tampering visible.

Every entry holds the hash of the one before it. Appending happens inside `BEGIN IMMEDIATE`, with a write-ahead log and
`synchronous=FULL`: when a transaction returns, it is on the disk; a process killed inside one has written nothing.
No connection and no cache outlives a call.

A file is made whole, first entry included, under another name: one that is there and holds no entry was emptied by
something else, and is refused. Who deletes the file, or puts an old copy in its place, leaves a valid chain behind (or
none). A *witness*, kept in another file, remembers the last head of every transaction and is asked at every opening.
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
from typing import Any, Protocol

from wardpose.shared.errors import LedgerError

GENESIS, COHORT, RESERVE, COMMIT = "genesis", "cohort", "reserve", "commit"
_KINDS = (GENESIS, COHORT, RESERVE, COMMIT)
_APPLICATION_ID = 0x57504C31  # "WPL1", in the header of every ledger file
_VERSION = 2  # in the first entry: what entries mean
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


class Witness(Protocol):
    """Remembers a chain's head in a place of its own."""

    def head(self) -> tuple[int, str] | None:
        """Return the newest head that was remembered, `None` before the first."""
        ...

    def remember(self, sequence: int, digest: str) -> None:
        """Keep a head, durably; never an older one than is known."""
        ...


class Chain:
    """One file; made, with its folder, by the first transaction.

    Attributes:
        path: of the SQLite file.
        readonly: whether writing is refused.

    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        readonly: bool = False,
        witness: Witness | None = None,
    ) -> None:
        self.path = path
        self.readonly = readonly
        self._clock = clock
        self._witness = witness

    def entries(self) -> tuple[Entry, ...]:
        """Every entry, in order, after checking the whole chain.

        Raises:
            LedgerError: the file is no ledger, is damaged, or was tampered with.

        """
        if not self.path.exists():
            self._compare(())
            return ()
        with self._connect() as connection:
            return self._compare(self._read(connection))

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
        if expected_head is not None:
            self._continues(entries, expected_head)

    def _compare(self, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        """Hold the chain against what the witness remembers."""
        known = None if self._witness is None else self._witness.head()
        if known is not None:
            self._continues(entries, known)
        return entries

    def _continues(self, entries: Sequence[Entry], head: tuple[int, str]) -> None:
        sequence, expected = head
        if sequence and not entries:
            raise LedgerError(
                f"{self.path}: is gone, but {sequence} entries were seen before; what they charged stays charged "
                "(restore the newest backup)"
            )
        if len(entries) < sequence:
            raise LedgerError(
                f"{self.path}: cut short: {len(entries)} entries, but {sequence} were seen before "
                "(an old backup? restore the newest)"
            )
        if sequence and entries[sequence - 1].hash != expected:
            raise LedgerError(f"{self.path}: entry {sequence} is not the one seen before; the ledger was rewritten")

    @contextlib.contextmanager
    def transaction(self) -> Iterator["Appender"]:
        """Hold the write lock; what was appended is durable afterwards, or gone if the block raises."""
        if self.readonly:
            raise LedgerError(f"{self.path}: opened read-only")
        if not self.path.exists():
            self._compare(())
            self._create()
        with self._connect() as connection:
            connection.execute("BEGIN IMMEDIATE")
            appender = Appender(connection, list(self._compare(self._read(connection))), int(self._clock()))
            yield appender
            connection.execute("COMMIT")
        if self._witness is not None:
            self._witness.remember(*head_of(appender.entries))

    def _create(self) -> None:
        """Make the file with its first entry under a name of its own, then give it the ledger's name at once."""
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
                temporary.chmod(0o600)
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA:
                    connection.execute(statement)
                Appender(connection, [], int(self._clock()))(
                    GENESIS, {"ledger": secrets.token_hex(16), "version": _VERSION}
                )
                connection.execute("COMMIT")
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(temporary, self.path)
            _sync_folder(self.path.parent)
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(f"{self.path}: {_advice(error)}") from error
        finally:
            for rest in (temporary, temporary.with_name(f"{temporary.name}-journal")):
                with contextlib.suppress(OSError):
                    rest.unlink()

    def _read(self, connection: sqlite3.Connection) -> tuple[Entry, ...]:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if application != _APPLICATION_ID:
            raise LedgerError(f"{self.path}: an SQLite file, but not a Wardpose ledger")
        rows = connection.execute("SELECT sequence, kind, body, previous, hash FROM entries ORDER BY sequence")
        return _checked(rows.fetchall(), self.path)

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        connection: sqlite3.Connection | None = None
        try:
            if self.path.is_file() and self.path.stat().st_size == 0:
                raise LedgerError(
                    f"{self.path}: empty; a ledger never is once it was made (restore the newest backup; "
                    "delete the file only if no order was ever carried out here)"
                )
            if self.readonly:
                connection = sqlite3.connect(_readonly_uri(self.path), uri=True, timeout=_READ_PATIENCE)
            else:
                connection = sqlite3.connect(
                    f"{self.path.absolute().as_uri()}?mode=rw", uri=True, timeout=_PATIENCE, isolation_level=None
                )
                _set_journal(connection)
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA wal_autocheckpoint = 1")
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
        if (kind == GENESIS) != (sequence == 1) or kind not in _KINDS:
            raise LedgerError(f"{where} is of kind {kind!r}, which does not belong there")
        body = json.loads(text)
        if kind == GENESIS and body.get("version") != _VERSION:
            raise LedgerError(
                f"{path}: is a ledger of version {body.get('version')!r:.20} (this code reads version {_VERSION}); "
                "what it charged stays charged: read it with the release that wrote it"
            )
        entries.append(Entry(sequence=sequence, kind=kind, body=body, previous=previous, hash=digest))
    if not entries:
        raise LedgerError(f"{path}: its first entry is missing; the ledger was tampered with")
    return tuple(entries)


def _hash(sequence: int, kind: str, text: str, previous: str) -> str:
    return hashlib.sha256(json.dumps([sequence, kind, text, previous]).encode()).hexdigest()


def head_of(entries: Sequence[Entry]) -> tuple[int, str]:
    """Sequence number and hash of the last entry, (0, 64 zeros) where there is none.

    Examples:
        >>> head_of([]) == (0, 64 * "0")
        True

    """
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
