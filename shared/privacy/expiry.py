"""A site's signed word that nothing was released for a reservation of the server's ledger.

The server charges a site before it sends an order. Where the order never arrived, or its round never began, nothing
was drawn from any patient, but only the site knows. It signs, with its node key, a statement that names *one* entry of
*one* ledger by its hash, so that the word stands for nothing else: not for another round, not for the same round tried
again, not at another coordinator. The server keeps the statement in the entry that takes the charge back, where anybody
who has the site's key can check it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from wardpose.shared.errors import LedgerError
from wardpose.shared.privacy.entries import COMMIT, EXPIRE, RESERVE, Entry
from wardpose.shared.privacy.membership import Spend, spend_of
from wardpose.shared.signing import PublicKey, Signer, read_public_key

PURPOSE = "nothing released"


@dataclass(frozen=True, kw_only=True)
class NothingReleased:
    """What a site signs.

    Attributes:
        ledger: identity of the server's ledger.
        reservation: hash of the entry that charged the site.
        site: name of the site.
        run: of the reservation.
        round: of the reservation.

    """

    ledger: str
    reservation: str
    site: str
    run: str
    round: int

    def text(self) -> str:
        """Return the statement as it is signed and kept."""
        return json.dumps({"statement": PURPOSE, **asdict(self)}, sort_keys=True, separators=(",", ":"))

    def sign(self, signer: Signer) -> str:
        """Return the site's signature; only for whom the site's own ledger knows no charge of this run and round."""
        return signer.sign(PURPOSE, self.text().encode())


def read_statement(text: str, signature: str, key: PublicKey) -> NothingReleased:
    """Read a statement and check who signed it.

    Raises:
        SignatureError: it was not signed by this key, for this purpose, or was changed since.
        LedgerError: it is no statement.

    """
    key.verify(PURPOSE, text.encode(), signature)
    try:
        content = json.loads(text)
        if content.pop("statement") != PURPOSE:
            raise ValueError("says something else")
        statement = NothingReleased(**content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LedgerError(f"the signed word of a site cannot be read ({error})") from error
    if statement.text() != text:
        raise LedgerError("the signed word of a site is written in another form")
    return statement


def expired_part(reserved: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an entry that takes a reservation back repeats of it: what there is to subtract.

    Args:
        reserved: body of the reservation.

    """
    return {
        "course": reserved.get("course", ""),
        "events": reserved["events"],
        "covers": reserved.get("covers", []),
        "study": reserved["study"],
        "month": reserved["month"],
    }


def verify_expiries(entries: Sequence[Entry], key: PublicKey | None = None, site: str | None = None) -> int:
    """Hold every entry that takes a reservation back against that reservation, and its word against the site's key.

    Args:
        entries: all of a ledger.
        key: the site's, from a source other than the ledger; the keys that entries name when absent.
        site: the account whose key it is; every entry must be of it when absent.

    Returns:
        How many reservations were taken back.

    Raises:
        LedgerError: an entry does not say what its reservation says, or its word is not the site's.
        SignatureError: a signature is not by the key.

    """
    reserved = {entry.sequence: entry for entry in entries if entry.kind == RESERVE}
    committed = {entry.body["reservation"] for entry in entries if entry.kind == COMMIT}
    number = 0
    for entry in (found for found in entries if found.kind == EXPIRE):
        body = entry.body
        own = key if site in (None, body["cohort"]) else None
        sequence, _ = check_expiry(body, str(entries[0].body["ledger"]), own)
        of = reserved.get(sequence)
        same = of is not None and (of.hash, of.body["cohort"], of.body["run"], of.body["round"]) == (
            body["hash"],
            body["cohort"],
            body["run"],
            body["round"],
        )
        if of is None or not same or any(body[name] != value for name, value in expired_part(of.body).items()):
            raise LedgerError(f"entry {entry.sequence}: takes back what reservation {sequence} does not say")
        if sequence in committed:
            raise LedgerError(f"entry {entry.sequence}: takes back reservation {sequence}, which was committed")
        number += 1
    return number


def check_expiry(body: Mapping[str, Any], ledger: str, key: PublicKey | None = None) -> tuple[int, Spend]:
    """Check an entry that takes a reservation back.

    Args:
        body: of the entry.
        ledger: identity of the ledger that it stands in.
        key: the site's; the one that the entry names when absent.

    Returns:
        Sequence of the reservation, and what it charged.

    Raises:
        LedgerError: the statement is for something else, or is not signed by the site.

    """
    named = read_public_key(str(body["key"]), "the key of the entry")
    if key is not None and named != key:
        raise LedgerError(f"the word is signed by the key {named.fingerprint[:16]}..., not by the site's")
    statement = read_statement(str(body["statement"]), str(body["signature"]), named)
    expected = (ledger, body["hash"], body["run"], body["round"])
    if (statement.ledger, statement.reservation, statement.run, statement.round) != expected:
        raise LedgerError("the site's word is for another reservation")
    spend = spend_of(
        str(body["course"]),
        body["events"],
        body["covers"],
        study=str(body["study"]),
        month=str(body["month"]),
    )
    return int(body["reservation"]), spend
