"""A hash-chained, append-only record of who recovered what, and why.

One JSON object a line. Each holds the SHA-256 of the line before, so a changed, removed or inserted line
breaks the chain; the vault's key also signs each line (HMAC), so whoever rewrites the whole file without that
key is found out once the vault is opened. Its first line says that the vault was created: a log without it was erased.
A cut-off end is found by the head that the vault keeps apart (`access.head`) and by what is known outside the vault
(`log_witness`). The line is on disk before the recovered picture is handed out.
"""

import errno
import fcntl
import hashlib
import hmac
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from wardpose.client.recovery.log_witness import Head, LogWitness, read_head, write_head
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
    """The log of the vault with a public key, with its head beside it.

    Attributes:
        path: of the file.

    """

    def __init__(self, path: Path, public_key: bytes, witness: LogWitness) -> None:
        self.path = path
        self._vault = public_key.hex()
        self._head = path.with_suffix(".head")
        self._witness = witness

    def begin(self, *, who: Sequence[str], key: bytes) -> None:
        """Write the first entry of a new vault.

        Raises:
            OSError: it cannot be written.

        """
        entry = _signed(_next([], action="create", who=who, why="vault created", what=self._vault), key)
        with open(self.path, "xb", buffering=0, opener=files.private_opener) as file:
            _write(file.fileno(), entry.line() + b"\n")
        write_head(self._head, (entry.sequence, entry.hash()))

    def append(self, *, action: str, who: Sequence[str], why: str, what: str, key: bytes | None) -> Entry:
        """Add an entry durably, after checking the chain that it continues.

        Raises:
            RecoveryError: the log was tampered with, or it cannot be written; nothing is recovered then.

        """
        try:
            # Unbuffered: a buffer that could not be written would be written again when the file is closed.
            with self.path.open("r+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                entries = self.entries()
                entry = _next(entries, action=action, who=who, why=why, what=what)
                if key is not None:
                    entry = _signed(entry, key)
                size = sum(len(old.line()) + 1 for old in entries)  # behind it is what a crash cut off, if anything
                try:
                    file.truncate(size)
                    file.seek(size)
                    _write(file.fileno(), entry.line() + b"\n")
                except OSError:
                    file.truncate(size)
                    raise
                head = entry.sequence, entry.hash()
                write_head(self._head, head)  # from here on a failure leaves an entry too many, and none too few
                self._witness.remember(head)
        except FileNotFoundError as error:
            raise self._gone() from error
        except OSError as error:
            raise RecoveryError(
                f"{error.filename or self.path}: the access log cannot be written ({error.strerror}), so nothing was "
                "recovered"
            ) from error
        return entry

    def entries(self, key: bytes | None = None) -> list[Entry]:
        """Read and check the whole log.

        Args:
            key: the vault's log key; with it the HMACs are checked too.

        Raises:
            RecoveryError: a line was changed, removed or added by somebody else; names the line.

        """
        known = {path: read_head(path) for path in (self._head, self._witness.path)}  # before the log, which only grows
        try:
            content = self.path.read_bytes()
        except FileNotFoundError as error:
            raise self._gone() from error
        except OSError as error:
            raise RecoveryError(f"{self.path}: the access log cannot be read ({error.strerror})") from error
        entries: list[Entry] = []
        previous = _START
        for number, line in enumerate(content[: content.rfind(b"\n") + 1].split(b"\n")[:-1], start=1):
            entry = self._parse(number, line)
            if entry.sequence != number or entry.previous != previous or entry.line() != line:
                raise self._tampered("the chain is broken here", number)
            if key is not None and entry.mac and not hmac.compare_digest(_signed(entry, key).mac, entry.mac):
                raise self._tampered("forged entry", number)
            if key is not None and not entry.mac and entry.action != "denied":
                raise self._tampered("unsigned entry", number)
            previous = entry.hash()
            entries.append(entry)
        if not entries or (entries[0].action, entries[0].what) != ("create", self._vault):
            raise self._tampered("it does not begin with this vault's creation")
        if known[self._head] is None:
            raise RecoveryError(f"{self._head}: missing, so the end of the access log cannot be trusted")
        for path, head in known.items():
            self._check_head(entries, path, head)
        return entries

    def check_seen(self, seen: Mapping[str, Path]) -> None:
        """Hold the log against entries that were its last when something was written.

        Args:
            seen: hash of an entry -> the file that states it.

        Raises:
            RecoveryError: the log does not have one of them.

        """
        have = {entry.hash() for entry in self.entries()} if seen else set()
        for digest, path in seen.items():
            if digest not in have:
                raise self._tampered(f"entry {digest[:12]}..., which {path} has seen, is not in it")

    def _parse(self, number: int, line: bytes) -> Entry:
        try:
            content = json.loads(line)
            entry = Entry(**(content | {"who": tuple(content["who"])}))
            texts = (*entry.who, entry.time, entry.action, entry.why, entry.what, entry.previous, entry.mac)
            if type(entry.sequence) is not int or not all(isinstance(text, str) for text in texts):
                raise TypeError
            "".join(texts).encode()  # half a surrogate pair is JSON, and no text
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise self._tampered("not an entry", number) from error
        return entry

    def _check_head(self, entries: list[Entry], where: Path, head: Head | None) -> None:
        """Find the entry that a head states; entries behind it are those of a crash before the head was written."""
        if head is not None and (len(entries) < head[0] or entries[head[0] - 1].hash() != head[1]):
            raise self._tampered(f"{len(entries)} entries, {where} knows of entry {head[0]}, {head[1][:12]}...")

    def _gone(self) -> RecoveryError:
        return self._tampered("it is gone, and every vault has one; restore the newest backup")

    def _tampered(self, why: str, line: int | None = None) -> RecoveryError:
        where = self.path if line is None else f"{self.path}:{line}"
        return RecoveryError(f"{where}: the access log was tampered with ({why})")


def _next(entries: Sequence[Entry], *, action: str, who: Sequence[str], why: str, what: str) -> Entry:
    return Entry(
        sequence=len(entries) + 1,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        action=action,
        who=tuple(who),
        why=why,
        what=what,
        previous=entries[-1].hash() if entries else _START,
    )


def _write(descriptor: int, line: bytes) -> None:
    if os.write(descriptor, line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(descriptor)


def _signed(entry: Entry, key: bytes) -> Entry:
    return Entry(**(asdict(entry) | {"mac": hmac.new(key, entry.body(), hashlib.sha256).hexdigest()}))
