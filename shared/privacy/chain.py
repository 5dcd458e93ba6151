"""An append-only chain of entries in one SQLite file: what makes a ledger durable and tampering visible.

Every entry holds the hash of the one before it. Appending happens inside `BEGIN IMMEDIATE`, with a write-ahead log and
`synchronous=FULL`: when a transaction returns, it is on the disk; a process killed inside one has written nothing.
No connection outlives a call.

A file is made whole, first entry included, under another name: one that is there and holds no entry was emptied by
something else, and is refused. Who deletes the file, or puts an old copy in its place, leaves a valid chain behind (or
none). A *witness*, kept in another file, remembers the last head of every transaction and is asked at every opening.

**What is read.** A use needs the sum of all entries (`tally`), and must not take the sum's word for it. Up to a few
hundred entries the whole chain is read and checked at every use. In a longer one, every so often a *checkpoint* is an
entry that holds the hash of the sum before it, and the sum's text is kept beside the chain. A use then reads on

* from what this process itself had checked up to an entry that is still there, or
* from the newest checkpoint at or before the head that the witness remembers, if the text has the hash that the
  checkpoint states: the entries from there to the witness's head are read and checked, so the checkpoint is the one
  that was there when the witness looked. A checkpoint behind that head (one that somebody appended) is never believed.

Without either, from the first entry. Reading over a checkpoint compares it with the sum of what was read, so a false
one is found. What was changed *before* a checkpoint that is believed changes no sum; `verify` and `entries` find it,
for they always read everything.
"""

import contextlib
import json
import os
import secrets
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from wardpose.shared.errors import LedgerError
from wardpose.shared.files import private_folder, size_of
from wardpose.shared.privacy.entries import (
    CHECKPOINT,
    COMMIT,
    GENESIS,
    KEY,
    NOTHING,
    RESERVE,
    VERSION,
    Entry,
    Row,
    entry_hash,
    next_entry,
)
from wardpose.shared.privacy.row_signatures import check_all, check_row, sign_rows, signature_of
from wardpose.shared.privacy.tally import FORM, Tally, text_digest
from wardpose.shared.signing import PublicKey, Signer
from wardpose.shared.sqlite import keep_database_private, making, sweep

_APPLICATION_ID = 0x57504C31  # "WPL1", in the header of every ledger file
_PATIENCE = 120.0  # seconds to wait for another process's transaction
_READ_PATIENCE = 2.0  # readers do not wait for writers; a file that is locked as a whole is soon given up
_YEAR_10000 = 253_402_300_800
_SCHEMA = (
    "CREATE TABLE entries (sequence INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, "
    "previous TEXT NOT NULL, hash TEXT NOT NULL) STRICT",
    "CREATE TRIGGER entries_keep BEFORE DELETE ON entries BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END",
    "CREATE TRIGGER entries_stay BEFORE UPDATE ON entries BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END",
    f"PRAGMA application_id = {_APPLICATION_ID}",
)
_SUMS = "CREATE TABLE IF NOT EXISTS sums (sequence INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT"
_COLUMNS = "SELECT sequence, kind, body, previous, hash FROM entries"
_SPACING = 256  # least number of entries between checkpoints
_BYTES_AN_ENTRY = 512  # the larger the sum, the rarer: reading it takes as long as reading so many entries


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
        signer: Signer | None = None,
    ) -> None:
        self.path = path
        self.readonly = readonly
        self._clock = clock
        self._witness = witness
        self._signer = signer
        self._signed = NOTHING  # head whose signature this process has checked
        self._checked: deque[Tally] = deque(maxlen=1)  # of this process; whoever works with it has taken it out

    def entries(self) -> tuple[Entry, ...]:
        """Every entry, in order, after checking the whole chain.

        Raises:
            LedgerError: the file is no ledger, is damaged, or was tampered with.

        """
        found: list[Entry] = []
        self._read_all(found.append)
        return tuple(found)

    def verify(self, expected_head: tuple[int, str] | None = None) -> None:
        """Check the file's pages, the chain, and that the chain still contains a head that was seen before.

        Raises:
            LedgerError: says what is wrong.

        """
        tally = self._read_all(lambda entry: None)
        if self.path.exists():
            with self._connect() as connection:
                problems = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
                seen = NOTHING if expected_head is None else _hash_at(connection, expected_head[0])
            if problems != ["ok"]:
                raise LedgerError(
                    f"{self.path}: damaged: {'; '.join(' '.join(problem.split()) for problem in problems)}"
                )
        else:
            seen = NOTHING
        if expected_head is not None:
            self._continues(tally.count, expected_head, seen)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Tally]:
        """Give what the entries add up to; not to be changed.

        Raises:
            LedgerError: the file is no ledger, is damaged, or was tampered with.

        """
        if not self.path.exists():
            self._gone()
            yield Tally()
            return
        with self._connect() as connection:
            tally = self._tally(connection)
        try:
            yield tally
        finally:
            self._keep(tally)

    @contextlib.contextmanager
    def lately(self) -> Iterator[Tally | None]:
        """Give what the entries added up to when this process last looked, if it keeps that; nothing to rely on."""
        try:
            tally = self._checked.pop()
        except IndexError:
            yield None
            return
        try:
            yield tally
        finally:
            self._keep(tally)

    def renew_key(self, signer: Signer, why: str) -> Entry:
        """Let another key sign from here on, whoever signed the rows before.

        Raises:
            LedgerError: there is no ledger, or the key signs already.

        """
        if not self.path.exists():
            raise LedgerError(f"{self.path}: there is no ledger")
        with self.reading() as tally, self._connect() as connection:
            found = signature_of(connection, tally.count)
        if found is not None and found[0] == signer.public.fingerprint:
            raise LedgerError(f"{self.path}: is signed by this key already")
        self._signer = signer
        with self.transaction(signed=False) as append:
            return append(KEY, {"key": signer.public.text, "why": why})

    def check_signatures(self, key: PublicKey) -> tuple[int, int]:
        """Check the whole chain, that its last row is a key's, and every signature that this key made.

        Returns:
            How many rows it signed, and how many it did not.

        Raises:
            LedgerError: says what is wrong.

        """
        tally = self._read_all(lambda entry: None)
        with self._connect() as connection:
            try:
                check_row(connection, tally.count, tally.head, key)
                return check_all(connection, key)
            except LedgerError as error:
                raise LedgerError(f"{self.path}: {error}") from error

    @contextlib.contextmanager
    def transaction(self, *, signed: bool = True) -> Iterator["Appender"]:
        """Hold the write lock; what was appended is durable afterwards, or gone if the block raises.

        Args:
            signed: whether the rows before must be signed by the key that signs the new ones.

        """
        if self.readonly:
            raise LedgerError(f"{self.path}: opened read-only")
        if not self.path.exists():
            self._gone()
            self._create()
        else:
            sweep(self.path)
            keep_database_private(self.path)
        with self._connect() as connection:
            connection.execute("BEGIN IMMEDIATE")
            tally = self._tally(connection, signed=signed)
            appender = Appender(connection, tally, self._now())
            try:
                yield appender
                appender.checkpoint_when_due()
                if self._signer is not None:
                    sign_rows(connection, appender.added, self._signer)
                connection.execute("COMMIT")
            except BaseException:
                if not appender.added:
                    self._keep(tally)
                raise
        if self._witness is not None:
            self._witness.remember(tally.count, tally.head)
        if self._signer is not None and appender.added:
            self._signed = tally.head
        self._keep(tally)

    def month(self, tally: Tally) -> str:
        """Return the month that an entry added now would belong to."""
        return tally.month(self._now())

    def _keep(self, tally: Tally) -> None:
        """Remember what was checked, where reading it all again would take long."""
        if tally.count >= _SPACING:
            self._checked.append(tally)

    def _gone(self) -> None:
        """Refuse a file that is not there any more."""
        known = None if self._witness is None else self._witness.head()
        if known is not None:
            self._continues(0, known, NOTHING)

    def _read_all(self, use: Callable[[Entry], None]) -> Tally:
        if not self.path.exists():
            self._gone()
            return Tally()
        with self._connect() as connection:
            self._must_be_ledger(connection)
            return self._read(connection, Tally(), None if self._witness is None else self._witness.head(), use)

    def _tally(self, connection: sqlite3.Connection, *, signed: bool = True) -> Tally:
        self._must_be_ledger(connection)
        known = None if self._witness is None else self._witness.head()  # before the rows: they only become more
        start = self._of_this_process(connection) or self._of_checkpoint(connection, known) or Tally()
        tally = self._read(connection, start, known)
        if signed and self._signer is not None and self._signed != tally.head:
            try:
                check_row(connection, tally.count, tally.head, self._signer.public)
            except LedgerError as error:
                raise LedgerError(f"{self.path}: {error}") from error
            self._signed = tally.head
        return tally

    def _read(
        self,
        connection: sqlite3.Connection,
        tally: Tally,
        known: tuple[int, str] | None,
        use: Callable[[Entry], None] = lambda entry: None,
    ) -> Tally:
        """Go on from a tally to the last entry, checking each, and hold the chain against what the witness knows."""
        for row in connection.execute(f"{_COLUMNS} WHERE sequence > ? ORDER BY sequence", (tally.count,)):
            entry = next_entry(row, tally.count, tally.head, self.path)
            try:
                tally.add(entry)
            except LedgerError as error:
                raise LedgerError(f"{self.path}: {error}") from error
            use(entry)
        if not tally.count:
            raise LedgerError(f"{self.path}: its first entry is missing; the ledger was tampered with")
        if known is not None:
            self._continues(tally.count, known, _hash_at(connection, known[0]))
        return tally

    def _of_this_process(self, connection: sqlite3.Connection) -> Tally | None:
        """Return what this process has checked, if the file still has its last entry."""
        try:
            tally = self._checked.pop()
        except IndexError:
            return None
        return tally if _hash_at(connection, tally.count) == tally.head else None

    def _of_checkpoint(self, connection: sqlite3.Connection, known: tuple[int, str] | None) -> Tally | None:
        """Return the sum at the newest checkpoint that the witness has seen, if what is kept of it can be relied on."""
        if known is None:
            return None
        try:
            query = "SELECT sequence, text FROM sums WHERE sequence <= ? ORDER BY sequence DESC LIMIT 1"
            sequence, text = connection.execute(query, (known[0],)).fetchone() or (0, "")
            row: Row | None = connection.execute(f"{_COLUMNS} WHERE sequence = ?", (sequence,)).fetchone()
            if row is None:
                return None
            tally = Tally.load(text)
            entry = next_entry(row, tally.count, tally.head, self.path)
            if (entry.kind, entry.body.get("form")) != (CHECKPOINT, FORM) or entry.body["state"] != text_digest(text):
                return None
            tally.add(entry)
        except (sqlite3.OperationalError, LedgerError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            return None  # reading everything finds what is wrong, if anything is
        return tally

    def _continues(self, count: int, head: tuple[int, str], found: str) -> None:
        sequence, expected = head
        if sequence and not count:
            raise LedgerError(
                f"{self.path}: is gone, but {sequence} entries were seen before; what they charged stays charged "
                "(restore the newest backup)"
            )
        if count < sequence:
            raise LedgerError(
                f"{self.path}: cut short: {count} entries, but {sequence} were seen before "
                "(an old backup? restore the newest)"
            )
        if sequence and found != expected:
            raise LedgerError(f"{self.path}: entry {sequence} is not the one seen before; the ledger was rewritten")

    def _create(self) -> None:
        """Make the file with its first entry under a name of its own, then give it the ledger's name at once."""
        try:
            private_folder(self.path.parent)
            with making(self.path) as connection:
                connection.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA:
                    connection.execute(statement)
                append = Appender(connection, Tally(), self._now())
                append(GENESIS, {"ledger": secrets.token_hex(16), "version": VERSION})
                if self._signer is not None:
                    sign_rows(connection, append.added, self._signer)
                connection.execute("COMMIT")
                connection.execute("PRAGMA journal_mode = WAL")  # a reader could not repair a switch that was cut off
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(f"{self.path}: {_advice(error)}") from error

    def _now(self) -> int:
        """Return the clock's whole seconds; entries stay for ever, so one that no calendar has is not written."""
        seconds = self._clock()
        if not 0 <= seconds < _YEAR_10000:
            raise LedgerError(f"{self.path}: the clock says {seconds} (allowed: seconds from 1970 to 9999)")
        return int(seconds)

    def _must_be_ledger(self, connection: sqlite3.Connection) -> None:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if application != _APPLICATION_ID:
            raise LedgerError(f"{self.path}: an SQLite file, but not a Wardpose ledger")

    def entry(self, sequence: int) -> Entry | None:
        """Return one entry, checked by its own hash alone; `None` where there is none."""
        if not self.path.exists():
            return None
        with self._connect() as connection:
            return _entry_at(connection, sequence, self.path)

    def after(self, sequence: int, kind: str) -> Iterator[Entry]:
        """Entries of a kind behind an entry, each checked by its own hash alone."""
        if not self.path.exists():
            return
        with self._connect() as connection:
            yield from _entries_after(connection, sequence, kind, self.path)

    def still_holds(self, sequence: int, digest: str) -> bool:
        """Tell whether an entry with this hash is there, without checking the chain; so for 0, before the first."""
        if not sequence:
            return True
        entry = self.entry(sequence)
        return entry is not None and entry.hash == digest

    def uncommitted(self, after: int) -> tuple[list[Entry], set[int]]:
        """Find what came of reservations behind an entry, of a chain that was checked; found by SQLite, in one look.

        A commit follows its reservation, so that those behind the entry decide about all reservations behind it.

        Args:
            after: sequence of the entry.

        Returns:
            The reservations behind it that were not committed, each checked by its own hash; and the sequences of those
            that were committed behind it, wherever they are.

        """
        if not self.path.exists():
            return [], set()
        with self._connect() as connection:
            connection.execute("BEGIN")  # one state for both
            commits = "SELECT json_extract(body, '$.reservation') FROM entries WHERE sequence > ? AND kind = ?"
            committed = {int(row[0]) for row in connection.execute(commits, (after, COMMIT))}
            rows = connection.execute(
                f"{_COLUMNS} WHERE sequence > ? AND kind = ? AND sequence NOT IN ({commits}) ORDER BY sequence",
                (after, RESERVE, after, COMMIT),
            )
            return [next_entry(row, row[0] - 1, row[3], self.path) for row in rows], committed

    def stored(self, after: int, until: int) -> list[Row]:
        """Return the rows behind an entry, up to another, as they are stored: to be checked by whoever reads them."""
        with self._connect() as connection:
            self._must_be_ledger(connection)
            query = f"{_COLUMNS} WHERE sequence > ? AND sequence <= ? ORDER BY sequence"
            return connection.execute(query, (after, until)).fetchall()

    def hash_at(self, sequence: int) -> str:
        """Hash of an entry of the checked chain; 64 zeros where there is none, and for 0."""
        with self.reading():
            pass
        if not self.path.exists():
            return NOTHING
        with self._connect() as connection:
            return _hash_at(connection, sequence)

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        connection: sqlite3.Connection | None = None
        try:
            if size_of(self.path) == 0:
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
    """Adds entries to the chain inside a transaction.

    Attributes:
        tally: what all entries add up to, those that were just added included.
        added: the rows that were added.

    """

    def __init__(self, connection: sqlite3.Connection, tally: Tally, now: int) -> None:
        self._connection = connection
        self._now = now
        self.tally = tally
        self.added: list[Entry] = []

    @property
    def month(self) -> str:
        """The month that a new entry belongs to."""
        return self.tally.month(self._now)

    def __call__(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """Add an entry; durable when the transaction ends without an error."""
        sequence, previous = self.tally.count + 1, self.tally.head
        # The nonce tells a repeated history from the history itself.
        stamped = {**body, "time": self._now, "nonce": secrets.token_hex(8)}
        text = json.dumps(stamped, sort_keys=True, separators=(",", ":"), allow_nan=False)
        row = (sequence, kind, text, previous, entry_hash(sequence, kind, text, previous))
        entry = next_entry(row, self.tally.count, previous, "new")
        self.added.append(entry)
        self.tally.add(entry)
        self._connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", row)
        return entry

    def is_committed(self, reservation: int) -> bool:
        """Tell whether a reservation was committed."""
        commits = _entries_after(self._connection, reservation, COMMIT, "new")
        return any(entry.body["reservation"] == reservation for entry in commits)

    def entry(self, sequence: int) -> Entry | None:
        """Return one entry, checked by its own hash alone; `None` where there is none."""
        return _entry_at(self._connection, sequence, "new")

    def checkpoint_when_due(self) -> None:
        """Write down what the entries add up to, if enough of them came since it was last done."""
        since = self.tally.count - self.tally.checkpoint
        if self.tally.form == FORM and since < max(_SPACING, self.tally.size // _BYTES_AN_ENTRY):
            return
        text = self.tally.dump()
        self.tally.size = len(text)
        before = self.tally.checkpoint
        entry = self(CHECKPOINT, {"state": text_digest(text), "form": FORM})
        self._connection.execute(_SUMS)
        self._connection.execute("INSERT OR REPLACE INTO sums VALUES (?, ?)", (entry.sequence, text))
        self._connection.execute("DELETE FROM sums WHERE sequence < ?", (before,))  # the witness may be one behind


def _hash_at(connection: sqlite3.Connection, sequence: int) -> str:
    row = connection.execute("SELECT hash FROM entries WHERE sequence = ?", (sequence,)).fetchone()
    return NOTHING if row is None else str(row[0])


def _entry_at(connection: sqlite3.Connection, sequence: int, where: object) -> Entry | None:
    row: Row | None = connection.execute(f"{_COLUMNS} WHERE sequence = ?", (sequence,)).fetchone()
    return None if row is None else next_entry(row, sequence - 1, row[3], where)


def _entries_after(connection: sqlite3.Connection, sequence: int, kind: str, where: object) -> Iterator[Entry]:
    rows = connection.execute(f"{_COLUMNS} WHERE sequence > ? AND kind = ? ORDER BY sequence", (sequence, kind))
    return (next_entry(row, row[0] - 1, row[3], where) for row in rows)


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
    alone = not size_of(path.with_name(f"{path.name}-wal")) and not os.access(path.parent, os.W_OK)
    return f"{path.absolute().as_uri()}?{'immutable=1' if alone else 'mode=ro'}"


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
