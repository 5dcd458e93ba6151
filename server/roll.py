"""Who takes part: the sites of the plan that answered a preflight and may be ordered now.

A preflight asks a site, at no cost, whether it would train the next order. Whoever sends no release is not dropped but
asked again before it is ordered and charged again: a site that was late or away comes back in the next round, also
after a resume. What leaves a run for good is a site that refuses what the run asks for, whose budget is spent, or whose
answer is not believed.
"""

import logging
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace

from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from wardpose.server.admission import Admission, Rejected
from wardpose.server.budget import GlobalBudget
from wardpose.server.exchange import Answer, exchange, nodes_of
from wardpose.server.journal import Reason, SiteRow
from wardpose.shared.config import FederationConfig
from wardpose.shared.flower_codes import reply_in_words
from wardpose.shared.messages import (
    PREFLIGHT,
    PREFLIGHT_EVALUATION,
    EvaluationOrder,
    EvaluationRelease,
    RoundOrder,
    SiteRelease,
    SiteStatus,
)
from wardpose.shared.refusals import Refusal
from wardpose.shared.seals import OrderSeal
from wardpose.shared.signing import PublicKey, read_public_key
from wardpose.shared.wire import pack

logger = logging.getLogger("wardpose.server")

LEAVES = frozenset(
    {Refusal.POLICY, Refusal.BUDGET, Refusal.CODE, Refusal.ORDER, Refusal.SITE, Refusal.SEAL, Refusal.APART}
)
"""Refusals that another round of the same run would meet again."""

_MOST_FAILURES = 3  # rounds in a row that a site answered by an error, each charged, until this process asks no more


@dataclass(kw_only=True)
class Member:
    """A site that takes part.

    Attributes:
        name: the site's name.
        node_id: Flower's number for it in this run.
        key: the node's registered key; `None` where Flower simulates it.
        declared_units: N by consent tier, as the site stated it.
        epsilon_budget: as the site stated it last.
        delta: as the site stated it last.
        epsilon_spent: highest figure that the server's or the site's ledger showed.
        stated_epsilon: as the site's own ledger said last.
        secure: whether its noise is cryptographically secure.
        has_resident: whether it has the weights that no round changes.
        forgets: it asked for them although it had them; in this process they go along with every order.

    """

    name: str
    node_id: int
    key: PublicKey | None
    declared_units: Mapping[str, int]
    epsilon_budget: float
    delta: float
    epsilon_spent: float
    secure: bool
    stated_epsilon: float = 0.0
    has_resident: bool = False
    forgets: bool = False

    def hears(self, stated: SiteStatus | SiteRelease | EvaluationRelease) -> None:
        """Take over what the site last said of its budget and its noise."""
        self.epsilon_budget, self.delta, self.secure = stated.epsilon_budget, stated.delta, stated.secure
        self.stated_epsilon = stated.epsilon_spent
        self.epsilon_spent = max(self.epsilon_spent, stated.epsilon_spent)


@dataclass(kw_only=True)
class Roll:
    """The sites of a run.

    Attributes:
        grid: Flower's connection to the sites.
        config: the plan.
        admission: judges what they answer.
        budget: the server's own account of them.
        run: identity of the run.
        dropped: sites that left the run, with the reason; part of the checkpoint.
        known: sites that ever answered a preflight, by name.
        present: names of those that may be ordered now.
        failures: rounds in a row that a site answered by an error.

    """

    grid: Grid
    config: FederationConfig
    admission: Admission
    budget: GlobalBudget
    run: str
    dropped: dict[str, str]
    known: dict[str, Member] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    failures: dict[str, int] = field(default_factory=dict)

    def members(self) -> list[Member]:
        """Return the sites that may be ordered now, in the plan's order; those that went offline are asked again."""
        online = {node.node_id for node in nodes_of(self.grid)}
        self.present -= {name for name in self.present if self.known[name].node_id not in online}
        return [self.known[entry.name] for entry in self.config.sites if entry.name in self.present]

    def reachable(self) -> list[Member]:
        """Return the sites that ever answered, have not left the run and are online, whether they may be ordered."""
        online = {node.node_id for node in nodes_of(self.grid)}
        return [
            member for member in self.known.values() if member.name not in self.dropped and member.node_id in online
        ]

    def missing(self) -> list[str]:
        """Return the sites of the plan that have not left the run and may not be ordered now."""
        names = [entry.name for entry in self.config.sites]
        return [name for name in names if name not in self.present and name not in self.dropped]

    def call(self, order: RoundOrder | EvaluationOrder, *, patient: bool) -> list[SiteRow]:
        """Ask the missing sites whether they would take part in `order`; returns the journal's rows of round 0.

        Args:
            order: of the next round, or of an evaluation.
            patient: wait for all of them to come online, and as long as a round for their answers.

        """
        wanted = {site for site in self.missing() if self.failures.get(site, 0) < _MOST_FAILURES}
        nodes = self._nodes(wanted, wait=patient)
        if not nodes:
            return []
        server = self.config.server
        seconds = server.deadline_seconds if patient else min(server.wait_seconds, server.deadline_seconds)
        body, contact = pack(order), self.admission.contact
        asked = PREFLIGHT if isinstance(order, RoundOrder) else PREFLIGHT_EVALUATION
        sealed = {node: contact.sealed(body, site=name or "*", kind=asked) for node, (name, _) in nodes.items()}
        messages = [
            Message(content, node, asked, group_id="preflight", ttl=seconds) for node, (content, _) in sealed.items()
        ]
        rows = []
        for node, answer in exchange(self.grid, messages, seconds=seconds).items():
            row = self._answered(node, *nodes[node], answer, order, sealed[node][1], wanted)
            if row is not None:
                rows.append(row)
        return rows

    def drop(self, site: str, reason: str) -> None:
        """Let a site leave the run for good."""
        logger.warning("site %s leaves the run: %s", site, reason)
        self.present.discard(site)
        self.dropped[site] = reason

    def released(self, site: str) -> None:
        """Note that a site's release was believed."""
        self.failures.pop(site, None)

    def missed(self, site: str, reason: str, *, failed: bool) -> None:
        """Note that an ordered site sent no release; it must answer a preflight before it is ordered again."""
        logger.warning("site %s: no release (%s); the round is charged", site, reason)
        self.present.discard(site)
        if failed:
            self.failures[site] = self.failures.get(site, 0) + 1
            if self.failures[site] >= _MOST_FAILURES:
                logger.warning("site %s: %d rounds failed; asked again after a resume", site, _MOST_FAILURES)

    def row(
        self,
        number: int,
        site: str,
        status: str,
        *,
        code: int | None = None,
        error: Rejected | None = None,
        steps: int = 0,
        bytes_up: int = 0,
    ) -> SiteRow:
        """Return the journal's row of a site, with what is known about it."""
        row = SiteRow(
            run=self.run,
            round=number,
            site=site,
            status=status,
            code=code,
            bytes_up=bytes_up,
            steps=steps,
            reason="" if error is None else error.reason.value,
            detail="" if error is None else str(error),
        )
        member = self.known.get(site)
        if member is None:
            return row
        return replace(
            row,
            epsilon_spent=member.epsilon_spent,
            epsilon_budget=member.epsilon_budget,
            delta=member.delta,
            secure=member.secure,
        )

    def _answered(
        self,
        node: int,
        registered: str,
        key: PublicKey | None,
        answer: Answer,
        order: RoundOrder | EvaluationOrder,
        seal: OrderSeal,
        wanted: Set[str],
    ) -> SiteRow | None:
        """Judge one answer to a preflight; `None` where no site of the plan can be named."""
        if answer is None:
            logger.warning("site %s: no answer to the preflight", registered or node)
            return self.row(0, registered, "late") if registered else None
        code = error_code(answer)
        if code is not None:
            text = sentence(code)
            logger.warning("site %s: %s", registered or node, text)
            if code == Refusal.APART and registered:
                self.admission.contact.alarm(registered, text)
            if code in LEAVES and registered:
                self.drop(registered, text)
            status = "refused" if code in LEAVES else "failed"
            return self.row(0, registered, status, code=code) if registered else None
        try:
            status_of = self.admission.status(answer, order=order, registered=registered, seal=seal, key=key)
        except Rejected as error:
            logger.warning("site %s: %s", registered or node, error)
            if not registered:
                return None
            if error.reason is not Reason.SENDER:
                self.drop(registered, str(error))
            return self.row(0, registered, "rejected", error=error)
        site = status_of.site
        if site not in wanted or site in self.present:
            return None
        before = self.known.get(site)
        self.known[site] = Member(
            name=site,
            node_id=node,
            key=key,
            declared_units=status_of.declared_units,
            epsilon_budget=status_of.epsilon_budget,
            delta=status_of.delta,
            epsilon_spent=max(status_of.epsilon_spent, self.budget.epsilon(site)),
            secure=status_of.secure,
            stated_epsilon=status_of.epsilon_spent,
            has_resident=status_of.resident and not (before is not None and before.forgets),
            forgets=before is not None and before.forgets,
        )
        self.present.add(site)
        return self.row(0, site, "ready")

    def _nodes(self, wanted: Set[str], *, wait: bool) -> dict[int, tuple[str, PublicKey | None]]:
        """Return the nodes to ask; node -> registered name (empty if simulated by Flower) and key (of no such)."""
        if not wanted:
            return {}
        taken = {self.known[name].node_id for name in self.present}
        until = time.monotonic() + (self.config.server.wait_seconds if wait else 0.0)
        while True:
            nodes = {node.node_id: (node.name, _key(node)) for node in nodes_of(self.grid)}
            named = {name for name, _ in nodes.values() if name}
            simulated = bool(nodes) and not named  # Flower's simulation has all its nodes from the start
            if simulated or named >= wanted or time.monotonic() >= until:
                asked = {node: about for node, about in nodes.items() if simulated or about[0] in wanted}
                return {node: about for node, about in asked.items() if node not in taken}
            time.sleep(0.5)


def _key(node: NodeInfo) -> PublicKey | None:
    """Return the key that a node was registered with; `None` where Flower simulates it."""
    if not node.name or not node.public_key:  # Flower gives simulated nodes bytes that are no key
        return None
    return read_public_key(node.public_key.decode(errors="replace"), f"node {node.name}")


def error_code(answer: Answer) -> int | None:
    """Return the number of an error reply; `None` for anything else. SQLite's integers bound it."""
    if not isinstance(answer, Message) or not answer.has_error():
        return None
    code = answer.error.code
    return code if isinstance(code, int) and abs(code) < 1 << 63 else 0


def sentence(code: int) -> str:
    """Say what an error reply's number means; never what the site wrote beside it."""
    return Refusal(code).sentence if code in set(Refusal) else reply_in_words(code)
