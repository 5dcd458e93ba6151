"""Signatures of a ledger's rows: who wrote them, so that nobody else can write a row, or a whole history, anew.

Every row's hash is signed by its writer's key in the transaction that appends the row. As each hash covers all rows
before it, the signature of the *last* row speaks for the whole file: it is checked at every use, at the price of one
signature however long the ledger is; `check_all` checks each. A new key, and a ledger of a time when rows were not
signed yet, begin with an entry of kind `key`, made by hand (`wardpose ledger renew-key`).
"""

import sqlite3
from collections.abc import Sequence

from wardpose.shared.errors import LedgerError
from wardpose.shared.privacy.entries import Entry
from wardpose.shared.signing import PublicKey, SignatureError, Signer

PURPOSE = "ledger row"
_TABLE = (
    "CREATE TABLE IF NOT EXISTS signatures "
    "(sequence INTEGER PRIMARY KEY, key TEXT NOT NULL, signature TEXT NOT NULL) STRICT"
)
_ADVICE = "if the key was renewed, or the ledger is of a time before signatures: wardpose ledger renew-key"


def sign_rows(connection: sqlite3.Connection, rows: Sequence[Entry], signer: Signer) -> None:
    """Sign new rows, in the transaction that appends them."""
    connection.execute(_TABLE)
    for row in rows:
        signature = signer.sign(PURPOSE, row.hash.encode())
        connection.execute(
            "INSERT INTO signatures VALUES (?, ?, ?)", (row.sequence, signer.public.fingerprint, signature)
        )


def signature_of(connection: sqlite3.Connection, sequence: int) -> tuple[str, str] | None:
    """Return the fingerprint of the key that signed a row, and its signature; `None` where it is not signed."""
    try:
        row = connection.execute("SELECT key, signature FROM signatures WHERE sequence = ?", (sequence,)).fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return None
        raise
    return None if row is None else (str(row[0]), str(row[1]))


def check_row(connection: sqlite3.Connection, sequence: int, digest: str, key: PublicKey) -> None:
    """Check that a row, and with it every row before it, was signed by a key.

    Raises:
        LedgerError: it was not.

    """
    found = signature_of(connection, sequence)
    if found is None:
        raise LedgerError(f"entry {sequence} is not signed ({_ADVICE})")
    if found[0] != key.fingerprint:
        raise LedgerError(
            f"entry {sequence} is signed by the key {found[0][:16]:.16}, not by {key.fingerprint[:16]} ({_ADVICE})"
        )
    try:
        key.verify(PURPOSE, digest.encode(), found[1])
    except SignatureError as error:
        raise LedgerError(f"entry {sequence} has a false signature; the ledger was tampered with") from error


def check_all(connection: sqlite3.Connection, key: PublicKey) -> tuple[int, int]:
    """Check every signature that a key made.

    Returns:
        How many rows it signed, and how many others signed or nobody did.

    Raises:
        LedgerError: one of them is false.

    """
    mine = others = 0
    for sequence, digest in connection.execute("SELECT sequence, hash FROM entries ORDER BY sequence"):
        found = signature_of(connection, sequence)
        if found is None or found[0] != key.fingerprint:
            others += 1
        else:
            check_row(connection, sequence, digest, key)
            mine += 1
    return mine, others
