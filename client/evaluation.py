"""Scores on the hospital's own patients, in the order of things of a round: judge, charge, open, measure, release.

Nothing private is read before the cost is reserved, durably, and nothing leaves before it is committed. An evaluation
is answered once: an order that comes again is refused before anything is charged.
"""

from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from wardpose.client.charging import charge_and_open
from wardpose.client.contact import Conversation, LedgersApartError, facts_hash
from wardpose.client.policy import check_evaluation, check_weights
from wardpose.client.release import build_scores
from wardpose.client.site import Site, network
from wardpose.client.tiers import patient_tiers
from wardpose.client.training import everybody, site_seed
from wardpose.shared.data.source import check_paths
from wardpose.shared.errors import BudgetExceeded, PolicyViolation, WireError
from wardpose.shared.messages import EVALUATE, EvaluationOrder
from wardpose.shared.privacy.budget import evaluations_made
from wardpose.shared.privacy.evaluation import EVALUATION
from wardpose.shared.privacy.ledger import Ledger
from wardpose.shared.privacy.noise import secure_streams, seeded_streams, self_test
from wardpose.shared.signing import SignatureError
from wardpose.shared.training.cohort import index_units
from wardpose.shared.training.evaluation import candidates, noised_scores
from wardpose.shared.wire import part_arrays

_REFUSALS = (PolicyViolation, BudgetExceeded, SignatureError, LedgersApartError)

Weights = list[dict[str, NDArray[np.float32]]]


def evaluate_cohort(
    site: Site, path: Path, order: EvaluationOrder, arrays: dict[str, Any], journal_number: int, asked: RecordDict
) -> RecordDict:
    """Charge, measure and build what leaves; the journal's entry `journal_number` says how it ended.

    Args:
        site: the opened site.
        path: of its site.yaml.
        order: what to measure; its weights' hash was checked.
        arrays: the weights, of one network or of two.
        journal_number: of the order in the site's journal.
        asked: the message, whose seal says who asks.

    Raises:
        SignatureError: the coordinator did not sign it for this site, once, in a course that the site accepted.
        LedgersApartError: the coordinator's ledger and the site's do not agree.
        PolicyViolation: the site does not allow it, or it was answered before; nothing is charged.
        BudgetExceeded: it cannot be paid; nothing is charged.
        WireError: the weights are not those of the ordered network; nothing is charged.
        DataError: frames cannot be read; it is charged.

    """
    refusals: tuple[type[Exception], ...] = (*_REFUSALS, WireError)
    try:
        ledger = site.ledger()
        conversation = site.contact.opened(
            asked, site=site.config.site, kind=EVALUATE, ledger=ledger, signer=site.signer
        )
        weights = _judge(site, order, arrays)
        site.contact.refuse_unknown(order.course)
        site.contact.refuse_unconfirmed(conversation)
        _refuse_repeated(site, ledger, order, journal_number)
        site.contact.begin(conversation)
        refusals = _REFUSALS  # whatever else goes wrong from here on may be charged
        content, size = _evaluate(site, path, order, weights, ledger, conversation)
        site.contact.sent(facts_hash(content), order=conversation.seal.order, run=order.run, round_number=order.number)
    except BaseException as error:
        refused = isinstance(error, refusals)
        said = str(error) if refused else f"{type(error).__name__}: {error}"
        site.journal.finished(journal_number, "refused" if refused else "failed", detail=said)
        raise
    site.journal.finished(journal_number, "released", bytes_up=size)
    return content


def _judge(site: Site, order: EvaluationOrder, arrays: dict[str, Any]) -> Weights:
    """Hold the order and its weights against the site's policy; returns the weights of each network."""
    check_evaluation(site.config, order)
    weights = part_arrays(arrays, pair=order.pair)
    for each in weights:
        check_weights(site.config, order, each)
    check_paths(site.config.cohort.data, "cohort.data")
    return weights


def _evaluate(
    site: Site, path: Path, order: EvaluationOrder, weights: Weights, ledger: Ledger, conversation: Conversation
) -> tuple[RecordDict, int]:
    config, cohort, mechanism = site.config, site.config.cohort, order.course.mechanism
    paid = charge_and_open(site, path, order, ledger)
    seed = config.simulation_seed
    streams = (
        secure_streams() if seed is None else seeded_streams(site_seed(seed, f"{config.site}/scores", order.number))
    )
    self_test(streams)
    units = index_units(
        paid.data,
        unit=mechanism.unit,
        multi_owner=cohort.multi_owner,
        tiers=patient_tiers(cohort, everybody(paid.data)),
        without=paid.without,
    )
    scores = noised_scores(
        candidates(network(order.model, site.device()), weights),
        paid.data,
        units,
        order.evaluation,
        discrete=mechanism.discrete,
        stream=streams.noise,
    )
    ledger.commit(paid.reservation)
    return build_scores(
        site=config,
        order=order,
        scores=scores,
        secure=streams.secure,
        ledger=ledger,
        reservation=paid.reservation,
        conversation=conversation,
    )


def _refuse_repeated(site: Site, ledger: Ledger, order: EvaluationOrder, journal_number: int) -> None:
    """Refuse a number that was answered before, and more evaluations than the course declares.

    Raises:
        PolicyViolation: says which.

    """
    if site.journal.answered(journal_number, run=order.run, round_number=order.number, mechanism=EVALUATION):
        raise PolicyViolation(f"evaluation {order.number} of run {order.run} came before (allowed: each number once)")
    made = evaluations_made(ledger.charges(site.config.cohort.name), order.course)
    if made >= order.evaluation.times:
        raise PolicyViolation(
            f"evaluation {order.number} of run {order.run}: {made} were made "
            f"(allowed: course.evaluation.times = {order.evaluation.times})"
        )
