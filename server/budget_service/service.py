"""The five calls of the Budget service: who may see what, and what is proven of it.

Every call asks the certificate who the caller is (`identity`), takes in what the coordinator has written since
(`view`), and answers with a head that its proofs lead to. Nothing here writes to the ledger.
"""

import functools
import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import grpc

from wardpose.server.budget_service.identity import Peer, Refused, peer_of
from wardpose.server.budget_service.submissions import Submissions
from wardpose.server.budget_service.view import LedgerView, Snapshot, Terms, owner
from wardpose.shared.budget_wire import budget_pb2 as wire
from wardpose.shared.errors import DataError, LedgerError, one_line
from wardpose.shared.head_statements import SERVER_HEAD, ServerHead, SiteHead
from wardpose.shared.signing import Signer

logger = logging.getLogger("wardpose.budget_service")

_ROWS_AN_ANSWER = 256
_CHARACTERS_AN_ANSWER = 1 << 18
_DAMAGED = "the coordinator's ledger cannot be shown now; its staff find the reason in the service's log"

Call = Callable[["BudgetService", Any, grpc.ServicerContext], Any]


def _answers(call: Call) -> Call:
    """Turn what goes wrong into a status; the caller never sees a traceback, a path, or a row of somebody else."""

    @functools.wraps(call)
    def answering(service: "BudgetService", request: Any, context: grpc.ServicerContext) -> Any:
        try:
            return call(service, request, context)
        except Exception as error:
            _abort(context, error)

    return answering


def _streams(call: Call) -> Call:
    @functools.wraps(call)
    def answering(service: "BudgetService", request: Any, context: grpc.ServicerContext) -> Any:
        try:
            yield from call(service, request, context)
        except Exception as error:
            _abort(context, error)

    return answering


def _abort(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    if isinstance(error, Refused):
        logger.info("refused: %s: %s", error.code.name, one_line(error.text, 400))
        context.abort(error.code, error.text)
    damaged = isinstance(error, LedgerError | DataError | sqlite3.Error)
    logger.error("%s: %s", type(error).__name__, one_line(error, 1000), exc_info=not damaged)
    if damaged:
        locked = "locked" in str(error.__cause__ or error)
        context.abort(grpc.StatusCode.UNAVAILABLE if locked else grpc.StatusCode.DATA_LOSS, _DAMAGED)
    context.abort(grpc.StatusCode.INTERNAL, "the service failed; its log says why")
    raise AssertionError from error  # `abort` raises


class BudgetService:
    """Answer sites and auditors.

    Attributes:
        view: of the coordinator's ledger.
        submissions: what sites state of theirs.

    """

    def __init__(
        self,
        view: LedgerView,
        submissions: Submissions,
        *,
        signer: Signer | None,
        insecure: bool = False,
        revoked: Path | None = None,
        streams: int = 8,
    ) -> None:
        """Serve a view.

        Args:
            view: of the ledger.
            submissions: of sites.
            signer: the coordinator's key, which signs heads; unsigned without one.
            insecure: take everybody for an auditor: on loopback alone.
            revoked: list of the certificates that were taken back, read at every call.
            streams: most that run at once, a quarter of them for one caller; each holds a thread.

        """
        self.view = view
        self.submissions = submissions
        self._signer = signer
        self._insecure = insecure
        self._revoked = revoked
        self._places = _Places(streams)

    @_answers
    def GetAccount(  # noqa: N802 (a call's name)
        self, request: wire.GetAccountRequest, context: grpc.ServicerContext
    ) -> wire.GetAccountResponse:
        """Say what a site was charged, and what the federation adds up to."""
        peer, snapshot, terms = self._peer(context), self.view.snapshot(), self.view.terms()
        charged = self.view.sites()
        disjoint, overlap = self.view.federation(terms)
        federation = wire.FederationAccount(
            disjoint=disjoint, overlap=overlap, overlap_sites=terms.overlap, delta=terms.delta, sites=len(charged)
        )
        accounts = [self._account(site, terms) for site in _chosen(peer, request.site, charged)]
        return wire.GetAccountResponse(sites=accounts, federation=federation, head=self._head(snapshot))

    @_streams
    def StreamEntries(  # noqa: N802 (a call's name)
        self, request: wire.StreamEntriesRequest, context: grpc.ServicerContext
    ) -> Iterator[wire.StreamEntriesResponse]:
        """Send the ledger from an entry on, as it was when the call began."""
        peer, snapshot = self._peer(context), self.view.snapshot()
        _require("from_sequence", request.from_sequence, 1, snapshot.sequence + 1)
        with self._places.taken(peer):
            yield wire.StreamEntriesResponse(head=self._head(snapshot))
            first = request.from_sequence
            last = min(snapshot.sequence, first - 1 + request.limit) if request.limit else snapshot.sequence
            for rows in _batches(self._rows(peer, first - 1, last)):
                if not context.is_active():  # cancelled, or past its deadline
                    return
                yield wire.StreamEntriesResponse(rows=rows)

    @_answers
    def VerifyInclusion(  # noqa: N802 (a call's name)
        self, request: wire.VerifyInclusionRequest, context: grpc.ServicerContext
    ) -> wire.VerifyInclusionResponse:
        """Prove that an entry is in the ledger."""
        self._peer(context)
        snapshot = self.view.snapshot()
        _require("sequence", request.sequence, 1, snapshot.sequence)
        ((entry, _),) = self.view.entries(request.sequence - 1, request.sequence)
        path = self.view.inclusion(request.sequence, snapshot.sequence)
        return wire.VerifyInclusionResponse(hash=entry.hash, path=path, head=self._head(snapshot))

    @_answers
    def VerifyConsistency(  # noqa: N802 (a call's name)
        self, request: wire.VerifyConsistencyRequest, context: grpc.ServicerContext
    ) -> wire.VerifyConsistencyResponse:
        """Prove that the ledger still begins with what it was."""
        self._peer(context)
        snapshot = self.view.snapshot()
        size = request.size or snapshot.sequence
        _require("size", size, 0, snapshot.sequence)
        _require("sequence", request.sequence, 0, size)
        path = self.view.consistency(request.sequence, size)
        return wire.VerifyConsistencyResponse(path=path, head=self._head(snapshot))

    @_answers
    def SubmitHead(  # noqa: N802 (a call's name)
        self, request: wire.SubmitHeadRequest, context: grpc.ServicerContext
    ) -> wire.SubmitHeadResponse:
        """Hold what a site states of its ledger against what was seen of it."""
        peer = self._peer(context)
        if peer.role != "site":
            raise Refused(grpc.StatusCode.PERMISSION_DENIED, f"role is {peer.role!r} (allowed: site)")
        try:
            head = SiteHead(
                site=peer.name,
                sequence=request.sequence,
                hash=request.hash,
                seen_sequence=request.seen_sequence,
                seen_hash=request.seen_hash,
                time=request.time,
            )
        except LedgerError as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error
        self.submissions.submit(head, request.signature)
        return wire.SubmitHeadResponse(head=self._head(self.view.snapshot()))

    def _peer(self, context: grpc.ServicerContext) -> Peer:
        return Peer(name="loopback", role="auditor") if self._insecure else peer_of(context, self._revoked)

    def _account(self, site: str, terms: Terms) -> wire.SiteAccount:
        figures, seen = self.view.figures(site, terms), self.submissions.last(site)
        alarms = [wire.Alarm(time=alarm.first, what=alarm.what) for alarm in self.submissions.alarms.of(site)]
        reasons = (
            (figures.seeded, "noise came from a seed: whoever knows it can subtract it"),
            (figures.unprotected, "something was released without noise"),
        )
        return wire.SiteAccount(
            site=site,
            epsilon=figures.epsilon,
            budget=figures.budget,
            delta=terms.delta,
            unit=terms.unit,
            rows=figures.rows,
            not_private="; ".join(text for holds, text in reasons if holds),
            seen_sequence=seen[0],
            seen_hash=seen[1],
            alarms=alarms,
            node_key=self.submissions.fingerprint(site),
        )

    def _rows(self, peer: Peer, after: int, until: int) -> Iterator[wire.EntryRow]:
        mine = self.view.account_of(peer.name)
        for entry, body in self.view.entries(after, until):
            if peer.role == "auditor" or owner(entry) == mine:
                yield wire.EntryRow(hash=entry.hash, kind=entry.kind, body=body)
            else:
                yield wire.EntryRow(hash=entry.hash)

    def _head(self, snapshot: Snapshot) -> wire.ServerHead:
        head = ServerHead(sequence=snapshot.sequence, hash=snapshot.hash, root=snapshot.root, time=int(time.time()))
        signature = "" if self._signer is None else self._signer.sign(SERVER_HEAD, head.content())
        return wire.ServerHead(
            sequence=head.sequence, hash=head.hash, root=head.root, time=head.time, signature=signature
        )


class _Places:
    """How many streams run, in all and for each caller."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._each = max(1, most // 4)
        self._taken = Counter[Peer]()
        self._lock = threading.Lock()

    @contextmanager
    def taken(self, peer: Peer) -> Iterator[None]:
        """Hold a place while the block runs."""
        with self._lock:
            if self._taken.total() >= self._most or self._taken[peer] >= self._each:
                raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams at once; try again later")
            self._taken[peer] += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken[peer] -= 1


def _chosen(peer: Peer, site: str, charged: tuple[str, ...]) -> tuple[str, ...]:
    """Return the sites that an answer is about."""
    if peer.role == "site":
        if site not in ("", peer.name):
            raise Refused(
                grpc.StatusCode.PERMISSION_DENIED, f"site is {one_line(site, 80)!r} (allowed: {peer.name!r}, or none)"
            )
        return (peer.name,)
    if site and site not in charged:
        raise Refused(
            grpc.StatusCode.NOT_FOUND, f"site is {one_line(site, 80)!r} (allowed: one that was charged, or none)"
        )
    return (site,) if site else charged


def _require(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        allowed = f"{least} to {most}" if least <= most else "none yet: the ledger is empty"
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"{name} is {value} (allowed: {allowed})")


def _batches(rows: Iterator[wire.EntryRow]) -> Iterator[list[wire.EntryRow]]:
    batch: list[wire.EntryRow] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row.body)
        if len(batch) >= _ROWS_AN_ANSWER or characters >= _CHARACTERS_AN_ANSWER:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
