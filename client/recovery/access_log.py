"""A hash-chained, append-only record of who recovered what, and why.

One JSON object a line. Each holds the SHA-256 of the line before, so a changed, removed or inserted line
breaks the chain; the vault's key also signs each line (HMAC), so whoever rewrites the whole file without that
key is found out once the vault is opened. A cut-off end is found by the count and hash that the vault keeps
apart (`head`). The line is on disk before the recovered picture is handed out.
"""

import errno
import fcntl
import hashlib
import hmac
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from wardpose.shared import files
from wardpose.shared.errors import RecoveryError

_START = "0" * 64


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line.

    Attributes:
        sequence: from 1 on.
        time: UTC, ISO 8601, seconds.
        action: `create`, `recover`, `open-original`, `denied` ...
        who: the persons who authorised it.
        why: their reason.
        what: what was recovered: file name and SHA-256, never its content.
        previous: hash of the entry before.
        mac: HMAC-SHA256 under the vault's key; empty for what is logged without it (`denied`).

    """

    sequence: int
    time: str
    action: str
    who: tuple[str, ...]
    why: str
    what: str
    previous: str
    mac: str = ""

    def body(self) -> bytes:
        """Return what the HMAC covers."""
        content = asdict(self) | {"mac": ""}
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    def line(self) -> bytes:
        """Return the line without its end."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    def hash(self) -> str:
        """SHA-256 of the line."""
        return hashlib.sha256(self.line()).hexdigest()


class AccessLog:
    """The log at `path`, with its head beside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._head = path.with_suffix(".head")

    def append(self, *, action: str, who: Sequence[str], why: str, what: str, key: bytes | None) -> Entry:
        """Add an entry durably, after checking the chain that it continues.

        Raises:
            RecoveryError: the log was tampered with, or it cannot be written; nothing was added then.

        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered: a buffer that could not be written would be written again when the file is closed.
            with self.path.open("a+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                entries = self.entries()
                entry = Entry(
                    sequence=len(entries) + 1,
                    time=datetime.now(UTC).isoformat(timespec="seconds"),
                    action=action,
                    who=tuple(who),
                    why=why,
                    what=what,
                    previous=entries[-1].hash() if entries else _START,
                )
                if key is not None:
                    entry = _signed(entry, key)
                size = os.fstat(file.fileno()).st_size
                try:
                    line = entry.line() + b"\n"
                    if file.write(line) != len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(file.fileno())
                    files.write_json(self._head, {"sequence": entry.sequence, "hash": entry.hash()})
                except OSError:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise RecoveryError(
                f"{self.path}: the access log cannot be written ({error.strerror}), so nothing was recovered"
            ) from error
        return entry

    def entries(self, key: bytes | None = None) -> list[Entry]:
        """Read and check the whole log.

        Args:
            key: the vault's log key; with it the HMACs are checked too.

        Raises:
            RecoveryError: a line was changed, removed or added by somebody else; names the line.

        """
        content = self.path.read_bytes() if self.path.exists() else b""
        entries: list[Entry] = []
        previous = _START
        for number, line in enumerate(content.splitlines(), start=1):
            entry = self._parse(number, line)
            if entry.sequence != number or entry.previous != previous or entry.line() != line:
                raise RecoveryError(
                    f"{self.path}:{number}: the access log was tampered with (the chain is broken here)"
                )
            if key is not None and entry.mac and not hmac.compare_digest(_signed(entry, key).mac, entry.mac):
                raise RecoveryError(f"{self.path}:{number}: the access log was tampered with (forged entry)")
            if key is not None and not entry.mac and entry.action != "denied":
                raise RecoveryError(f"{self.path}:{number}: the access log was tampered with (unsigned entry)")
            previous = entry.hash()
            entries.append(entry)
        self._check_head(entries)
        return entries

    def _parse(self, number: int, line: bytes) -> Entry:
        try:
            content = json.loads(line)
            return Entry(**(content | {"who": tuple(content["who"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise RecoveryError(f"{self.path}:{number}: the access log was tampered with (not an entry)") from error

    def _check_head(self, entries: list[Entry]) -> None:
        if not self._head.exists():
            if entries:
                raise RecoveryError(f"{self._head}: missing, so the end of the access log cannot be trusted")
            return
        try:
            head = json.loads(self._head.read_text())
            sequence, digest = int(head["sequence"]), str(head["hash"])
        except (ValueError, TypeError, KeyError) as error:
            raise RecoveryError(f"{self._head}: not readable, the access log was tampered with") from error
        # One entry more than the head is a crash between the two writes, and no loss.
        if len(entries) not in (sequence, sequence + 1) or entries[sequence - 1].hash() != digest:
            raise RecoveryError(
                f"{self.path}: the access log was tampered with ({len(entries)} entries, {sequence} were written)"
            )


def _signed(entry: Entry, key: bytes) -> Entry:
    return Entry(**(asdict(entry) | {"mac": hmac.new(key, entry.body(), hashlib.sha256).hexdigest()}))
