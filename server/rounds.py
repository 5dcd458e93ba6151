"""The round loop: who takes part, what is ordered, what comes back, and when to stop.

Flower's own `Strategy.start` counts from round 1, waits for ever and keeps nothing. This loop knows sites by name, has
a deadline and a quorum, charges every order before it is sent, believes no answer before it is checked, writes a
checkpoint after each round and can go on from it. A round is: call the roll, charge, exchange, judge, combine, close.
"""

import logging
import time
from collections.abc import Sequence, Set
from dataclasses import asdict
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from wardpose.server.admission import Admission, Admitted, Rejected
from wardpose.server.aggregation import Aggregator, Arrays, clip_to_median
from wardpose.server.budget import GlobalBudget
from wardpose.server.checkpoint import Checkpoint
from wardpose.server.coordinator import Accounts
from wardpose.server.delivery import Delivery, resident_hash
from wardpose.server.ending import SPENT, End, stopped
from wardpose.server.evaluation import Evaluator
from wardpose.server.exchange import Answer, exchange, nodes_of
from wardpose.server.journal import Ending, LastRound, Reason, RoundRow, RunJournal, SiteRow
from wardpose.server.roll import LEAVES, Member, Roll, error_code, sentence
from wardpose.server.scoring import Scorer
from wardpose.server.secure_round import SecureRound
from wardpose.server.updates import Shortened, Updates
from wardpose.server.uplink import UplinkDecoder
from wardpose.shared.config import FederationConfig, ServerConfig
from wardpose.shared.errors import WireError
from wardpose.shared.laps import Laps
from wardpose.shared.messages import RECEIPTS, ReceiptsOrder, RoundOrder
from wardpose.shared.privacy.accounting import as_seeded
from wardpose.shared.privacy.course import Course
from wardpose.shared.refusals import Refusal
from wardpose.shared.seals import Head, OrderSeal, Receipt
from wardpose.shared.version import code_hash
from wardpose.shared.wire import ArrayForm, hash_arrays, pack

logger = logging.getLogger("wardpose.server")

_RECEIPT_SECONDS = 30.0  # longest wait for the answers to a run's last receipts
_LOOKED_AT, _PATIENCE = 3, 4.0  # rounds that a deadline is taken from, and how many times the longest it is
_SUSPICIOUS = 0.5  # an update that is shortened by more is told


class Coordinator:
    """Run a federation's rounds over a Flower grid.

    Attributes:
        folder: journal, checkpoint and model of the federation.
        state: where the run stands.
        roll: the sites, and which of them may be ordered.

    """

    def __init__(
        self,
        grid: Grid,
        config: FederationConfig,
        folder: Path,
        *,
        state: Checkpoint,
        course: Course,
        scorer: Scorer,
        accounts: Accounts,
    ) -> None:
        self.grid = grid
        self.config = config
        self.folder = folder
        self.accounts = accounts
        self.state = state
        self.course = course
        self.mechanism = course.mechanism
        self.scorer = scorer
        self.journal = RunJournal(folder / "journal.sqlite")
        overlap = config.privacy.overlap or len(config.sites)
        self.budget = GlobalBudget(
            accounts.ledger(),
            delta=config.privacy.delta,
            overlap=overlap,
            unit=course.mechanism.unit,
            limits=accounts.config,
        )
        self.contact = accounts.contact(self.budget.ledger, run=state.run)
        self.uplink = UplinkDecoder(config, course.mechanism, scorer.model, folder)
        self.admission = Admission(config, course.mechanism, scorer.model, self.uplink, accounts.heads, self.contact)
        self.aggregator = Aggregator(config.server.aggregation)
        self.aggregator.restore(state.aggregator)
        self.roll = Roll(
            grid=grid,
            config=config,
            admission=self.admission,
            budget=self.budget,
            run=state.run,
            dropped=state.dropped,
        )
        self.evaluator = Evaluator(
            grid, config, course, roll=self.roll, budget=self.budget, admission=self.admission, journal=self.journal
        )

    def run(self) -> str:
        """Take the rounds that are left; return `completed`, or `stopped` when too few sites are left."""
        first = not self.roll.known
        while self.state.round < self.config.rounds:
            order = self.order(self.state.round + 1)
            patient = first or len(self.roll.members()) < self.quorum
            self.journal.site(*self.roll.call(order, patient=patient))
            if not self.round(order):
                self.deliver_receipts()
                return "stopped"
            self.evaluator.after_round(self.state.round, self.state.weights)
            first = False
        self.deliver_receipts()
        return "completed"

    def ask_sites(self, preflight: str) -> End | None:
        """Ask all sites, before anything is charged, whether they would take part; how the run ends, if it does here.

        Args:
            preflight: `strict`, where a site that refuses ends the run; `only`, where it ends here in any case; nothing
                is asked where it is empty.

        """
        if not preflight or self.state.round >= self.config.rounds:
            return None
        self.journal.site(*self.roll.call(self.order(self.state.round + 1), patient=True))
        refused = "; ".join(f"{site}: {reason}" for site, reason in self.roll.dropped.items())
        if not refused and preflight != "only":
            return None
        detail = f"nothing was charged: {refused or 'no site refuses the plan'}"
        return End(status="stopped", reason=Ending.REFUSED if refused else None, detail=detail)

    def end(self, status: str) -> End:
        """Say how the rounds ended, and why if they did early."""
        if status != "stopped":
            return End(status=status)
        roll = self.roll
        return stopped(
            round_number=self.state.round + 1, quorum=self.quorum, dropped=roll.dropped, missing=roll.missing()
        )

    @property
    def quorum(self) -> int:
        """Releases that a round needs."""
        distributed = self.mechanism.distributed
        return max(self.config.server.minimum_sites, 0 if distributed is None else distributed.minimum_survivors)

    def order(self, round_number: int) -> RoundOrder:
        """Return what a round that starts from the present weights asks of every site."""
        training = self.config.training
        return RoundOrder(
            course=self.course,
            round=round_number,
            model=self.config.model.model_copy(update={"weights": "random"}),
            training=training,
            weights_hash=hash_arrays(self.state.weights),
            code_hash=code_hash(),
            public_data=self.uplink.public_data,
            resident=resident_hash(self.state.weights, self.admission.moving(self.state.weights)),
        )

    def round(self, order: RoundOrder) -> bool:
        """Take one round; `False`, and nothing charged, when fewer sites than the quorum can take part."""
        if self.mechanism.distributed is not None:
            return SecureRound(self, order, self.mechanism.distributed).run()
        started = time.time()
        laps = Laps()
        members = self.charge(order)
        laps.mark("charge")
        if not members:
            return False
        delivery = self.delivery()
        with Updates(self.folder) as updates:
            rows = []
            laps.mark("prepare")
            for member, answer in delivery.exchange(dict.fromkeys((m.name for m in members), order), members):
                laps.mark("wait")
                row, admitted = self.judge(order, member, answer, delivery.seals[member.name])
                self.give_receipt(row, admitted, delivery.seals[member.name].order)
                rows.append(row)
                if admitted is not None:
                    updates.keep(member.name, admitted.update, norm=admitted.norm)
                laps.mark("judge")
            weights = self.combine(updates, order.round, request=delivery.request)
        laps.mark("aggregate")
        self.close(order.round, weights, rows, started=started, delivery=delivery)
        laps.mark("close")
        laps.log(logger, "round", order.round)
        return True

    def deadline(self) -> float:
        """Return the seconds that the next round may take."""
        return deadline(self.config.server, self.journal.last_rounds(self.state.run, _LOOKED_AT))

    def delivery(self) -> Delivery:
        """Return how the present weights go to the sites."""
        return Delivery(
            grid=self.grid,
            admission=self.admission,
            budget=self.budget,
            weights=self.state.weights,
            trained=self.admission.moving(self.state.weights),
            seconds=self.deadline(),
        )

    def charge(self, order: RoundOrder) -> list[Member]:
        """Charge every site that can take part for a round about to be ordered; empty, and no charge, below the quorum.

        A site whose budget is spent leaves the run.
        """
        events = order.events()
        self.bind()
        limits = {
            member.name: member.epsilon_budget if self.mechanism.is_private else float("inf")
            for member in self.roll.members()
        }
        for name, limit in limits.items():
            if not self.budget.affords(name, events, epsilon=limit, course=order.course):
                self.roll.drop(name, SPENT)
        able = self.roll.members()
        if len(able) < self.quorum:
            logger.warning("round %d: %d able sites, %d are needed", order.round, len(able), self.quorum)
            return []
        for member in able:
            paid = events if member.secure else as_seeded(events)
            if not self.budget.reserve(
                member.name, paid, course=order.course, round_number=order.round, epsilon=limits[member.name]
            ):
                self.roll.drop(member.name, SPENT)
            member.epsilon_spent = max(member.epsilon_spent, self.budget.epsilon(member.name))
        return [member for member in able if member.name in self.roll.present]

    def give_receipt(self, row: SiteRow, admitted: Admitted | None, order: str) -> None:
        """Sign for a site that was ordered what became of its round; `order` is the order's hash."""
        receipt = Receipt(
            site=row.site,
            run=row.run,
            round=row.round,
            order=order,
            release=None if admitted is None else admitted.facts,
            outcome=row.status,
            ledger=Head(*self.budget.ledger.head()),
            issued=time.time(),
        )
        self.contact.give([receipt])

    def deliver_receipts(self) -> None:
        """Bring the last receipts to the sites that are there; those that are not get them at the next contact.

        Sites that were late are asked too: of what they never began they sign that nothing was released.
        """
        members = [
            member
            for member in self.roll.reachable()
            if self.contact.undelivered(member.name) or self.contact.unanswered(member.name)
        ]
        body = pack(ReceiptsOrder(run=self.state.run))
        seconds = min(self.config.server.wait_seconds, _RECEIPT_SECONDS)
        sealed = {member.node_id: self.contact.sealed(body, site=member.name, kind=RECEIPTS) for member in members}
        messages = [
            Message(content, node, RECEIPTS, group_id="receipts", ttl=seconds) for node, (content, _) in sealed.items()
        ]
        answers = exchange(self.grid, messages, seconds=seconds)
        for member in members:
            answer = answers[member.node_id]
            if answer is None or error_code(answer) is not None:
                logger.warning("site %s: its receipts wait for the next contact", member.name)
                continue
            try:
                self.admission.kept(answer, site=member.name, seal=sealed[member.node_id][1], key=member.key)
            except Rejected as error:
                logger.warning("site %s: %s", member.name, error)
        self.tell_apart()

    def tell_apart(self) -> None:
        """Say where the coordinator has charged a site more than its own ledger says, and for which rounds."""
        for member in self.roll.known.values():
            charged = self.budget.epsilon(member.name, delta=member.delta)
            open_rounds = sorted({charge.round for charge in self.contact.unanswered(member.name)})
            if open_rounds:
                logger.warning(
                    "site %s: epsilon %.4g is charged here, its own ledger says %.4g: no answer came to round %s "
                    "(the charge stays until the site signs that it never began)",
                    member.name,
                    charged,
                    member.stated_epsilon,
                    ", ".join(map(str, open_rounds)),
                )

    def bind(self) -> None:
        """Bind accounts to the keys that sites are registered with; who comes with another's leaves the run."""
        names = {member.name for member in self.roll.members()}
        refused = self.accounts.bind_registered(self.budget.ledger, nodes_of(self.grid), names)
        for name, why in refused.items():
            self.roll.drop(name, why)

    def judge(
        self, order: RoundOrder, member: Member, answer: Answer, seal: OrderSeal, masked: ArrayForm | None = None
    ) -> tuple[SiteRow, Admitted | None]:
        """Judge one site's answer to an order; the cost is charged already, whatever it is."""
        name, number = member.name, order.round
        steps = self.budget.steps(name, order.run, number)
        code = error_code(answer)
        if answer is not None and code is None:  # believed or not, it may hold something private
            self.budget.answered(name, order.run, number)
        if answer is None:
            self.roll.missed(name, "it missed the deadline", failed=False)
            return self.roll.row(number, name, "late", steps=steps), None
        if code is not None and code in LEAVES:
            if code == Refusal.APART:
                self.contact.alarm(name, sentence(code))
            self.roll.drop(name, sentence(code))
            return self.roll.row(number, name, "refused", code=code, steps=steps), None
        if code is not None:
            self.roll.missed(name, sentence(code), failed=code != Refusal.OUTDATED)
            return self.roll.row(number, name, "failed", code=code, steps=steps), None
        try:
            admitted = self.admission.release(
                answer,
                site=name,
                order=order,
                seal=seal,
                key=member.key,
                weights=self.state.weights,
                declared_units=member.declared_units,
                masked=masked,
            )
        except Rejected as error:
            if error.reason is Reason.SENDER:  # whoever sent it, it was not surely this site
                self.roll.missed(name, str(error), failed=False)
            else:
                self.roll.drop(name, str(error))
            return self.roll.row(number, name, "rejected", error=error, steps=steps), None
        self.roll.released(name)
        member.hears(admitted.release)
        member.has_resident = not member.forgets
        return self.roll.row(number, name, "released", steps=steps, bytes_up=admitted.size), admitted

    def combine(self, updates: Updates, round_number: int, *, request: Message | None) -> Arrays:
        """Return the next global weights: the present ones where too few releases came, or theirs do not combine."""
        if len(updates) < self.config.server.minimum_sites or request is None:
            logger.warning(
                "round %d: %d releases, server.minimum_sites = %d: weights unchanged",
                round_number,
                len(updates),
                self.config.server.minimum_sites,
            )
            return self.state.weights
        factors = dict.fromkeys(updates, 1.0)
        if self.config.server.admission.clip_to_median:
            factors = clip_to_median(updates.norms)
        for site, factor in factors.items():
            if factor < _SUSPICIOUS:
                logger.warning("site %s: its update is %.1f times the median's length", site, 1 / factor)
        public = {entry.name: entry.weight for entry in self.config.sites}
        shortened = Shortened(updates, factors, public)
        try:
            return self.aggregator.combine(self.state.weights, shortened, round_number=round_number, request=request)
        except WireError as error:
            logger.warning("round %d: %s: weights unchanged", round_number, error)
            return self.state.weights

    def close(
        self,
        number: int,
        weights: Arrays,
        rows: Sequence[SiteRow],
        *,
        started: float,
        delivery: Delivery | None,
    ) -> None:
        """Score the round's weights and write it down: first the checkpoint, which holds the journal's rows too."""
        rows = [*rows, *self._others(number, {row.site for row in rows})]
        score = self.scorer.validation(weights)
        disjoint, overlap = self.budget.federation([entry.name for entry in self.config.sites])
        summary = RoundRow(
            run=self.state.run,
            round=number,
            started=started,
            seconds=time.time() - started,
            score=score,
            bytes_down=0 if delivery is None else delivery.bytes_down,
            bytes_up=sum(row.bytes_up for row in rows),
            epsilon_disjoint=disjoint,
            epsilon_overlap=overlap,
        )
        self.state.round, self.state.weights, self.state.aggregator = number, weights, self.aggregator.state()
        self.state.closed = {"round": asdict(summary), "sites": [asdict(row) for row in rows]}
        self.state.save(self.folder / "checkpoint.safetensors")
        self.journal.round(summary, rows)
        logger.info(
            "round %d/%d: %s %s, epsilon at most %.3f, %d of %d sites",
            number,
            self.config.rounds,
            self.config.server.score,
            "-" if score is None else f"{score:.3f}",
            disjoint,
            sum(row.status == "released" for row in rows),
            sum(row.status != "absent" for row in rows),
            extra={"round": summary, "sites": list(rows)},
        )

    def _others(self, number: int, told: Set[str]) -> list[SiteRow]:
        """Return the rows of sites that were not ordered, with what tries of the round that were lost charged them."""
        rows = []
        for site in (entry.name for entry in self.config.sites if entry.name not in told):
            steps = self.budget.steps(site, self.state.run, number)
            if steps or site not in self.roll.dropped:
                rows.append(self.roll.row(number, site, "absent", steps=steps))
        return rows


def deadline(server: ServerConfig, last: Sequence[LastRound]) -> float:
    """Return the seconds that a round may take: several times what the last ones took, within the plan's bounds.

    Where a site was late in one of them, it is the plan's: what was too short must not stay so.
    """
    if not last or any(row.late or not row.released for row in last):
        return server.deadline_seconds
    longest = max(row.seconds for row in last)
    return min(server.deadline_seconds, max(server.minimum_deadline_seconds, _PATIENCE * longest))


def catch_up(journal: RunJournal, state: Checkpoint) -> None:
    """Write the journal's rows of the last finished round, where a kill came between them and the checkpoint."""
    if state.closed is not None and all(row.round != state.round for row in journal.rounds(state.run)):
        journal.round(RoundRow(**state.closed["round"]), [SiteRow(**row) for row in state.closed["sites"]])
