"""The site's own record of what it was asked and what it did. It stays at the site; the exporter shows its counts.

It may name errors in full, which the server never hears. Times are whole seconds. It is also the witness of the ledger:
it remembers the last head, so that a ledger that was lost, emptied or put back from an old backup is not taken for the
whole story (`shared/privacy/chain.py`).
"""

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from wardpose.shared.errors import DamagedError, LedgerError
from wardpose.shared.sqlite import as_rows, read_rows, transaction

_SCHEMA = """
CREATE TABLE IF NOT EXISTS orders (
    id INTEGER PRIMARY KEY,
    run TEXT NOT NULL,
    round INTEGER NOT NULL,
    federation TEXT NOT NULL,
    mechanism TEXT NOT NULL,
    received INTEGER NOT NULL,
    finished INTEGER,
    status TEXT NOT NULL,
    detail TEXT NOT NULL DEFAULT '',
    bytes_up INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS messages (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS ledger_head (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    sequence INTEGER NOT NULL,
    hash TEXT NOT NULL
);
"""


@dataclass(frozen=True, kw_only=True)
class OrderRow:
    """One order; `status` is `training`, `released`, `refused`, `failed`, or `wanted` (weights were asked for)."""

    run: str
    round: int
    federation: str
    mechanism: str
    received: int
    finished: int | None
    status: str
    detail: str
    bytes_up: int


@dataclass(frozen=True, kw_only=True)
class _Head:
    sequence: int
    hash: str


@dataclass(frozen=True, kw_only=True)
class _Messages:
    number: int


class SiteJournal:
    """Append and read the orders a site received, in an SQLite file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def received(self, *, run: str, round_number: int, federation: str, mechanism: str) -> int:
        """Write down that an order came; return its number in the journal.

        One order at a time is carried out: those before it that did not finish were killed. (Were one still at work,
        `finished` would have the last word.)
        """
        with transaction(self.path, _SCHEMA) as connection:
            connection.execute(
                "UPDATE orders SET status = 'failed', finished = ?, detail = 'its process ended before it answered' "
                "WHERE status = 'training'",
                (int(time.time()),),
            )
            cursor = connection.execute(
                "INSERT INTO orders (run, round, federation, mechanism, received, status) "
                "VALUES (?, ?, ?, ?, ?, 'training')",
                (run, round_number, federation, mechanism, int(time.time())),
            )
            return int(cursor.lastrowid or 0)

    def finished(self, number: int, status: str, *, detail: str = "", bytes_up: int = 0) -> None:
        """Write down how an order ended."""
        with transaction(self.path, _SCHEMA) as connection:
            connection.execute(
                "UPDATE orders SET finished = ?, status = ?, detail = ?, bytes_up = ? WHERE id = ?",
                (int(time.time()), status, detail, bytes_up, number),
            )

    def orders(self) -> list[OrderRow]:
        """Return all orders, oldest first; none when there is no journal yet."""
        rows = read_rows(
            self.path,
            "SELECT run, round, federation, mechanism, received, finished, status, detail, bytes_up "
            "FROM orders ORDER BY id",
        )
        return as_rows(OrderRow, rows, self.path)

    def answered(self, number: int, *, run: str, round_number: int, mechanism: str) -> bool:
        """Tell whether an order of this run, round and mechanism came before order `number`, and was not refused."""
        rows = read_rows(
            self.path,
            "SELECT id FROM orders WHERE run = ? AND round = ? AND mechanism = ? AND id < ? AND status != 'refused'",
            run,
            round_number,
            mechanism,
            number,
        )
        return bool(rows)

    def paid(self) -> set[tuple[str, int]]:
        """Return run and round of everything that left, which its ledger must know."""
        return {(order.run, order.round) for order in self.orders() if order.status == "released"}

    def head(self) -> tuple[int, str] | None:
        """Return the ledger's newest head as last remembered; `None` before the first."""
        try:
            found = read_rows(self.path, "SELECT sequence, hash FROM ledger_head", added="ledger_head")
            rows = as_rows(_Head, found, self.path)
        except DamagedError as error:
            raise LedgerError(str(error)) from error
        return (rows[0].sequence, rows[0].hash) if rows else None

    def remember(self, sequence: int, digest: str) -> None:
        """Keep the ledger's head, durably, unless a newer one is known."""
        try:
            with transaction(self.path, _SCHEMA) as connection:
                connection.execute(
                    "INSERT INTO ledger_head VALUES (1, ?, ?) ON CONFLICT (one) DO UPDATE "
                    "SET sequence = excluded.sequence, hash = excluded.hash WHERE excluded.sequence > sequence",
                    (sequence, digest),
                )
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(f"{self.path}: the ledger's head cannot be remembered ({error})") from error

    def messages(self) -> int:
        """Return how many messages of the coordinator this site has believed, as last remembered."""
        found = read_rows(self.path, "SELECT number FROM messages", added="messages")
        rows = as_rows(_Messages, found, self.path)
        return rows[0].number if rows else 0

    def remember_messages(self, number: int, *, lost: bool = False) -> None:
        """Keep how many messages were believed; a smaller number than is known only where staff say they were lost."""
        with transaction(self.path, _SCHEMA) as connection:
            connection.execute(
                "INSERT INTO messages VALUES (1, ?) ON CONFLICT (one) DO UPDATE "
                "SET number = excluded.number WHERE excluded.number > number OR ?",
                (number, lost),
            )
