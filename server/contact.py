"""What passed between the coordinator and each site, and whether both still know it: seals, keys, heads, receipts.

Every message to a site is sealed for it (`shared/seals.py`). Every answer is signed by the site's node key: the one
that Flower registered under the site's name; where nodes are simulated, the first that answered under the name. A
site tells in every answer which entry of the coordinator's ledger it has seen last. If that entry is not there any
more, the coordinator's ledger was lost, put back from an old copy or written anew, and no order goes to that site
until somebody has settled it. At the end of a round each site gets a receipt, and gets it again until it says that it
kept it.

All of it lies in `contact.sqlite`, beside the heads of sites' ledgers.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.app import RecordDict

from wardpose.server.apart import open_alarms
from wardpose.server.heads import Heads
from wardpose.server.ledger import ServerLedger
from wardpose.shared.errors import LedgerError
from wardpose.shared.messages import SiteAnswer
from wardpose.shared.privacy.expiry import read_statement
from wardpose.shared.seals import (
    MOST_CHARGES,
    MOST_RECEIPTS,
    MOST_STATED,
    Charge,
    Head,
    OrderSeal,
    Receipt,
    SignedReceipt,
    Word,
    seal,
    sign_receipt,
)
from wardpose.shared.signing import PublicKey, SignatureError, Signer, read_public_key
from wardpose.shared.sqlite import as_rows, read_rows, transaction

logger = logging.getLogger("wardpose.server")

_ON_ITS_WAY = 86400.0  # seconds that an order of another run may take to its site
_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (site TEXT PRIMARY KEY, key TEXT NOT NULL, since REAL NOT NULL);
CREATE TABLE IF NOT EXISTS confirmed (site TEXT PRIMARY KEY, sequence INTEGER NOT NULL, hash TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS stated (
    number INTEGER PRIMARY KEY, site TEXT NOT NULL, sequence INTEGER NOT NULL, hash TEXT NOT NULL,
    UNIQUE (site, sequence, hash)
);
CREATE TABLE IF NOT EXISTS receipts (
    number INTEGER PRIMARY KEY, site TEXT NOT NULL, digest TEXT NOT NULL UNIQUE, text TEXT NOT NULL,
    signature TEXT NOT NULL, acknowledged REAL
);
CREATE TABLE IF NOT EXISTS spent (
    site TEXT PRIMARY KEY, epsilon REAL NOT NULL, delta REAL NOT NULL, seen REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS alarms (
    number INTEGER PRIMARY KEY, site TEXT NOT NULL, what TEXT NOT NULL, raised REAL NOT NULL, cleared REAL
);
"""


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What a site's own ledger said when it last answered.

    Attributes:
        site: whose.
        epsilon: of its cohort, as its ledger has it.
        delta: at which that is.
        seen: Unix time.

    """

    site: str
    epsilon: float
    delta: float
    seen: float


@dataclass(frozen=True, kw_only=True)
class _Key:
    key: str


@dataclass(frozen=True, kw_only=True)
class _Head:
    sequence: int
    hash: str


@dataclass(frozen=True, kw_only=True)
class _Kept:
    text: str
    signature: str


class Contact:
    """Remember every site.

    Attributes:
        path: an SQLite file, made on the first write.
        signer: the coordinator's key.
        ledger: the coordinator's.
        run: whose messages are sealed: orders of other runs may still be on their way to a site.

    """

    def __init__(self, path: Path, signer: Signer, ledger: ServerLedger, heads: Heads, *, run: str = "") -> None:
        self.path = path
        self.signer = signer
        self.ledger = ledger
        self.run = run
        self._heads = heads

    def sealed(
        self, content: RecordDict, *, site: str, kind: str, charge: str | None = None
    ) -> tuple[RecordDict, OrderSeal]:
        """Return a message's content with a seal for a site.

        A question also asks about charges that no answer came to.

        Args:
            content: of the message.
            site: whom it is for; "*" where nobody knows yet who answers.
            kind: the message's type.
            charge: hash of the entry that pays for it; `None` for a question.

        """
        known = site != "*"
        asks = known and charge is None
        issued, head, stated = self._stamp(site if known else None)
        return seal(
            content,
            self.signer,
            site=site,
            kind=kind,
            ledger=head,
            site_ledger=self._heads.last(site) if known else None,
            confirmed=self._confirmed(site) if known else None,
            stated=stated,
            receipts=tuple(self.undelivered(site)[:MOST_RECEIPTS]) if known else (),
            charge=charge,
            unanswered=tuple(self._unanswered(site, settled=True)[-MOST_CHARGES:]) if asks else (),
            issued=issued,
        )

    def _stamp(self, site: str | None) -> tuple[float, Head, list[Head]]:
        """Return the time, the ledger's head at it, and the heads that the last seals for a site named.

        One process at a time: were the head read before another run's charge and the time taken after it, the site
        would see a ledger that went back.
        """
        with transaction(self.path, _SCHEMA) as connection:
            issued, head = time.time(), Head(*self.ledger.head())
            if site is None:
                return issued, head, []
            rows = connection.execute(
                "SELECT sequence, hash FROM stated WHERE site = ? ORDER BY number DESC LIMIT ?", (site, MOST_STATED)
            ).fetchall()
            connection.execute("INSERT OR IGNORE INTO stated (site, sequence, hash) VALUES (?, ?, ?)", (site, *head))
            connection.execute(
                "DELETE FROM stated WHERE site = ? AND number NOT IN "
                "(SELECT number FROM stated WHERE site = ? ORDER BY number DESC LIMIT ?)",
                (site, site, MOST_STATED),
            )
        return issued, head, [earlier for row in rows if self.ledger.contains(earlier := Head(*row))]

    def _unanswered(self, site: str, *, settled: bool) -> list[Charge]:
        """Return the charges without an answer that the site's ledger can tell about: none of before it began.

        Args:
            site: whose.
            settled: only those whose order is surely not on its way any more: of this run, or old.

        """
        began = max(self._heads.settled(name) for name in (site, self.ledger.account_named(site)))
        return [
            Charge(ledger=each.ledger, reservation=each.reservation, run=each.run, round=each.round)
            for each in self.ledger.open_reservations(
                site, after=began, run=self.run if settled else None, old=time.time() - _ON_ITS_WAY
            )
        ]

    def unanswered(self, site: str) -> list[Charge]:
        """Return the charges of this run that no answer came to: they stay, unless the site signs that none began."""
        return [charge for charge in self._unanswered(site, settled=True) if charge.run == self.run]

    def check_key(self, site: str, stated: str, registered: PublicKey | None) -> PublicKey:
        """Return the key that a site's answers must be signed with.

        Args:
            site: who it says it is.
            stated: the key that it says is its own.
            registered: the one that Flower knows for it; `None` for a simulated node.

        Raises:
            SignatureError: it states another key than the one that is known.

        """
        rows = as_rows(_Key, read_rows(self.path, "SELECT key FROM keys WHERE site = ?", site), self.path)
        bound = self.ledger.key_of(self.ledger.account_named(site))  # the SuperLink may name another key since
        key = read_public_key(stated, f"site {site}")
        for known in (
            read_public_key(bound, self.ledger.path) if bound else None,
            registered or (read_public_key(rows[0].key, self.path) if rows else None),
        ):
            if known is not None and key != known:
                raise SignatureError(
                    f"its key is {key.fingerprint[:16]}, not the registered one {known.fingerprint[:16]}"
                )
        return key

    def hears(self, answer: SiteAnswer, key: PublicKey) -> None:
        """Take over what a believed answer says: key, the coordinator's entry that it knows, receipts that it kept.

        Raises:
            LedgerError: it knows an entry of the coordinator's ledger that is not in it; an alarm is raised.

        """
        site, seen = answer.site, answer.server_ledger
        if not self.ledger.contains(seen):
            what = (
                f"it has seen entry {seen.sequence} of this coordinator's ledger, which is not in it "
                "(an old backup? restore the newest)"
            )
            self.alarm(site, what)
            raise LedgerError(what)
        with transaction(self.path, _SCHEMA) as connection:
            connection.execute("INSERT OR IGNORE INTO keys VALUES (?, ?, ?)", (site, key.text, time.time()))
            connection.execute("INSERT OR REPLACE INTO confirmed VALUES (?, ?, ?)", (site, *seen))
            stated = (site, answer.epsilon_spent, answer.delta, time.time())
            connection.execute("INSERT OR REPLACE INTO spent VALUES (?, ?, ?, ?)", stated)
            for digest in answer.receipts:
                connection.execute(
                    "UPDATE receipts SET acknowledged = ? WHERE site = ? AND digest = ? AND acknowledged IS NULL",
                    (time.time(), site, digest),
                )
            connection.execute("UPDATE alarms SET cleared = ? WHERE site = ? AND cleared IS NULL", (time.time(), site))

        for word in answer.words:
            self._take_back(site, word, key)

    def _take_back(self, site: str, word: Word, key: PublicKey) -> None:
        """Take back a charge that a site signed nothing came from; a word that is not right changes nothing."""
        try:
            stated = read_statement(word.text, word.signature, key)
            if all(charge.reservation != stated.reservation for charge in self._unanswered(site, settled=False)):
                raise LedgerError(f"charge {stated.reservation[:12]:.12} is none that it was, or could be, asked about")
            self.ledger.expire(word.text, word.signature, key, site=site, run=stated.run, round_number=stated.round)
        except (LedgerError, SignatureError) as error:
            logger.warning("site %s: its word that nothing was released is not believed: %s", site, error)
        else:
            logger.info(
                "site %s: round %d of run %s never began there; its charge is taken back",
                site,
                stated.round,
                stated.run,
            )

    def alarm(self, site: str, what: str) -> None:
        """Write down that a site's ledger and the coordinator's do not agree; once, until it is settled."""
        logger.error("ALARM: site %s: %s", site, what)
        if all((alarm.site, alarm.what) != (site, what) for alarm in open_alarms(self.path)):
            with transaction(self.path, _SCHEMA) as connection:
                connection.execute(
                    "INSERT INTO alarms (site, what, raised) VALUES (?, ?, ?)", (site, what, time.time())
                )

    def give(self, receipts: Sequence[Receipt]) -> None:
        """Sign receipts of a round and keep them; each travels with the next message to its site."""
        with transaction(self.path, _SCHEMA) as connection:
            for receipt in receipts:
                signed = sign_receipt(receipt, self.signer)
                connection.execute(
                    "INSERT OR IGNORE INTO receipts (site, digest, text, signature) VALUES (?, ?, ?, ?)",
                    (receipt.site, signed.digest, signed.text, signed.signature),
                )

    def receipts(self, site: str) -> list[SignedReceipt]:
        """Return all receipts of a site, oldest first."""
        return self._receipts("SELECT text, signature FROM receipts WHERE site = ? ORDER BY number", site)

    def undelivered(self, site: str) -> list[SignedReceipt]:
        """Return the receipts that a site has not acknowledged, oldest first."""
        query = "SELECT text, signature FROM receipts WHERE site = ? AND acknowledged IS NULL ORDER BY number"
        return self._receipts(query, site)

    def _receipts(self, query: str, site: str) -> list[SignedReceipt]:
        rows = as_rows(_Kept, read_rows(self.path, query, site), self.path)
        return [SignedReceipt(text=row.text, signature=row.signature) for row in rows]

    def _confirmed(self, site: str) -> Head | None:
        """Return the last entry of this ledger that a site said it knew, if it is still there."""
        query = "SELECT sequence, hash FROM confirmed WHERE site = ?"
        rows = as_rows(_Head, read_rows(self.path, query, site), self.path)
        head = Head(rows[0].sequence, rows[0].hash) if rows else None
        return head if head is not None and self.ledger.contains(head) else None


def stated_spent(path: Path) -> dict[str, Stated]:
    """Return what each site's own ledger said last; none in a file of an earlier version."""
    rows = read_rows(path, "SELECT site, epsilon, delta, seen FROM spent", added="spent")
    return {row.site: row for row in as_rows(Stated, rows, path)}
