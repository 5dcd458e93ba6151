"""Scores on the sites' own patients: ordered where the plan says so, charged before it is sent, and shown with errors.

An evaluation is charged to every site that can pay it, once; what a kill or a late answer loses stays lost, because a
second try would be a second charge. The sum of all believed releases is what is scored: every patient weighs the same.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from wardpose.server.admission import Admission, Rejected
from wardpose.server.aggregation import Arrays
from wardpose.server.budget import GlobalBudget
from wardpose.server.estimates import Estimate, Scores, scores_of
from wardpose.server.exchange import Answer, exchange
from wardpose.server.journal import EvaluationRow, Reason, RunJournal
from wardpose.server.roll import LEAVES, Member, Roll, error_code, sentence
from wardpose.shared.config import FederationConfig
from wardpose.shared.first_course import rounds_between
from wardpose.shared.messages import EVALUATE, EvaluationOrder
from wardpose.shared.privacy.accounting import as_seeded
from wardpose.shared.privacy.budget import evaluations_made
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.evaluation import EVALUATION
from wardpose.shared.refusals import Refusal
from wardpose.shared.seals import Head, OrderSeal, Receipt, body_text, text_hash
from wardpose.shared.skeleton import get_skeleton
from wardpose.shared.version import code_hash
from wardpose.shared.wire import hash_arrays, pack, pack_together, pair_arrays

logger = logging.getLogger("wardpose.server")

PRIVATE, PUBLIC = "private", "public-only"
"""Names of the two candidates: the model that patients paid for, and the one that it started from."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Answered:
    """What a site's answer came to."""

    status: Literal["released", "refused", "rejected", "failed", "late"]
    facts: str | None = None
    scores: NDArray[np.float64] | None = None


class Evaluator:
    """Evaluate a run's networks on the sites' patients, as its course declares; does nothing where it declares none.

    Attributes:
        roll: the sites of the run.
        budget: the server's own account of them.

    """

    def __init__(
        self,
        grid: Grid,
        config: FederationConfig,
        course: Course,
        *,
        roll: Roll,
        budget: GlobalBudget,
        admission: Admission,
        journal: RunJournal,
    ) -> None:
        self.roll = roll
        self.budget = budget
        self._grid = grid
        self._config = config
        self._course = course
        self._admission = admission
        self._journal = journal

    def after_round(self, round_number: int, weights: Arrays) -> None:
        """Score the weights after a round, if the plan says so."""
        due = rounds_between(self._config, first=self._course.first_round)
        if self._course.evaluation is not None and round_number in due:
            self._evaluate(round_number, weights, None)

    def after_last(self, round_number: int, weights: Arrays, start: Arrays) -> EvaluationRow | None:
        """Score the run's weights, beside those that it started from where the plan compares them.

        Made once: a run that is taken up again after it gets the same result.

        Args:
            round_number: the last that was taken.
            weights: after it.
            start: before the first round.

        Returns:
            What was measured; `None` where the course declares no evaluation.

        """
        plan = self._config.server.evaluation
        if self._course.evaluation is None or plan is None:
            return None
        made = [row for row in self._journal.evaluations(self._course.run) if row.last and row.round == round_number]
        if made:
            return made[-1]
        return self._evaluate(round_number, weights, start if plan.compare else None, last=True)

    def _evaluate(
        self, round_number: int, weights: Arrays, start: Arrays | None, *, last: bool = False
    ) -> EvaluationRow:
        """Order, charge, exchange, judge and write down one evaluation."""
        started = time.time()
        arrays = pair_arrays(weights, start)
        order = self._order(arrays, pair=start is not None)
        self._journal.site(*self.roll.call(order, patient=not self.roll.members()))
        members = self._charge(order)
        answers: dict[int, Answer] = {}
        seals: dict[str, OrderSeal] = {}
        if members:
            content, seconds = pack(order), self._config.server.deadline_seconds
            content["arrays"] = pack_together(arrays)
            group = f"{EVALUATION}-{order.number}"
            sealed = {
                member.name: self._admission.contact.sealed(
                    content,
                    site=member.name,
                    kind=EVALUATE,
                    charge=self.budget.charge(member.name, order.run, order.number),
                )
                for member in members
            }
            messages = [
                Message(sealed[member.name][0], member.node_id, EVALUATE, group_id=group, ttl=seconds)
                for member in members
            ]
            answers = exchange(self._grid, messages, seconds=seconds)
            seals = {name: seal for name, (_, seal) in sealed.items()}
        answered = {
            member.name: self._judge(order, member, answers[member.node_id], seals[member.name]) for member in members
        }
        self._give_receipts(order, seals, answered)
        releases = [answer.scores for answer in answered.values() if answer.scores is not None]
        scores = self._scores(order, releases)
        size = sum(array.nbytes for array in arrays.values())
        row = EvaluationRow(
            run=order.run,
            number=order.number,
            round=round_number,
            last=last,
            started=started,
            seconds=time.time() - started,
            bytes_down=size * len(members),
            bytes_up=sum(release.nbytes for release in releases),
            noise_multiplier=order.evaluation.noise_multiplier,
            sites={
                entry.name: answered[entry.name].status if entry.name in answered else "not asked"
                for entry in self._config.sites
            },
            scores=None if scores is None else scores.to_json(),
            chosen=None if start is None else self._choice(scores),
        )
        self._journal.evaluation(row)
        self._tell(row, scores)
        return row

    def _order(self, arrays: Arrays, *, pair: bool) -> EvaluationOrder:
        names = [entry.name for entry in self._config.sites]
        told = [row.number for row in self._journal.evaluations(self._course.run)]  # also where charges were taken back
        return EvaluationOrder(
            course=self._course,
            number=max([self.budget.evaluations(names, self._course.run), *told]) + 1,
            model=self._config.model.model_copy(update={"weights": "random"}),
            weights_hash=hash_arrays(arrays),
            pair=pair,
            code_hash=code_hash(),
        )

    def _charge(self, order: EvaluationOrder) -> list[Member]:
        """Charge every site that can pay; who cannot takes no part in this evaluation."""
        mechanism, able = self._course.mechanism, []
        unbounded = mechanism.reads_private and not mechanism.is_private
        for member in self.roll.members():
            events = order.events() if member.secure else as_seeded(order.events())
            limit = float("inf") if unbounded else member.epsilon_budget
            account = self.budget.ledger.account_of(member.name)
            made = evaluations_made(self.budget.ledger.charges(account), order.course)
            paid = made < order.evaluation.times and self.budget.reserve(
                member.name, events, course=order.course, round_number=order.number, epsilon=limit
            )
            if paid:
                able.append(member)
                member.epsilon_spent = max(member.epsilon_spent, self.budget.epsilon(member.name))
            else:
                logger.warning("site %s: budget or course cannot pay for evaluation %d", member.name, order.number)
        return able

    def _judge(self, order: EvaluationOrder, member: Member, answer: Answer, seal: OrderSeal) -> _Answered:
        """Judge one site's answer; the cost is charged already, whatever it is."""
        code = error_code(answer)
        if answer is not None and code is None:  # believed or not, it may hold something private
            self.budget.answered(member.name, order.run, order.number)
        if answer is None:
            self.roll.missed(member.name, "it missed the evaluation's deadline", failed=False)
            return _Answered(status="late")
        if code is not None:
            if code == Refusal.APART:
                self._admission.contact.alarm(member.name, sentence(code))
            logger.warning("site %s: no scores (%s)", member.name, sentence(code))
            return _Answered(status="refused" if code in LEAVES else "failed")
        try:
            release, scores = self._admission.scores(
                answer,
                site=member.name,
                order=order,
                seal=seal,
                key=member.key,
                declared_units=member.declared_units,
            )
        except Rejected as error:
            if error.reason is Reason.SENDER:
                self.roll.missed(member.name, str(error), failed=False)
            else:
                self.roll.drop(member.name, str(error))
            return _Answered(status="rejected")
        member.hears(release)
        facts = text_hash(body_text(answer.content)) if isinstance(answer, Message) else None
        return _Answered(status="released", facts=facts, scores=scores)

    def _give_receipts(
        self, order: EvaluationOrder, seals: Mapping[str, OrderSeal], answered: Mapping[str, _Answered]
    ) -> None:
        """Sign for each site that was ordered what became of its evaluation."""
        head = Head(*self.budget.ledger.head())
        self._admission.contact.give(
            [
                Receipt(
                    site=name,
                    run=order.run,
                    round=order.number,
                    order=seals[name].order,
                    release=answer.facts,
                    outcome=answer.status,
                    ledger=head,
                    issued=time.time(),
                )
                for name, answer in answered.items()
            ]
        )

    def _scores(self, order: EvaluationOrder, releases: Sequence[NDArray[np.float64]]) -> Scores | None:
        if not releases:
            return None
        skeleton = get_skeleton(self._config.model.skeleton)
        return scores_of(releases, order.layout, order.evaluation, metric_skeleton=skeleton)

    def _choice(self, scores: Scores | None) -> str:
        """Take the private model only where it is surely better than the one that cost nobody anything."""
        plan = self._config.server.evaluation
        if scores is None or scores.difference is None or plan is None:
            return PUBLIC
        return PRIVATE if scores.difference.exceeds(plan.standard_errors) else PUBLIC

    def _tell(self, row: EvaluationRow, scores: Scores | None) -> None:
        released = sum(status == "released" for status in row.sites.values())
        if scores is None:
            logger.warning("evaluation %d after round %d: no scores from any site", row.number, row.round)
            return
        logger.info(
            "evaluation %d after round %d: %s %s on about %s patients of %d sites%s",
            row.number,
            row.round,
            self._config.server.score,
            shown(scores.models[0].score),
            shown(scores.units, digits=0),
            released,
            ""
            if scores.difference is None
            else f", {shown(scores.models[1].score)} before the first round: the {row.chosen} model is kept",
        )


def scores_on_patients(row: EvaluationRow) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an evaluation's scores in the journal's form, before the first round and of the model that is kept.

    Empty where nothing was measured; `before` also where only one network was.
    """
    models = [] if row.scores is None else row.scores["models"]
    found = [
        {
            "score": model["score"]["value"],
            "error": model["score"]["error"],
            "per_joint": {name: joint["value"] for name, joint in model["per_joint"].items()},
            "by_group": {},
            "on": "patients",
        }
        for model in models
    ]
    before = found[1] if len(found) > 1 else {}
    return before, (before if row.chosen == PUBLIC else found[0] if found else {})


def shown(estimate: Estimate, *, digits: int = 3) -> str:
    """Write an estimate for people."""
    return shown_values(estimate.to_json(), digits)


def shown_values(estimate: Mapping[str, float | None] | None, digits: int = 3) -> str:
    """Write an estimate, in its JSON form, for people; absent where nothing was released."""
    if estimate is None:
        return "no release"
    value, error = estimate["value"], estimate["error"]
    if value is None or error is None:
        return "not measurable at this noise"
    return f"{value:.{digits}f} ± {error:.{digits}f}"
