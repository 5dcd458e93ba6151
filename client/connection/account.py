"""What the coordinator's ledger says of this site, and by which key it knows it: asked of the Budget service.

The certificate of the kit says who asks. Nothing is remembered of the answer: that is for `wardpose ledger remote`.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from wardpose.client.connection.door import SECONDS, Door, compare_clocks
from wardpose.client.findings import Finding, finding
from wardpose.shared.budget_wire import budget_pb2 as wire
from wardpose.shared.budget_wire import budget_pb2_grpc
from wardpose.shared.errors import one_line
from wardpose.shared.head_statements import SERVER_HEAD, ServerHead
from wardpose.shared.remote_ledger import connect
from wardpose.shared.signing import PublicKey, SignatureError

_REMEDIES = {
    "UNAVAILABLE": "the service is down, or does not accept this site's certificate (another authority's, or ended), "
    "or another one listens there: is kit.yaml's budget port right?",
    "DEADLINE_EXCEEDED": "the service is busy, or something between swallows its answers; ask again",
    "UNAUTHENTICATED": "ask the coordinator for a new certificate (wardpose provision --renew)",
    "PERMISSION_DENIED": "the certificate is of another site or role: it is of another kit",
    "DATA_LOSS": "the coordinator's staff must look at their ledger before any round",
    "UNIMPLEMENTED": "another service listens there: kit.yaml's budget port is wrong",
}


def check_account(
    door: Door,
    own: tuple[Path, Path],
    *,
    site: str,
    node: PublicKey,
    coordinator: PublicKey,
    epsilon: float,
    ask_clock: bool,
) -> Iterator[Finding]:
    """Ask for this site's account.

    Args:
        door: of the Budget service.
        own: the site's certificate and its key.
        site: its name.
        node: the key that the coordinator should know it by.
        coordinator: the key that must sign what is shown.
        epsilon: the site's own total budget.
        ask_clock: whether the signed answer's time is to be held against this clock, too.

    """
    certificate, key = own
    try:
        with connect(door.address, authority=door.authority, certificate=certificate, key=key) as channel:
            answer = _asked(channel)
            now = time.time()
    except grpc.RpcError as error:
        name = error.code().name
        remedy = _REMEDIES.get(name, "ask the coordinator")
        yield finding("account", "failure", f"{door.address}: {name}: {one_line(error.details() or '', 200)}: {remedy}")
        return
    head = answer.head
    stated = ServerHead(sequence=head.sequence, hash=head.hash, root=head.root, time=head.time)
    try:
        coordinator.verify(SERVER_HEAD, stated.content(), head.signature)
    except SignatureError as error:
        yield finding(
            "account",
            "failure",
            f"{door.address}: {error}: keys/coordinator.pub is not the key of the coordinator that answers there. "
            "Compare the fingerprint with theirs by telephone before you go on",
        )
        return
    if ask_clock:
        yield compare_clocks(now - head.time - 0.5, f"by the coordinator's signed answer at {door.address}")
    mine = next((found for found in answer.sites if found.site == site), None)
    if mine is None:
        yield finding("account", "failure", f"{door.address}: has no account of {site!r}: the kit is another site's")
        return
    yield _name(mine, site, node)
    yield from _account(mine, epsilon)


def _asked(channel: grpc.Channel) -> wire.GetAccountResponse:
    stub: Any = budget_pb2_grpc.BudgetServiceStub(channel)  # type: ignore[no-untyped-call]  # generated
    answer: wire.GetAccountResponse = stub.GetAccount(wire.GetAccountRequest(), timeout=2 * SECONDS)
    return answer


def _name(account: wire.SiteAccount, site: str, node: PublicKey) -> Finding:
    """Say whether the coordinator knows this key under this name."""
    if not account.node_key:
        return finding(
            "name",
            "warning",
            f"the coordinator knows no key of {site!r} yet: it is bound to the name when it is "
            "registered, or at the first order",
        )
    if account.node_key != node.fingerprint:
        return finding(
            "name",
            "failure",
            f"the coordinator knows {site!r} by the key {one_line(account.node_key, 64)[:16]}, and this node has "
            f"{node.fingerprint[:16]}: every answer would be refused. If the key is new, the coordinator accepts it by "
            "wardpose server accept-key",
        )
    return finding("name", "ok", f"the coordinator knows {site!r} by this node's key {node.fingerprint[:16]}")


def _account(account: wire.SiteAccount, epsilon: float) -> Iterator[Finding]:
    for alarm in account.alarms:
        yield finding(
            "account",
            "failure",
            f"the coordinator has an alarm on this site: {one_line(alarm.what, 300)}: no order "
            "comes until both ledgers agree",
        )
    spent = f"{account.epsilon:.4f}" if math.isfinite(account.epsilon) else "without bound"
    budget = account.budget if account.HasField("budget") else epsilon
    text = (
        f"by the coordinator's ledger epsilon {spent} of {budget:g} is spent, in {account.rows} entries, at delta "
        f"{account.delta:g}"
    )
    status = "ok" if account.epsilon < min(budget, epsilon) else "failure"
    yield finding(
        "account", "ok" if status == "ok" else "failure", text if status == "ok" else f"{text}: nothing is left"
    )
