"""One row of a ledger: what it says, and the hash that ties it to the row before it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wardpose.shared.errors import LedgerError

GENESIS, COHORT, RESERVE, COMMIT, CHECKPOINT = "genesis", "cohort", "reserve", "commit", "checkpoint"
KEY = "key"  # from here on another key signs the rows (`row_signatures`)
SITE_KEY, EXPIRE = "site-key", "expire"  # at the server: `wardpose.server.ledger`
KINDS = (GENESIS, COHORT, RESERVE, COMMIT, CHECKPOINT, KEY, SITE_KEY, EXPIRE)
VERSION = 3
"""In the first entry: what entries mean (docs/evolution.md)."""

NOTHING = "0" * 64
"""Hash before the first entry."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row.

    Attributes:
        sequence: 1 for the first, without gaps.
        kind: `genesis`, `cohort`, `reserve`, `commit`, `checkpoint`, `key`, `site-key` or `expire`.
        body: what it says, plain JSON values.
        previous: hash of the entry before it, 64 zeros for the first.
        hash: hexadecimal SHA-256 over all of the above.

    """

    sequence: int
    kind: str
    body: Mapping[str, Any]
    previous: str
    hash: str


Row = tuple[int, str, str, str, str]
"""Sequence, kind, body as text, previous, hash."""


_quoted = json.JSONEncoder().encode


def entry_hash(sequence: int, kind: str, text: str, previous: str) -> str:
    """Hexadecimal SHA-256 of an entry, its body as it is stored."""
    written = f"[{sequence}, {_quoted(kind)}, {_quoted(text)}, {_quoted(previous)}]"  # as json.dumps
    return hashlib.sha256(written.encode()).hexdigest()


def next_entry(row: Row, count: int, head: str, where: object) -> Entry:
    """Check a row against the entry before it.

    Args:
        row: as stored.
        count: sequence of the entry before it, 0 for none.
        head: its hash.
        where: names the file in an error.

    Raises:
        LedgerError: it does not continue the chain, or the chain is of another version.

    """
    sequence, kind, text, previous, digest = row
    if sequence != count + 1:
        raise LedgerError(f"{where}: entry {count + 1} is missing; the next one is {sequence}")
    if previous != head or digest != entry_hash(sequence, kind, text, previous):
        raise LedgerError(f"{where}: entry {sequence} does not continue the chain; the ledger was tampered with")
    if (kind == GENESIS) != (sequence == 1) or kind not in KINDS:
        raise LedgerError(f"{where}: entry {sequence} is of kind {kind!r}, which does not belong there")
    body = json.loads(text)
    if kind == GENESIS and body.get("version") != VERSION:
        raise LedgerError(
            f"{where}: is a ledger of version {body.get('version')!r:.20} (this code reads version {VERSION}); "
            "what it charged stays charged: read it with the release that wrote it"
        )
    return Entry(sequence=sequence, kind=kind, body=body, previous=previous, hash=digest)
