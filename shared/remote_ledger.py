"""The Budget service's other end: asks for accounts, rows and proofs, and believes nothing that it cannot check.

    with connect("fed.example.org:9443", authority=ca, certificate=crt, key=key) as channel:
        remote = RemoteLedger(channel, KnownServer(state / FILE), server_key=None)
        account, head = remote.account()

Every head that comes with an answer must continue the last one that was believed, by a Merkle proof that is checked
here, and is then remembered (`known_server`). A head that does not is a fork or a rollback of the coordinator's ledger.
Whatever the service sends is taken to be written by an adversary: its numbers, its lengths, its rows.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.x509.oid import NameOID

from wardpose.shared.budget_wire import budget_pb2 as wire
from wardpose.shared.budget_wire import budget_pb2_grpc
from wardpose.shared.errors import ConfigError, LedgerError, WardposeError, one_line
from wardpose.shared.files import refuse_readable
from wardpose.shared.head_statements import SERVER_HEAD, SITE_HEAD, ServerHead, SiteHead
from wardpose.shared.known_server import KnownServer
from wardpose.shared.privacy.entries import NOTHING, Entry, next_entry
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.privacy.merkle import Frontier, leaf_hash, verify_consistency, verify_inclusion
from wardpose.shared.signing import PublicKey, Signer

_ANSWER_BYTES = 1 << 24
_SECONDS = 60.0  # for an answer, the epsilon of an old ledger included
_STREAM_SECONDS = 600.0
_TRIES = 4
_PAUSE_SECONDS = 0.1
_COME_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)


class RemoteError(WardposeError):
    """The Budget service refused a call, or could not be reached; nothing that it showed was believed."""


@dataclass(frozen=True, kw_only=True)
class RemoteRow:
    """A row of the coordinator's ledger, its place in the chain checked.

    Attributes:
        sequence: of the entry.
        previous: hash of the one before it.
        hash: its own.
        entry: what it says; `None` where it is somebody else's.

    """

    sequence: int
    previous: str
    hash: str
    entry: Entry | None


@contextmanager
def connect(address: str, *, authority: Path, certificate: Path, key: Path) -> Iterator[grpc.Channel]:
    """Open a channel with mutual TLS.

    Raises:
        ConfigError: a file cannot be read.

    """
    content = [_content(path) for path in (authority, key, certificate)]
    refuse_readable(key)
    credentials = grpc.ssl_channel_credentials(*content)
    options = [("grpc.max_receive_message_length", _ANSWER_BYTES), ("grpc.enable_retries", 0)]
    with grpc.secure_channel(address, credentials, options=options) as channel:
        yield channel


def name_in(certificate: Path) -> str:
    """Return the name (CN) that a certificate was made for.

    Raises:
        ConfigError: it cannot be read, or has none.

    """
    try:
        subject = x509.load_pem_x509_certificate(_content(certificate)).subject
        (name,) = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError as error:
        raise ConfigError(f"{certificate}: is no certificate of one name (allowed: PEM, with one CN)") from error
    return str(name.value)


class RemoteLedger:
    """The coordinator's ledger, seen from outside."""

    def __init__(self, channel: grpc.Channel, known: KnownServer, *, server_key: PublicKey | None = None) -> None:
        """Ask over a channel.

        Args:
            channel: of `connect`.
            known: what was shown before.
            server_key: the coordinator's key; with it, a head that is not signed by it is refused.

        """
        stub: Callable[[grpc.Channel], Any] = budget_pb2_grpc.BudgetServiceStub
        self._stub = stub(channel)
        self._known = known
        self._server_key = server_key

    def account(self, site: str = "") -> tuple[wire.GetAccountResponse, ServerHead]:
        """Return what sites were charged, and the head that the answer is of.

        Args:
            site: an auditor's choice; all that the caller may see when empty.

        Raises:
            RemoteError: the service refused.
            LedgerError: its ledger does not continue the one that was shown before.
            SignatureError: the head is not signed by the coordinator.

        """
        answer = _asked(self._stub.GetAccount, wire.GetAccountRequest(site=site))
        return answer, self._believed(answer.head)

    def head(self) -> ServerHead:
        """Return the head of the coordinator's ledger, which continues the one that was shown before.

        Raises:
            RemoteError, LedgerError, SignatureError: as for `account`.

        """
        answer = _asked(self._stub.VerifyConsistency, wire.VerifyConsistencyRequest(sequence=0))
        return self._believed(answer.head)

    def verify(self, sequence: int) -> tuple[str, ServerHead]:
        """Check that an entry is in the coordinator's ledger; return its hash, and the head.

        Raises:
            RemoteError, LedgerError, SignatureError: as for `account`; the proof does not show it.

        """
        answer = _asked(self._stub.VerifyInclusion, wire.VerifyInclusionRequest(sequence=sequence))
        head = self._believed(answer.head)
        leaf = leaf_hash(_digest(answer.hash))
        verify_inclusion(leaf, sequence - 1, head.sequence, answer.path, head.root)
        return str(answer.hash), head

    def entries(self, use: Callable[[RemoteRow], None]) -> ServerHead:
        """Read every row, and check that together they are the ledger whose root the coordinator states.

        A stream that broke off is taken up where it ended. Rows are given to `use` before the root is known to be
        right: what is made of them counts when this returns.

        Raises:
            RemoteError: the service refused, or its streams end early again and again.
            LedgerError: a row does not fit its hash, or the rows are not what the root says.

        """
        reader = _Rows(use)
        for attempt in range(1, _TRIES + 1):
            before = reader.frontier.size
            request = wire.StreamEntriesRequest(from_sequence=before + 1)
            try:
                head = reader.take(self._stub.StreamEntries(request, timeout=_STREAM_SECONDS), self._believed)
            except grpc.RpcError as error:
                if error.code() not in _COME_AGAIN or (attempt == _TRIES and reader.frontier.size == before):
                    raise _refusal(error) from error
            else:
                if head is not None and reader.frontier.size == head.sequence:
                    return reader.checked(head)
            time.sleep(_PAUSE_SECONDS * attempt)
        raise RemoteError(f"the stream of entries ended after {reader.frontier.size}, {_TRIES} times before its end")

    def submit(self, ledger: Ledger, site: str, signer: Signer) -> ServerHead:
        """State the head of the site's own ledger, signed; return the coordinator's.

        Args:
            ledger: the site's.
            site: its name, as its certificate says.
            signer: its node key.

        Raises:
            RemoteError: the service refused.
            LedgerError: the coordinator saw another ledger of this site before; or its own does not continue.

        """
        for attempt in range(1, _TRIES + 1):
            answer, _ = self.account(site)
            seen = next(((found.seen_sequence, found.seen_hash) for found in answer.sites), (0, NOTHING))
            request = _statement(ledger, site, seen[0], signer)
            try:
                submitted = self._stub.SubmitHead(request, timeout=_SECONDS)
            except grpc.RpcError as error:
                if error.code() == grpc.StatusCode.ABORTED and attempt < _TRIES:
                    continue  # another of the site's heads was seen meanwhile
                if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
                    raise LedgerError(f"the coordinator refuses this ledger: {_details(error)}") from error
                raise _refusal(error) from error
            return self._believed(submitted.head)
        raise RemoteError("other heads of this site's ledger were seen again and again")

    def _believed(self, message: wire.ServerHead) -> ServerHead:
        """Check a head against the last one, remember it and return it."""
        head = ServerHead(sequence=message.sequence, hash=message.hash, root=message.root, time=message.time)
        if self._server_key is not None:
            self._server_key.verify(SERVER_HEAD, head.content(), message.signature)
        try:
            self._check_continues(head)
            self._known.remember(head, message.signature)
        except LedgerError as error:
            self._known.raise_alarm(str(error))
            raise LedgerError(f"the coordinator's ledger: {error}") from error
        return head

    def _check_continues(self, head: ServerHead) -> None:
        last = self._known.last()
        if last is None:
            return
        if head.sequence < last.sequence:
            raise LedgerError(f"went back from {last.sequence} to {head.sequence} entries")
        if head.sequence == last.sequence:
            if (head.hash, head.root.hex()) != (last.hash, last.root):
                raise LedgerError(f"is another one of {last.sequence} entries than the one that was shown before")
            return
        request = wire.VerifyConsistencyRequest(sequence=last.sequence, size=head.sequence)
        path = _asked(self._stub.VerifyConsistency, request).path
        verify_consistency(last.sequence, bytes.fromhex(last.root), head.sequence, head.root, path)


class _Rows:
    """Rows of one or several streams, in order."""

    def __init__(self, use: Callable[[RemoteRow], None]) -> None:
        self.frontier = Frontier()
        self._use = use
        self._previous = NOTHING

    def take(self, stream: Any, believe: Callable[[wire.ServerHead], ServerHead]) -> ServerHead | None:
        """Read a stream to its end; `None` where it did not even say what it is of."""
        head: ServerHead | None = None
        for answer in stream:
            if head is None:
                head = believe(answer.head)
            for row in answer.rows:
                if self.frontier.size == head.sequence:
                    stream.cancel()
                    raise LedgerError(f"the coordinator sent more rows than the {head.sequence} that it states")
                self._row(row)
        return head

    def checked(self, head: ServerHead) -> ServerHead:
        """Hold all rows against a head."""
        if (self.frontier.root(), self._previous) != (head.root, head.hash):
            raise LedgerError(f"the coordinator's {head.sequence} rows are not those of the root that it states")
        return head

    def _row(self, row: wire.EntryRow) -> None:
        sequence, digest = self.frontier.size + 1, _digest(row.hash)
        entry = None
        if row.kind:
            stored = (sequence, row.kind, row.body, self._previous, row.hash)
            try:
                entry = next_entry(stored, sequence - 1, self._previous, "the coordinator's ledger")
            except (ValueError, RecursionError) as error:
                raise LedgerError(f"the coordinator's ledger: entry {sequence} cannot be read") from error
        self._use(RemoteRow(sequence=sequence, previous=self._previous, hash=row.hash, entry=entry))
        self.frontier.append(digest)
        self._previous = row.hash


def _statement(ledger: Ledger, site: str, seen: int, signer: Signer) -> wire.SubmitHeadRequest:
    """Sign a head. A ledger that has fewer entries than were seen says so: it is for the coordinator to find, too."""
    sequence, digest = ledger.head()
    seen = seen if 0 < seen <= sequence else 0
    seen_hash = ledger.stored(seen - 1, seen)[0][4] if seen else NOTHING
    now = int(time.time())
    head = SiteHead(site=site, sequence=sequence, hash=digest, seen_sequence=seen, seen_hash=seen_hash, time=now)
    return wire.SubmitHeadRequest(
        sequence=sequence,
        hash=digest,
        seen_sequence=seen,
        seen_hash=seen_hash,
        time=now,
        signature=signer.sign(SITE_HEAD, head.content()),
    )


def _asked(call: Callable[..., Any], request: Any) -> Any:
    try:
        return call(request, timeout=_SECONDS)
    except grpc.RpcError as error:
        raise _refusal(error) from error


def _refusal(error: grpc.RpcError) -> RemoteError:
    return RemoteError(f"the Budget service: {error.code().name}: {_details(error)}")


def _details(error: grpc.RpcError) -> str:
    return one_line(error.details() or "", 600)


def _digest(text: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != 32 or found.hex() != text:
        raise LedgerError(f"the coordinator's ledger: {one_line(text, 80)!r} is no hash (allowed: 64 digits 0-9a-f)")
    return found


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
