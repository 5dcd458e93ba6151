"""What passed between this site and its coordinator, and whether both still know it: orders, heads, receipts.

The site carries out what its coordinator signed for it, once. It remembers the head of the coordinator's ledger, and
tells it in every answer; the coordinator says in every seal which of them it has confirmed, and what it last saw of the
site's own ledger. A ledger on either side that was lost, put back from an old copy, or written anew from some row on is
therefore found at the next contact: by whoever kept the other half. The site then refuses, and raises an alarm that
stays until both agree again.

All of it lies in `contact.sqlite` in the site's state folder.
"""

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flwr.app import RecordDict

from wardpose.client.apart import Alarm, open_alarms
from wardpose.client.journal import SiteJournal
from wardpose.shared.errors import LedgerError
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.expiry import NothingReleased
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.seals import Head, OrderSeal, Receipt, SignedReceipt, Word, body_text, open_seal, text_hash
from wardpose.shared.signing import PublicKey, SignatureError, Signer
from wardpose.shared.sqlite import as_rows, read_rows, transaction

logger = logging.getLogger("wardpose.client")

_NOTHING = Head(0, "0" * 64)
_FRESH = 86400.0  # seconds between the signing of an order and its beginning
_SERVED, _VOID = "served", "void"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS seals (nonce TEXT PRIMARY KEY, kind TEXT NOT NULL, received INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS courses (identity TEXT PRIMARY KEY, run TEXT NOT NULL, accepted INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS coordinator_head (
    coordinator TEXT PRIMARY KEY, sequence INTEGER NOT NULL, hash TEXT NOT NULL, issued REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS sent (
    release TEXT PRIMARY KEY, order_hash TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS receipts (
    digest TEXT PRIMARY KEY, text TEXT NOT NULL, signature TEXT NOT NULL, received INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS asked (run TEXT PRIMARY KEY, round INTEGER NOT NULL, issued REAL NOT NULL);
CREATE TABLE IF NOT EXISTS charges (reservation TEXT PRIMARY KEY, state TEXT NOT NULL, since INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS alarms (number INTEGER PRIMARY KEY, what TEXT NOT NULL, raised INTEGER NOT NULL,
    cleared INTEGER);
CREATE TABLE IF NOT EXISTS accepted (number INTEGER PRIMARY KEY, why TEXT NOT NULL, since REAL NOT NULL);
"""


class LedgersApartError(LedgerError):
    """The coordinator's ledger and the site's do not agree on what was charged."""


class OutdatedOrderError(SignatureError):
    """The coordinator signed an order that something else has overtaken since; it may ask again."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """An order that was believed, and what its answer says beside the facts of the round.

    Attributes:
        seal: of the order.
        signer: the site's.
        server_ledger: head of the coordinator's ledger that the site remembers.
        words: what the site signs of charges that no answer came to.

    """

    seal: OrderSeal
    signer: Signer
    server_ledger: Head
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Row:
    sequence: int
    hash: str


@dataclass(frozen=True, kw_only=True)
class _Issued:
    issued: float


@dataclass(frozen=True, kw_only=True)
class _Kept:
    text: str
    signature: str


class Contact:
    """Remember one coordinator.

    Attributes:
        path: an SQLite file, made on the first write.
        coordinator: its public key.
        witness: remembers how many messages were believed, so that a lost or old file is told from a new one.

    """

    def __init__(self, path: Path, coordinator: PublicKey, witness: SiteJournal | None = None) -> None:
        self.path = path
        self.coordinator = coordinator
        self.witness = witness

    def opened(self, content: RecordDict, *, site: str, kind: str, ledger: Ledger, signer: Signer) -> Conversation:
        """Believe a message, or refuse it; what was believed is remembered durably.

        Args:
            content: what came.
            site: this site's name.
            kind: the message's type.
            ledger: the site's.
            signer: the site's.

        Raises:
            SignatureError: the coordinator did not sign it for this site, or it came before.
            LedgersApartError: one of the two ledgers is not the one that the other side knows; an alarm is raised.

        """
        seal = open_seal(content, self.coordinator, site=site, kind=kind)
        self._use_once(seal)
        with self._alarming():
            self._check_heads(seal, ledger)
            receipts = [self._read_receipt(receipt, site, ledger) for receipt in seal.receipts]
            with transaction(self.path, _SCHEMA) as connection:
                for receipt in receipts:
                    connection.execute(
                        "INSERT OR IGNORE INTO receipts VALUES (?, ?, ?, ?)",
                        (receipt.digest, receipt.text, receipt.signature, int(time.time())),
                    )
                before = self.remembered()
                if before == _NOTHING or seal.confirms(before):
                    self._remember(connection, seal)
        words = tuple(self._words(seal, site=site, ledger=ledger, signer=signer))
        return Conversation(seal=seal, signer=signer, server_ledger=self.remembered(), words=words)

    def begin(self, conversation: Conversation) -> None:
        """Note that an order is about to be carried out: from here on something may leave for its charge.

        Raises:
            SignatureError: the coordinator names no charge.
            OutdatedOrderError: this site signed that nothing was released for it, or the order is old: whoever carries
                messages could otherwise repeat those of before the site was put back from a backup.

        """
        seal, now = conversation.seal, time.time()
        charge = seal.charge
        if charge is None:
            raise SignatureError("the coordinator does not say what pays for the order")
        if not max(now - _FRESH, self._accepted()) <= seal.issued <= now + _FRESH:
            raise OutdatedOrderError(
                f"the order was signed {now - seal.issued:.0f} s ago by the clocks of both sides, or before "
                f"accept-coordinator-ledger (allowed: within {_FRESH:.0f} s; are both clocks right?)"
            )
        if self._settle(charge, _SERVED) != _SERVED:
            raise OutdatedOrderError(f"of charge {charge[:12]} this site has signed that nothing was released")

    def asks(self, conversation: Conversation, *, run: str, round_number: int) -> None:
        """Note which round of a run the coordinator is at, and see that an order is not of one that it has left.

        A node that was cut off, or stood behind a long round, hands over what nobody waits for any more: carried out,
        it would cost the patients a round, and its answer would be thrown away. What the coordinator signs after it
        went back itself (a checkpoint that was restored) is newer, and holds.

        Raises:
            OutdatedOrderError: it asked about a later round of the run after it signed this.

        """
        issued = conversation.seal.issued
        with transaction(self.path, _SCHEMA) as connection:
            row = connection.execute("SELECT round, issued FROM asked WHERE run = ?", (run,)).fetchone()
            if row is not None and issued < row["issued"]:
                if round_number < row["round"]:
                    raise OutdatedOrderError(
                        f"round {round_number} of run {run} is over: the coordinator has asked about round "
                        f"{row['round']} since"
                    )
                return
            connection.execute("INSERT OR REPLACE INTO asked VALUES (?, ?, ?)", (run, round_number, issued))

    def _words(self, seal: OrderSeal, *, site: str, ledger: Ledger, signer: Signer) -> Iterator[Word]:
        """Sign what never began here, and see that it never does: once signed, such an order is not carried out."""
        for asked in seal.unanswered:
            charged = any(
                (entry.body["run"], entry.body["round"]) == (asked.run, asked.round)
                for entry in ledger.all_reservations()
            )
            if charged or self._settle(asked.reservation, _VOID) != _VOID:
                continue
            statement = NothingReleased(site=site, **asked.model_dump())
            yield Word(text=statement.text(), signature=statement.sign(signer))

    def _settle(self, reservation: str, state: str) -> str:
        """Decide once what becomes of a charge; returns what was decided first, now or earlier."""
        with transaction(self.path, _SCHEMA) as connection:
            connection.execute("INSERT OR IGNORE INTO charges VALUES (?, ?, ?)", (reservation, state, int(time.time())))
            row = connection.execute("SELECT state FROM charges WHERE reservation = ?", (reservation,)).fetchone()
        return str(row["state"])

    def believe(self, content: RecordDict, *, site: str, kind: str) -> None:
        """Believe a message whose answer says nothing of either ledger: the coordinator signed it for this site, once.

        Heads are not taken over: no answer would tell the coordinator that this site knows them.

        Raises:
            SignatureError: the coordinator did not sign it for this site, or it came before.

        """
        self._use_once(open_seal(content, self.coordinator, site=site, kind=kind))

    def remembered(self) -> Head:
        """Return the head of the coordinator's ledger that this site remembers; that of an empty one before any."""
        query = "SELECT sequence, hash FROM coordinator_head WHERE coordinator = ?"
        rows = as_rows(_Row, read_rows(self.path, query, self.coordinator.fingerprint), self.path)
        return Head(rows[0].sequence, rows[0].hash) if rows else _NOTHING

    def refuse_unconfirmed(self, conversation: Conversation) -> None:
        """See that the coordinator knows that its ledger still holds what this site remembers of it.

        Raises:
            OutdatedOrderError: it does not say so yet; a preflight brings it about.

        """
        if not conversation.seal.confirms(conversation.server_ledger):
            raise OutdatedOrderError(
                f"the coordinator does not confirm entry {conversation.server_ledger.sequence} of its ledger, "
                "which this site has seen"
            )

    def accept(self, course: Course) -> None:
        """Note that the site would take part in a course: it was asked, and every check was passed."""
        with transaction(self.path, _SCHEMA) as connection:
            connection.execute(
                "INSERT OR IGNORE INTO courses VALUES (?, ?, ?)", (course.identity, course.run, int(time.time()))
            )

    def refuse_unknown(self, course: Course) -> None:
        """See that a course was accepted before a round of it is carried out.

        Raises:
            SignatureError: it was not.

        """
        if not read_rows(self.path, "SELECT identity FROM courses WHERE identity = ?", course.identity):
            raise SignatureError(f"run {course.run}: its course {course.identity[:12]} was not accepted in a preflight")

    def sent(self, release: str, *, order: str, run: str, round_number: int) -> None:
        """Note what is about to leave, before it leaves."""
        with transaction(self.path, _SCHEMA) as connection:
            connection.execute("INSERT OR IGNORE INTO sent VALUES (?, ?, ?, ?)", (release, order, run, round_number))

    def receipts(self) -> list[SignedReceipt]:
        """Return all receipts that the coordinator gave, oldest first."""
        rows = read_rows(self.path, "SELECT text, signature FROM receipts ORDER BY rowid")
        return [SignedReceipt(text=row.text, signature=row.signature) for row in as_rows(_Kept, rows, self.path)]

    def alarms(self) -> list[Alarm]:
        """Return the disagreements that were not settled."""
        return open_alarms(self.path)

    def accept_another(self, why: str) -> None:
        """Let both go on although the coordinator's ledger, or this file, was lost; staff of both sides know of it.

        Orders that were signed before are not carried out: this file no longer tells which of them were.
        """
        with transaction(self.path, _SCHEMA) as connection:
            connection.execute("DELETE FROM coordinator_head WHERE coordinator = ?", (self.coordinator.fingerprint,))
            connection.execute("UPDATE alarms SET cleared = ? WHERE cleared IS NULL", (int(time.time()),))
            connection.execute(
                "INSERT INTO alarms (what, raised, cleared) VALUES (?, ?, ?)",
                (f"another ledger of the coordinator was accepted: {why}", int(time.time()), int(time.time())),
            )
            connection.execute("INSERT INTO accepted (why, since) VALUES (?, ?)", (why, time.time()))
            (there,) = connection.execute("SELECT coalesce(max(rowid), 0) FROM seals").fetchone()
        if self.witness is not None:
            self.witness.remember_messages(there, lost=True)

    def _accepted(self) -> float:
        """When staff last said that this site goes on with what is here; what was signed before is not carried out."""
        rows = read_rows(self.path, "SELECT since AS issued FROM accepted ORDER BY number DESC LIMIT 1")
        found = as_rows(_Issued, rows, self.path)
        return found[0].issued if found else 0.0

    def _use_once(self, seal: OrderSeal) -> None:
        known = 0 if self.witness is None else self.witness.messages()
        with self._alarming(clears=False), transaction(self.path, _SCHEMA) as connection:
            (there,) = connection.execute("SELECT coalesce(max(rowid), 0) FROM seals").fetchone()
            if there < known:
                raise LedgersApartError(
                    f"{self.path}: holds {there} messages, but {known} were believed before; which orders were carried "
                    "out is lost (restore the newest backup, or: wardpose site accept-coordinator-ledger)"
                )
            new = connection.execute(
                "INSERT OR IGNORE INTO seals VALUES (?, ?, ?)", (seal.nonce, seal.kind, int(time.time()))
            ).rowcount
        if self.witness is not None:
            self.witness.remember_messages(there + new)
        if not new:
            raise SignatureError("the order came before; it is carried out once")

    def _check_heads(self, seal: OrderSeal, ledger: Ledger) -> None:
        before, issued = self.remembered(), self._issued()
        if seal.ledger.sequence < before.sequence and seal.issued >= issued:  # an older message may come later
            raise LedgersApartError(
                f"the coordinator's ledger went back from {before.sequence} to {seal.ledger.sequence} entries"
            )
        if seal.ledger.sequence == before.sequence and seal.ledger.hash != before.hash:
            raise LedgersApartError(f"entry {before.sequence} of the coordinator's ledger is not the one seen before")
        if seal.site_ledger is not None and not ledger.contains(seal.site_ledger):
            raise LedgersApartError(
                f"{ledger.path}: the coordinator has seen entry {seal.site_ledger.sequence} of this ledger, which is "
                "not in it (an old backup? restore the newest)"
            )

    def _read_receipt(self, signed: SignedReceipt, site: str, ledger: Ledger) -> SignedReceipt:
        """Check that a receipt says nothing that this site knows to be wrong."""
        try:
            receipt = signed.opened(self.coordinator)
        except SignatureError as error:
            raise LedgersApartError(f"a receipt is not the coordinator's: {error}") from error
        if receipt.site != site:
            raise LedgersApartError(f"a receipt is of site {receipt.site}")
        if receipt.release is not None and not self._was_sent(receipt, ledger):
            raise LedgersApartError(
                f"the coordinator has a release of run {receipt.run}, round {receipt.round}, that this site never sent"
            )
        return signed

    def _was_sent(self, receipt: Receipt, ledger: Ledger) -> bool:
        """Tell whether this site sent a release; of before staff said that the list was lost, whether it was paid."""
        query = "SELECT release FROM sent WHERE release = ? AND order_hash = ?"
        if read_rows(self.path, query, receipt.release, receipt.order):
            return True
        paid = ((entry.body["run"], entry.body["round"]) for entry in ledger.all_reservations())
        return receipt.issued < self._accepted() and (receipt.run, receipt.round) in paid

    def _issued(self) -> float:
        """When the coordinator said what the site remembers."""
        query = "SELECT issued FROM coordinator_head WHERE coordinator = ?"
        rows = as_rows(_Issued, read_rows(self.path, query, self.coordinator.fingerprint), self.path)
        return rows[0].issued if rows else 0.0

    def _remember(self, connection: sqlite3.Connection, seal: OrderSeal) -> None:
        connection.execute(
            "INSERT INTO coordinator_head VALUES (?, ?, ?, ?) ON CONFLICT (coordinator) DO UPDATE "
            "SET sequence = excluded.sequence, hash = excluded.hash, issued = excluded.issued "
            "WHERE excluded.sequence >= sequence",
            (self.coordinator.fingerprint, *seal.ledger, seal.issued),
        )

    @contextmanager
    def _alarming(self, *, clears: bool = True) -> Iterator[None]:
        """Write down a disagreement that the block finds, once, or (`clears`) that there is none any more."""
        try:
            yield
        except LedgersApartError as error:
            logger.error("ALARM: %s", error)
            if all(alarm.what != str(error) for alarm in self.alarms()):
                with transaction(self.path, _SCHEMA) as connection:
                    connection.execute(
                        "INSERT INTO alarms (what, raised) VALUES (?, ?)", (str(error), int(time.time()))
                    )
            raise
        if clears and self.alarms():
            with transaction(self.path, _SCHEMA) as connection:
                connection.execute("UPDATE alarms SET cleared = ? WHERE cleared IS NULL", (int(time.time()),))


def facts_hash(content: RecordDict) -> str:
    """Hash of the facts of a release, as a receipt names it."""
    return text_hash(body_text(content))
