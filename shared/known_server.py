"""What the coordinator's ledger was last shown to be: kept by whoever was shown it, so that no other can be later.

A coordinator whose ledger was rolled back, rewritten, or is shown to different people in different versions, has a
perfectly valid ledger each time. Only who remembers what it was shown can tell. Nothing that did not pass the checks
is ever remembered, so a contradiction is found again at every contact, until staff say why another ledger is right.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wardpose.shared.errors import LedgerError
from wardpose.shared.head_statements import ServerHead
from wardpose.shared.sqlite import as_rows, read_rows, transaction

FILE = "server-heads.sqlite"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS heads (
    epoch INTEGER NOT NULL, sequence INTEGER NOT NULL, hash TEXT NOT NULL, root TEXT NOT NULL, time INTEGER NOT NULL,
    signature TEXT NOT NULL, PRIMARY KEY (epoch, sequence)
);
CREATE TABLE IF NOT EXISTS epochs (epoch INTEGER PRIMARY KEY, began INTEGER NOT NULL, why TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS alarms (what TEXT PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL,
    settled TEXT NOT NULL DEFAULT '');
"""
_COLUMNS = "SELECT sequence, hash, root, time, signature FROM heads WHERE epoch = ?"


@dataclass(frozen=True, kw_only=True)
class KnownHead:
    """A head that was shown, checked and believed.

    Attributes:
        sequence: entries that the coordinator's ledger had.
        hash: of the last one.
        root: of the Merkle tree over them, hexadecimal.
        time: Unix time at which the coordinator stated it.
        signature: of its key; empty where it signed nothing.

    """

    sequence: int
    hash: str
    root: str
    time: int
    signature: str


@dataclass(frozen=True, kw_only=True)
class KnownAlarm:
    """The coordinator showed what contradicts what it showed before.

    Attributes:
        what: happened.
        first: Unix time when it was first found.
        last: when it was last found.

    """

    what: str
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class _Epoch:
    epoch: int


class KnownServer:
    """Remember one coordinator.

    Attributes:
        path: an SQLite file, made with the first head.

    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock

    def last(self) -> KnownHead | None:
        """Return the longest ledger that was believed; `None` before the first contact.

        Raises:
            DamagedError: the file cannot be read, so that nobody can tell what was shown.

        """
        rows = read_rows(self.path, f"{_COLUMNS} ORDER BY sequence DESC LIMIT 1", self._epoch())
        found = as_rows(KnownHead, rows, self.path)
        return found[0] if found else None

    def remember(self, head: ServerHead, signature: str) -> None:
        """Keep a head that was checked, durably.

        Raises:
            LedgerError: another process was shown another ledger of the same length meanwhile.

        """
        epoch = self._epoch()
        with transaction(self.path, _SCHEMA) as connection:
            connection.execute(
                "INSERT OR IGNORE INTO heads VALUES (?, ?, ?, ?, ?, ?)",
                (epoch, head.sequence, head.hash, head.root.hex(), head.time, signature),
            )
            row = connection.execute(f"{_COLUMNS} AND sequence = ?", (epoch, head.sequence)).fetchone()
        if (row["hash"], row["root"]) != (head.hash, head.root.hex()):
            raise LedgerError(f"two different ledgers of {head.sequence} entries were shown")

    def raise_alarm(self, what: str) -> None:
        """Write down what contradicts what was shown before."""
        now = int(self._clock())
        with transaction(self.path, _SCHEMA) as connection:
            connection.execute(
                "INSERT INTO alarms VALUES (?, ?, ?, '') "
                "ON CONFLICT (what) DO UPDATE SET last = excluded.last, settled = ''",
                (what, now, now),
            )

    def alarms(self) -> list[KnownAlarm]:
        """Return what was found and nobody settled yet, oldest first."""
        rows = read_rows(self.path, "SELECT what, first, last FROM alarms WHERE settled = '' ORDER BY first, what")
        return as_rows(KnownAlarm, rows, self.path)

    def accept_another(self, why: str) -> None:
        """Believe the next head, whatever it is: staff of both sides know what became of the old ledger."""
        epoch = self._epoch() + 1
        with transaction(self.path, _SCHEMA) as connection:
            connection.execute("INSERT INTO epochs VALUES (?, ?, ?)", (epoch, int(self._clock()), why))
            connection.execute("UPDATE alarms SET settled = ? WHERE settled = ''", (why,))

    def _epoch(self) -> int:
        rows = read_rows(self.path, "SELECT coalesce(max(epoch), 0) AS epoch FROM epochs")
        return as_rows(_Epoch, rows, self.path)[0].epoch if rows else 0
