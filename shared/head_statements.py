"""What the heads of ledgers are signed as: the very bytes, the same at whoever signs and whoever checks.

A head pins everything before it, so one signed line is a statement about a whole ledger. Two statements of one signer
that no history can join are a proof that it showed two histories.
"""

import json
import re
from dataclasses import asdict, dataclass

from wardpose.shared.errors import LedgerError, one_line
from wardpose.shared.privacy.entries import NOTHING

SITE_HEAD = "ledger head"
SERVER_HEAD = "server head"
CLOCK_SECONDS = 300
"""How far the clocks of site and coordinator may be apart (deploy/systemd/README.md)."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_ROOT_BYTES = 32
_MOST = (1 << 63) - 1  # entries that SQLite can count


@dataclass(frozen=True, kw_only=True)
class SiteHead:
    """What a site states of its own ledger.

    Attributes:
        site: its name.
        sequence: entries that its ledger has.
        hash: of the last one, 64 zeros for none.
        seen_sequence: the head that the coordinator has seen last, 0 for none...
        seen_hash: ...as the site's ledger has it now.
        time: Unix time of the statement, whole seconds.

    Raises:
        LedgerError: no ledger can have such a head.

    """

    site: str
    sequence: int
    hash: str
    seen_sequence: int
    seen_hash: str
    time: int

    def __post_init__(self) -> None:
        """Refuse what no ledger can have."""
        check_head("sequence", self.sequence, self.hash)
        check_head("seen_sequence", self.seen_sequence, self.seen_hash)

    def content(self) -> bytes:
        """Return what is signed."""
        return _canonical(asdict(self))


@dataclass(frozen=True, kw_only=True)
class ServerHead:
    """What a coordinator states of its ledger.

    Attributes:
        sequence: entries that it has.
        hash: of the last one, 64 zeros for none.
        root: of the Merkle tree over all of them, 32 bytes (`privacy.merkle`).
        time: Unix time of the statement, whole seconds.

    Raises:
        LedgerError: no ledger can have such a head.

    """

    sequence: int
    hash: str
    root: bytes
    time: int

    def __post_init__(self) -> None:
        """Refuse what no ledger can have."""
        check_head("sequence", self.sequence, self.hash)
        if len(self.root) != _ROOT_BYTES:
            raise LedgerError(f"root has {len(self.root)} bytes (allowed: {_ROOT_BYTES})")

    def content(self) -> bytes:
        """Return what is signed."""
        return _canonical({**asdict(self), "root": self.root.hex()})


def check_head(name: str, sequence: int, digest: str) -> None:
    """Refuse a head that no ledger can have.

    Args:
        name: of the number, in an error.
        sequence: entries.
        digest: hash of the last one.

    Raises:
        LedgerError: names the value and what is allowed.

    """
    if not 0 <= sequence <= _MOST:
        raise LedgerError(f"{name} is {sequence} (allowed: 0 to {_MOST})")
    if _DIGEST.fullmatch(digest) is None or (sequence == 0) != (digest == NOTHING):
        shown = one_line(digest, 80)
        raise LedgerError(
            f"the hash of {name} {sequence} is {shown!r} (allowed: 64 digits 0-9a-f, all of them 0 for no entry alone)"
        )


def _canonical(content: dict[str, object]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
