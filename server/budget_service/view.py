"""The coordinator's ledger as the service shows it: read only, checked row by row, with its Merkle tree kept in memory.

What was read once is not read again: a refresh takes in the entries that came since. The last head that was shown is
the ledger's witness (`shared.privacy.chain`), kept in a file of the service's own: a ledger that was put back from an
old backup, lost or rewritten is not shown, and never signed for, until staff say why.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wardpose.server.budget import GlobalBudget
from wardpose.server.heads import Heads
from wardpose.server.ledger import ServerLedger
from wardpose.shared.errors import LedgerError
from wardpose.shared.privacy.entries import NOTHING, RESERVE, Entry, Row, next_entry
from wardpose.shared.privacy.merkle import MerkleTree, leaf_hash
from wardpose.shared.signing import PublicKey, read_public_key

_PAGE = 512  # rows that are read at once
_THIS_LEDGER = "ledger"


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the federation's figures are stated at.

    Attributes:
        delta: of every epsilon.
        overlap: at how many sites a patient may be.
        unit: whose epsilon it is.

    """

    delta: float
    overlap: int
    unit: str


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The ledger at a moment: what every proof of an answer is for."""

    sequence: int
    hash: str
    root: bytes


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one site was charged.

    Attributes:
        epsilon: as enforced.
        budget: epsilon that its last charge was held against; `None` for no limit, or no charge.
        rows: entries that are its own.
        seeded: whether noise came from a seed.
        unprotected: whether something was released without noise.

    """

    epsilon: float
    budget: float | None
    rows: int
    seeded: bool
    unprotected: bool


class Shown:
    """The last head that the service has shown: the witness of the ledger that it reads."""

    def __init__(self, path: Path) -> None:
        self._heads = Heads(path)

    def head(self) -> tuple[int, str] | None:
        """Return the last head that was shown, `None` before the first."""
        return self._heads.last(_THIS_LEDGER)

    def remember(self, sequence: int, digest: str) -> None:
        """Keep a head."""
        self._heads.remember(_THIS_LEDGER, sequence, digest)

    def accept_another(self, why: str) -> None:
        """Let another ledger be shown from now on: staff know what became of the old one."""
        self._heads.accept_another(_THIS_LEDGER, why)


class LedgerView:
    """Read one ledger for many callers, from threads.

    Attributes:
        path: of the ledger; there need be none before the first charge.

    """

    def __init__(self, path: Path, terms: Callable[[], Terms], shown: Shown) -> None:
        self.path = path
        self._terms = terms
        self._shown = shown
        self._lock = threading.Lock()
        self._ledger: ServerLedger | None = None
        self._tree = MerkleTree()
        self._head = NOTHING
        self._rows: dict[str, int] = {}
        self._budgets: dict[str, float | None] = {}
        self._computed: dict[tuple[object, ...], Any] = {}

    def snapshot(self) -> Snapshot:
        """Take in what was appended since, and return what the ledger is now.

        Raises:
            LedgerError: it cannot be read, was tampered with, or is not the one that was shown before.

        """
        with self._lock:
            self._refresh()
            return Snapshot(sequence=self._tree.size, hash=self._head, root=self._tree.root())

    def terms(self) -> Terms:
        """Return what figures are stated at now."""
        return self._terms()

    def account_of(self, site: str) -> str:
        """Return the ledger's name for a site's account: its rows are those that `owner` says are this account's."""
        with self._lock:
            return site if self._ledger is None else self._ledger.account_of(site)

    def key_of(self, site: str) -> PublicKey | None:
        """Return the node key that a site's account is bound to; `None` where it is bound to none yet."""
        with self._lock:
            text = "" if self._ledger is None else self._ledger.key_of(self._ledger.account_of(site))
        return read_public_key(text, self.path) if text else None

    def sites(self) -> tuple[str, ...]:
        """Sites that were ever charged, as of the last snapshot."""
        with self._lock:
            return tuple(self._rows)

    def figures(self, site: str, terms: Terms) -> Figures:
        """Return what a site was charged, never less than the last snapshot says; nothing for one that is not known.

        Raises:
            LedgerError: as for `snapshot`.

        """
        with self._lock:
            if self._ledger is None:
                return Figures(epsilon=0.0, budget=None, rows=0, seeded=False, unprotected=False)
            budget, account = self._budget(self._ledger, terms), self._ledger.account_of(site)
            events = [event for charge in self._ledger.charges(account) for event in charge.events]
            return Figures(
                epsilon=self._once((site, terms), lambda: budget.epsilon(site)),
                budget=self._budgets.get(account),
                rows=self._rows.get(account, 0),
                seeded=any(event.seeded for event in events),
                unprotected=any(event.is_unprotected for event in events),
            )

    def federation(self, terms: Terms) -> tuple[float, float]:
        """Return the federation's epsilon with disjoint patients, and with patients at several sites.

        Raises:
            LedgerError: as for `snapshot`.

        """
        with self._lock:
            if self._ledger is None:
                return 0.0, 0.0
            budget = self._budget(self._ledger, terms)
            found: tuple[float, float] = self._once((terms,), lambda: budget.federation(tuple(self._rows)))
            return found

    def entries(self, after: int, until: int) -> Iterator[tuple[Entry, str]]:
        """Read entries again, a page at a time, each held against the tree that was built when it was first read.

        Args:
            after: sequence of the entry before the first, 0 for none.
            until: of the last; at most a snapshot's.

        Yields:
            Each entry, and its body as it is stored.

        Raises:
            LedgerError: an entry is gone, or is not the one that was there.

        """
        for row in self._stored(after, until):
            entry = next_entry(row, row[0] - 1, row[3], self.path)
            if leaf_hash(bytes.fromhex(entry.hash)) != self._tree.leaf(row[0] - 1):
                raise LedgerError(f"{self.path}: entry {row[0]} is not the one that was read before; it was rewritten")
            yield entry, row[2]

    def inclusion(self, sequence: int, size: int) -> list[bytes]:
        """Return the audit path of an entry among the first `size`."""
        return self._tree.inclusion(sequence - 1, size)

    def consistency(self, old: int, size: int) -> list[bytes]:
        """Return the proof that the first `size` entries begin with the first `old`."""
        return self._tree.consistency(old, size)

    def _stored(self, after: int, until: int) -> Iterator[Row]:
        """Read pages; no connection is held between them, so that a slow caller holds up nobody who writes."""
        ledger = self._ledger
        while ledger is not None and after < until:
            page = ledger.stored(after, min(after + _PAGE, until))
            if [row[0] for row in page] != list(range(after + 1, min(after + _PAGE, until) + 1)):
                raise LedgerError(f"{self.path}: entries behind {after} are missing; the ledger was tampered with")
            yield from page
            after += len(page)

    def _refresh(self) -> None:
        if self._ledger is None:
            if not self.path.exists() and self._shown.head() is None:
                return  # nobody was ever charged
            self._ledger = ServerLedger(self.path, readonly=True, witness=self._shown)
        count, head = self._ledger.head()
        if count < self._tree.size or (count == self._tree.size and head != self._head):
            raise LedgerError(
                f"{self.path}: {count} entries, but {self._tree.size} were shown; the ledger was put back or rewritten"
            )
        if count == self._tree.size:
            return
        for row in self._stored(self._tree.size, count):
            self._take(next_entry(row, self._tree.size, self._head, self.path))
        if self._head != head:
            raise LedgerError(f"{self.path}: changed while it was read")
        self._computed.clear()
        self._shown.remember(count, head)

    def _take(self, entry: Entry) -> None:
        self._tree.append(bytes.fromhex(entry.hash))
        self._head = entry.hash
        site = owner(entry)
        if site is not None:
            self._rows[site] = self._rows.get(site, 0) + 1
            if entry.kind == RESERVE:
                self._budgets[site] = _limit(entry)

    def _budget(self, ledger: ServerLedger, terms: Terms) -> GlobalBudget:
        return GlobalBudget(ledger, delta=terms.delta, overlap=terms.overlap, unit=terms.unit)

    def _once(self, key: tuple[object, ...], compute: Callable[[], Any]) -> Any:
        """Compute a figure once for each state of the ledger."""
        if key not in self._computed:
            self._computed[key] = compute()
        return self._computed[key]


def owner(entry: Entry) -> str | None:
    """Return the account that an entry is about; `None` where it is about the ledger itself, or nobody can tell."""
    site = entry.body.get("cohort")
    return site if isinstance(site, str) else None


def _limit(entry: Entry) -> float | None:
    budget = entry.body.get("budget")
    limit = budget.get("epsilon") if isinstance(budget, dict) else None
    return float(limit) if isinstance(limit, int | float) else None
