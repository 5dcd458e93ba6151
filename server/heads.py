"""What sites' ledgers were last seen to be, over all runs: a ledger may grow, and never change or shrink.

A site's ledger is its own file, and a chain that was cut or rewritten is a valid chain: only somebody who remembers a
head can tell. The coordinator remembers every head that it ever accepted, sequence number and hash, in its own folder.
A ledger that says less than it did would let the site spend again what it has spent.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

from wardpose.shared.errors import LedgerError
from wardpose.shared.sqlite import as_rows, read_rows, transaction

STATED = "stated-heads.sqlite"
"""Beside the coordinator's ledger: heads that sites stated at the Budget service, between rounds."""

_FOR_EVER = (1 << 63) - 1  # as many entries as SQLite can number
_SCHEMA = """
CREATE TABLE IF NOT EXISTS heads (
    site TEXT NOT NULL, sequence INTEGER NOT NULL, hash TEXT NOT NULL, seen REAL NOT NULL, epoch INTEGER NOT NULL,
    PRIMARY KEY (site, epoch, sequence)
);
CREATE TABLE IF NOT EXISTS epochs (
    site TEXT NOT NULL, epoch INTEGER NOT NULL, began REAL NOT NULL, why TEXT NOT NULL, PRIMARY KEY (site, epoch)
);
CREATE TABLE IF NOT EXISTS settled (
    site TEXT NOT NULL, epoch INTEGER NOT NULL, charged INTEGER NOT NULL, PRIMARY KEY (site, epoch)
);
"""


@dataclass(frozen=True, kw_only=True)
class _Head:
    sequence: int
    hash: str


@dataclass(frozen=True, kw_only=True)
class _Epoch:
    epoch: int


@dataclass(frozen=True, kw_only=True)
class _Settled:
    charged: int


class Heads:
    """Remember the heads of sites' ledgers.

    Attributes:
        path: an SQLite file, made when the first head is remembered.

    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def last(self, site: str, *, before: float = math.inf) -> tuple[int, str] | None:
        """Return sequence number and hash of the last head that was accepted of a site; `None` before the first.

        Args:
            site: whose ledger.
            before: Unix time; what was accepted later does not count.

        """
        rows = read_rows(
            self.path,
            "SELECT sequence, hash FROM heads WHERE site = ? AND epoch = ? AND seen < ? ORDER BY sequence DESC LIMIT 1",
            site,
            self._epoch(site),
            before,
        )
        found = as_rows(_Head, rows, self.path)
        return (found[0].sequence, found[0].hash) if found else None

    def all(self) -> list[tuple[str, int, str]]:
        """Return site, sequence number and hash of the last head of every site."""
        names = read_rows(self.path, "SELECT DISTINCT site FROM heads ORDER BY site")
        found = [(str(row["site"]), self.last(str(row["site"]))) for row in names]
        return [(site, *last) for site, last in found if last is not None]

    def check(
        self, site: str, sequence: int, digest: str, *, grown: bool, asked: tuple[int, str] | None = None
    ) -> None:
        """Hold a head that a site states against the last one; remembers nothing.

        Args:
            site: whose ledger.
            sequence: entries that it has.
            digest: hash of the last one.
            grown: whether the site must have written to its ledger since.
            asked: the last head when the site was asked, and told of it: another run may have heard of newer ones
                since. The present one when absent.

        Raises:
            LedgerError: the ledger is shorter than it was, is another one, or did not grow.

        """
        before = asked or self.last(site)
        if before is None:
            return
        query = "SELECT sequence, hash FROM heads WHERE site = ? AND epoch = ? AND sequence = ? AND hash != ?"
        if read_rows(self.path, query, site, self._epoch(site), sequence, digest):
            raise LedgerError(f"entry {sequence} of its ledger is not the one that was seen before")
        if sequence < before[0]:
            raise LedgerError(f"its ledger went back from {before[0]} to {sequence} entries")
        if sequence == before[0] and digest != before[1]:
            raise LedgerError(f"entry {sequence} of its ledger is not the one that was seen before")
        if sequence == before[0] and grown:
            raise LedgerError(f"its ledger still has {sequence} entries, and the round is not among them")

    def remember(self, site: str, sequence: int, digest: str) -> None:
        """Write down a head that was checked and believed."""
        with transaction(self.path, _SCHEMA) as connection:
            connection.execute(
                "INSERT OR IGNORE INTO heads (site, sequence, hash, seen, epoch) VALUES (?, ?, ?, ?, ?)",
                (site, sequence, digest, time.time(), self._epoch(site)),
            )

    def follow(self, site: str, account: str) -> None:
        """Hold a site that is registered under a new name against what its ledger was under the account's name."""
        last = self.last(account) if site != account and self.last(site) is None else None
        if last is not None:
            self.remember(site, *last)

    def accept_another(self, site: str, why: str, *, charged: int | None = None) -> None:
        """Let a site begin another ledger: its old one was lost, and both hospitals' and server's staff know of it.

        What the server charged the site stays charged: the new ledger cannot tell what the old one paid for.

        Args:
            site: whose ledger.
            why: what happened, and who says so.
            charged: entries of the coordinator's ledger now; no charge of the site is ever taken back when absent.

        """
        epoch = self._epoch(site) + 1
        with transaction(self.path, _SCHEMA) as connection:
            connection.execute(
                "INSERT INTO settled VALUES (?, ?, ?)", (site, epoch, _FOR_EVER if charged is None else charged)
            )
            connection.execute(
                "INSERT INTO epochs (site, epoch, began, why) VALUES (?, ?, ?, ?)", (site, epoch, time.time(), why)
            )

    def settled(self, site: str) -> int:
        """Return up to which entry of the coordinator's ledger the site's present ledger cannot tell what was paid."""
        epoch = self._epoch(site)
        if not epoch:
            return 0
        query = "SELECT charged FROM settled WHERE site = ? AND epoch = ?"
        found = read_rows(self.path, query, site, epoch, added="settled")  # none: before charges could be taken back
        rows = as_rows(_Settled, found, self.path)
        return rows[0].charged if rows else _FOR_EVER

    def _epoch(self, site: str) -> int:
        rows = read_rows(self.path, "SELECT coalesce(max(epoch), 0) AS epoch FROM epochs WHERE site = ?", site)
        return as_rows(_Epoch, rows, self.path)[0].epoch if rows else 0
