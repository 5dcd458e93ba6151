"""The witness of the coordinator's ledger: its last head, in a file outside the folder that holds the ledger.

Who deletes a ledger, or puts an old copy in its place, leaves a valid chain behind, or none
(`shared/privacy/chain.py`). The witness is made before the ledger is, so that a ledger without one, or one without a
ledger, is always a loss.
"""

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from wardpose.shared.errors import DamagedError, LedgerError
from wardpose.shared.privacy.entries import NOTHING
from wardpose.shared.sqlite import as_rows, read_rows, transaction

_SCHEMA = """
CREATE TABLE IF NOT EXISTS head (
    one INTEGER PRIMARY KEY CHECK (one = 1), sequence INTEGER NOT NULL, hash TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS accepted (
    id INTEGER PRIMARY KEY, sequence INTEGER NOT NULL, hash TEXT NOT NULL, time REAL NOT NULL, why TEXT NOT NULL
);
"""
_KEEP = (
    "INSERT INTO head VALUES (1, ?, ?) ON CONFLICT (one) DO UPDATE "
    "SET sequence = excluded.sequence, hash = excluded.hash WHERE excluded.sequence > sequence"
)


@dataclass(frozen=True, kw_only=True)
class _Head:
    sequence: int
    hash: str


class LedgerWitness:
    """Remember a ledger's head (`wardpose.shared.privacy.chain.Witness`).

    Attributes:
        path: of its SQLite file.

    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self) -> None:
        """Remember that there is no entry yet; changes nothing where a head is known."""
        self.remember(0, NOTHING)

    def head(self) -> tuple[int, str] | None:
        """Return the newest head that was remembered; `None` where the witness is new, or lost.

        Raises:
            LedgerError: the file is damaged or locked.

        """
        try:
            rows = as_rows(_Head, read_rows(self.path, "SELECT sequence, hash FROM head"), self.path)
        except DamagedError as error:
            raise LedgerError(str(error)) from error
        return (rows[0].sequence, rows[0].hash) if rows else None

    def remember(self, sequence: int, digest: str) -> None:
        """Keep a head, durably, unless a newer one is known."""
        self._write(sequence, digest, why="")

    def accept(self, sequence: int, digest: str, why: str) -> None:
        """Begin with a head that people vouch for, because the witness was lost; what they say is kept."""
        self._write(sequence, digest, why=why)

    def _write(self, sequence: int, digest: str, *, why: str) -> None:
        try:
            with transaction(self.path, _SCHEMA) as connection:
                connection.execute(_KEEP, (sequence, digest))
                if why:
                    connection.execute(
                        "INSERT INTO accepted (sequence, hash, time, why) VALUES (?, ?, ?, ?)",
                        (sequence, digest, time.time(), why),
                    )
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(f"{self.path}: the ledger's head cannot be remembered ({error})") from error
