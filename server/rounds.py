"""The round loop: who takes part, what is ordered, what comes back, and when to stop.

Flower's own `Strategy.start` counts from round 1, waits for ever and keeps nothing. This loop knows sites by name, has
a deadline and a quorum, charges every order before it is sent, writes a checkpoint after each round and can go on from
it.
"""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from wardpose.server.aggregation import Aggregator, Arrays
from wardpose.server.budget import GlobalBudget
from wardpose.server.checkpoint import Checkpoint
from wardpose.server.journal import RoundRow, RunJournal, SiteRow
from wardpose.server.scoring import Scorer
from wardpose.server.uplink import UplinkDecoder
from wardpose.shared.config import FederationConfig
from wardpose.shared.errors import WardposeError, WireError
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.version import code_hash
from wardpose.shared.wire import (
    PREFLIGHT,
    TRAIN,
    Refusal,
    RoundOrder,
    SiteRelease,
    SiteStatus,
    hash_arrays,
    pack,
    unpack,
)

logger = logging.getLogger("wardpose.server")

_LEAVES = {Refusal.POLICY, Refusal.BUDGET, Refusal.CODE, Refusal.ORDER, Refusal.SITE}
_MAXIMUM_FAILURES = 3
_POLL_SECONDS = 0.5  # each poll of a real SuperLink is a request; a grid in this process says how often it may be asked


@dataclass(kw_only=True)
class Member:
    """A site that takes part.

    Attributes:
        name: the site's name.
        node_id: Flower's number for it in this run.
        weight: public constant of the weighted mean.
        epsilon_budget: as the site stated it.
        delta: as the site stated it.
        epsilon_spent: highest figure that the server's or the site's ledger showed.
        secure: whether its noise is cryptographically secure.
        failures: rounds without a release, in a row.

    """

    name: str
    node_id: int
    weight: float
    epsilon_budget: float
    delta: float
    epsilon_spent: float
    secure: bool
    failures: int = 0


class Coordinator:
    """Run a federation's rounds over a Flower grid.

    Attributes:
        folder: journal, ledger and checkpoint of the federation.
        state: where the run stands.
        members: sites still in the run, by name.

    """

    def __init__(
        self,
        grid: Grid,
        config: FederationConfig,
        folder: Path,
        *,
        state: Checkpoint,
        mechanism: Mechanism,
        scorer: Scorer,
    ) -> None:
        self.grid = grid
        self.config = config
        self.folder = folder
        self.state = state
        self.mechanism = mechanism
        self.scorer = scorer
        self.journal = RunJournal(folder / "journal.sqlite")
        overlap = config.privacy.overlap or len(config.sites)
        self.budget = GlobalBudget(folder / "ledger.sqlite", delta=config.privacy.delta, overlap=overlap)
        self.uplink = UplinkDecoder(config, mechanism, scorer.model, folder)
        self.aggregator = Aggregator(config.server.aggregation)
        self.aggregator.restore(state.aggregator)
        self.members: dict[str, Member] = {}

    def run(self) -> str:
        """Take the rounds that are left; return `completed`, or `stopped` when too few sites are left."""
        self._preflight()
        while self.state.round < self.config.rounds:
            if not self._round(self.state.round + 1):
                return "stopped"
        return "completed"

    def order(self, round_number: int, weights: Arrays) -> RoundOrder:
        """Return what a round asks of every site."""
        training = self.config.training
        return RoundOrder(
            run=self.state.run,
            federation=self.config.name,
            round=round_number,
            model=self.config.model.model_copy(update={"weights": "random"}),
            strategy=training.strategy,
            steps=training.steps_per_round,
            optimizer=training.optimizer,
            mechanism=self.mechanism,
            schedule_step=(round_number - 1) * training.steps_per_round,
            augmented_views=training.augmented_views,
            augmentation=training.augmentation,
            micro_batch=training.micro_batch,
            precision=training.precision,
            weights_hash=hash_arrays(weights),
            code_hash=code_hash(),
            public_data=self.uplink.public_data,
        )

    def _preflight(self) -> None:
        """Wait for the sites and ask each whether it would take part, before anything is charged."""
        wanted = {entry.name: entry for entry in self.config.sites if entry.name not in self.state.dropped}
        nodes = self._wait_for_nodes(set(wanted))
        body = pack(self.order(self.state.round + 1, self.state.weights))
        messages = [Message(body, node, PREFLIGHT, group_id="preflight", ttl=self._deadline()) for node in nodes]
        rows = []
        for node, reply in self._exchange(messages).items():
            registered = nodes[node]
            try:
                status = self._status(reply, registered)
            except WireError as error:
                logger.warning("site %s: %s", registered or node, error)
                code = reply.error.code if reply is not None and reply.has_error() else None
                if registered:
                    self._drop(registered, str(error))
                    rows.append(SiteRow(run=self.state.run, round=0, site=registered, status="refused", code=code))
                continue
            if status.site not in wanted:
                continue
            self.members[status.site] = Member(
                name=status.site,
                node_id=node,
                weight=wanted[status.site].weight,
                epsilon_budget=status.epsilon_budget,
                delta=status.delta,
                epsilon_spent=max(status.epsilon_spent, self.budget.epsilon(status.site)),
                secure=status.secure,
            )
            self._remember_head(status.site, status.ledger_sequence)
            rows.append(self._site_row(0, self.members[status.site], "ready"))
        self.journal.site(*rows)

    def _round(self, number: int) -> bool:
        """Take one round; `False` when fewer sites than the quorum can still take part."""
        started = time.time()
        weights = self.state.weights
        order = self.order(number, weights)
        content = pack(order, weights)
        online = {node.node_id for node in self.grid.get_nodes()}
        events = order.events()
        ordered: dict[int, Member] = {}
        for member in list(self.members.values()):
            if member.node_id not in online:
                member.failures += 1
                continue
            affordable = float("inf") if self.mechanism.name == "none" else member.epsilon_budget
            if self.budget.reserve(member.name, events, run=self.state.run, round_number=number, epsilon=affordable):
                ordered[member.node_id] = member
            else:
                self._drop(member.name, "its privacy budget is spent")
        if len(ordered) < self.config.server.minimum_sites:
            logger.warning(
                "round %d: %d able sites, server.minimum_sites = %d",
                number,
                len(ordered),
                self.config.server.minimum_sites,
            )
            return False
        messages = [Message(content, node, TRAIN, group_id=str(number), ttl=self._deadline()) for node in ordered]
        updates: dict[str, tuple[Arrays, float]] = {}
        rows = []
        for node, reply in self._exchange(messages).items():
            row, update = self._release(number, ordered[node], order, reply)
            rows.append(row)
            if update is not None:
                updates[ordered[node].name] = (update, ordered[node].weight)
        if len(updates) >= self.config.server.minimum_sites:
            weights = self.aggregator.combine(weights, updates, round_number=number, request=messages[0])
        else:
            logger.warning(
                "round %d: %d releases, server.minimum_sites = %d: weights unchanged",
                number,
                len(updates),
                self.config.server.minimum_sites,
            )
        score = self.scorer.validation(weights)
        disjoint, overlap = self.budget.federation([entry.name for entry in self.config.sites])
        size = sum(array.nbytes for array in self.state.weights.values())
        summary = RoundRow(
            run=self.state.run,
            round=number,
            started=started,
            seconds=time.time() - started,
            score=score,
            bytes_down=size * len(ordered),
            bytes_up=sum(row.bytes_up for row in rows),
            epsilon_disjoint=disjoint,
            epsilon_overlap=overlap,
        )
        self.state.round, self.state.weights, self.state.aggregator = number, weights, self.aggregator.state()
        self.state.save(self.folder / "checkpoint.safetensors")
        self.journal.round(summary, rows)
        logger.info(
            "round %d/%d: %s %s, epsilon at most %.3f, %d of %d sites",
            number,
            self.config.rounds,
            self.config.server.score,
            "-" if score is None else f"{score:.3f}",
            disjoint,
            len(updates),
            len(ordered),
            extra={"round": summary, "sites": rows},
        )
        return True

    def _release(
        self, number: int, member: Member, order: RoundOrder, reply: Message | None
    ) -> tuple[SiteRow, Arrays | None]:
        """Judge one reply; the cost is charged already, whatever it is."""
        member.epsilon_spent = max(member.epsilon_spent, self.budget.epsilon(member.name))
        if reply is None:
            self._failed(member, "it missed the deadline")
            return self._site_row(number, member, "late", steps=order.steps), None
        if reply.has_error():
            code = reply.error.code
            if code in set(_LEAVES):
                self._drop(member.name, Refusal(code).sentence)
                return self._site_row(number, member, "refused", code=code, steps=order.steps), None
            self._failed(member, f"error {code}")
            return self._site_row(number, member, "failed", code=code, steps=order.steps), None
        try:
            release, update = unpack(reply.content, SiteRelease)
            expected = (
                member.name,
                order.run,
                order.round,
                order.mechanism,
                order.steps,
                order.weights_hash,
                order.code_hash,
            )
            stated = (
                release.site,
                release.run,
                release.round,
                release.mechanism,
                release.steps,
                release.weights_hash,
                release.code_hash,
            )
            if stated != expected:
                raise WireError("the release does not answer the order")
            self._remember_head(member.name, release.ledger_sequence)
            size = sum(array.nbytes for array in update.values())
            update = self.uplink(self.state.weights, update)
        except WireError as error:
            self._drop(member.name, str(error))
            return self._site_row(number, member, "failed", steps=order.steps), None
        member.failures, member.secure = 0, release.secure
        member.epsilon_spent = max(member.epsilon_spent, release.epsilon_spent)
        return self._site_row(number, member, "released", steps=order.steps, bytes_up=size), update

    def _status(self, reply: Message | None, registered: str) -> SiteStatus:
        if reply is None:
            raise WireError("no answer to the preflight")
        if reply.has_error():
            known = reply.error.code in set(Refusal)
            raise WireError(Refusal(reply.error.code).sentence if known else f"error {reply.error.code}")
        status, _ = unpack(reply.content, SiteStatus)
        if registered and status.site != registered:
            raise WireError(f'registered as "{registered}" but calls itself "{status.site}"')
        return status

    def _remember_head(self, site: str, sequence: int) -> None:
        """Raise `WireError` when a site's ledger is shorter than it once was."""
        before = self.state.ledger_heads.get(site, 0)
        if sequence < before:
            raise WireError(f"{site}: its ledger went back from {before} to {sequence} entries")
        self.state.ledger_heads[site] = sequence

    def _wait_for_nodes(self, wanted: set[str]) -> dict[int, str]:
        """Wait for the wanted sites, or until the time is up; node -> registered name (empty if simulated)."""
        until = time.monotonic() + self.config.server.wait_seconds
        while True:
            nodes = {node.node_id: node.name for node in self.grid.get_nodes()}
            named = {name for name in nodes.values() if name}
            simulated = bool(nodes) and not named  # Flower's simulation has all its nodes from the start
            if simulated or named >= wanted or time.monotonic() > until:
                return {node: name for node, name in nodes.items() if not named or name in wanted}
            time.sleep(0.5)

    def _exchange(self, messages: list[Message]) -> dict[int, Message | None]:
        """Send messages and collect replies until all are there or the deadline passes; node -> reply."""
        identifiers = list(self.grid.push_messages(messages))
        nodes = {
            identifier: message.metadata.dst_node_id for identifier, message in zip(identifiers, messages, strict=True)
        }
        replies: dict[int, Message | None] = dict.fromkeys(nodes.values())
        until = time.monotonic() + self._deadline()
        pause, longest = 0.005, getattr(self.grid, "poll_seconds", _POLL_SECONDS)
        while nodes and time.monotonic() < until:
            for reply in self.grid.pull_messages(list(nodes)):
                node = nodes.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    replies[node] = reply
            if nodes:
                time.sleep(pause)
                pause = min(longest, pause * 1.5)
        return replies

    def _deadline(self) -> float:
        return self.config.server.deadline_seconds

    def _drop(self, site: str, reason: str) -> None:
        logger.warning("site %s leaves the run: %s", site, reason)
        self.members.pop(site, None)
        self.state.dropped[site] = reason

    def _failed(self, member: Member, reason: str) -> None:
        member.failures += 1
        logger.warning("site %s: no release (%s); the round is charged", member.name, reason)
        if member.failures >= _MAXIMUM_FAILURES:
            self._drop(member.name, f"no release in {_MAXIMUM_FAILURES} rounds")

    def _site_row(
        self,
        number: int,
        member: Member,
        status: str,
        *,
        code: int | None = None,
        steps: int = 0,
        bytes_up: int = 0,
    ) -> SiteRow:
        return SiteRow(
            run=self.state.run,
            round=number,
            site=member.name,
            status=status,
            code=code,
            bytes_up=bytes_up,
            steps=steps,
            epsilon_spent=member.epsilon_spent,
            epsilon_budget=member.epsilon_budget,
            delta=member.delta,
            secure=member.secure,
        )


__all__ = ["Coordinator", "Member", "WardposeError"]
