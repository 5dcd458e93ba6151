"""The Flower ClientApp of a hospital: one order in, one accounted release out, or a refusal.

Order of things in a round: read the order, see that the coordinator signed it for this site and that both ledgers are
known to both sides (`contact`), hold it and its weights against the policy, reserve the cost in the ledger
(durably), only then open patients' records and frames, note whom the round charges, leave out who cannot bear it,
train, commit, and build the release.
Whatever dies after the reservation, the cost stays: even a refusal may tell that a patient's file could not be read.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from wardpose.client.charging import charge_and_open
from wardpose.client.contact import LedgersApartError, OutdatedOrderError, facts_hash
from wardpose.client.evaluation import evaluate_cohort
from wardpose.client.policy import charged_events, check_evaluation, check_order, check_weights
from wardpose.client.release import at_declared_times, build_kept, build_release, build_status, build_wanted
from wardpose.client.secure_sum import answer_part, take_seat
from wardpose.client.site import Site, locate_site, open_public_data, open_site
from wardpose.client.training import train_round
from wardpose.shared.allocator import tune_allocator
from wardpose.shared.data.source import check_paths
from wardpose.shared.errors import (
    BudgetExceeded,
    ConfigError,
    LedgerError,
    PolicyViolation,
    WardposeError,
    WireError,
)
from wardpose.shared.laps import Laps
from wardpose.shared.messages import (
    PREFLIGHT,
    PREFLIGHT_EVALUATION,
    RECEIPTS,
    SECURE_PARTS,
    TRAIN,
    EvaluationOrder,
    ReceiptsOrder,
    RoundOrder,
)
from wardpose.shared.privacy.evaluation import EVALUATION
from wardpose.shared.refusals import Refusal
from wardpose.shared.signing import SignatureError
from wardpose.shared.version import code_hash
from wardpose.shared.wire import hash_arrays, refusal, unpack

logger = logging.getLogger("wardpose.client")
app = ClientApp()

_CODES = {
    OutdatedOrderError: Refusal.OUTDATED,
    SignatureError: Refusal.SEAL,
    LedgersApartError: Refusal.APART,
    BudgetExceeded: Refusal.BUDGET,
    PolicyViolation: Refusal.POLICY,
    WireError: Refusal.ORDER,
    ConfigError: Refusal.SITE,
    LedgerError: Refusal.SITE,
}


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer a `RoundOrder` by a `SiteRelease` or a `Refusal`."""
    return answer_order(message, lambda: locate_site(context.node_config))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer an `EvaluationOrder` by an `EvaluationRelease` or a `Refusal`."""
    return answer_evaluation(message, lambda: locate_site(context.node_config))


@app.query("evaluation")
def preflight_evaluation(message: Message, context: Context) -> Message:
    """Answer an `EvaluationOrder` without weights by a `SiteStatus` or the `Refusal` it would meet, at no cost."""
    return answer_preflight(message, lambda: locate_site(context.node_config))


@app.query("preflight")
def preflight(message: Message, context: Context) -> Message:
    """Answer a `RoundOrder` without weights by a `SiteStatus` or the `Refusal` it would meet, at no cost."""
    return answer_preflight(message, lambda: locate_site(context.node_config))


def secure(message: Message, context: Context) -> Message:
    """Answer a message of secure aggregation beside the order."""
    return answer_secure(message, lambda: locate_site(context.node_config))


for _kind in SECURE_PARTS:
    app.query(_kind.removeprefix("query."))(secure)


@app.query("receipts")
def receipts(message: Message, context: Context) -> Message:
    """Answer a `ReceiptsOrder` by which receipts were kept."""
    return answer_receipts(message, lambda: locate_site(context.node_config))


def answer_order(message: Message, locate: Callable[[], Path]) -> Message:
    """Answer a `RoundOrder` for the site whose site.yaml `locate` finds."""
    return _answer(message, locate, _train)


def answer_evaluation(message: Message, locate: Callable[[], Path]) -> Message:
    """Answer an `EvaluationOrder` for the site whose site.yaml `locate` finds."""
    return _answer(message, locate, _evaluate)


def answer_preflight(message: Message, locate: Callable[[], Path]) -> Message:
    """Answer a preflight for the site whose site.yaml `locate` finds."""
    return _answer(message, locate, _preflight)


def answer_secure(message: Message, locate: Callable[[], Path]) -> Message:
    """Answer a message of secure aggregation for the site whose site.yaml `locate` finds."""
    return _answer(message, locate, lambda asked, path: answer_part(asked, open_site(path)))


def answer_receipts(message: Message, locate: Callable[[], Path]) -> Message:
    """Answer a `ReceiptsOrder` for the site whose site.yaml `locate` finds."""
    return _answer(message, locate, _receipts)


def _answer(message: Message, locate: Callable[[], Path], handle: Callable[[Message, Path], Message]) -> Message:
    tune_allocator()
    try:
        return handle(message, locate())
    except WardposeError as error:
        logger.warning("%s: %s", type(error).__name__, error)
        return refusal(
            next((code for kind, code in _CODES.items() if isinstance(error, kind)), Refusal.FAILED), message
        )
    except Exception:
        logger.exception("the order could not be carried out")
        return refusal(Refusal.FAILED, message)


def _train(message: Message, path: Path) -> Message:
    order, received = unpack(message.content, RoundOrder)
    site = open_site(path)
    site.tidy()
    weights = site.kept_weights.assembled(order, received)
    if weights is not None and hash_arrays(weights) != order.weights_hash:
        raise WireError("the weights are not those that the order names")
    number = site.journal.received(
        run=order.run, round_number=order.round, federation=order.federation, mechanism=order.mechanism.name
    )
    if order.code_hash != code_hash():
        site.journal.finished(number, "refused", detail="the server runs other code")
        return refusal(Refusal.CODE, message)
    if weights is None:
        return Message(_want_weights(site, order, number, message.content), reply_to=message)
    with at_declared_times(site.config.answer_seconds):
        content = _round(site, path, order, weights, number, message.content)
    return Message(content, reply_to=message)


def _want_weights(site: Site, order: RoundOrder, number: int, asked: RecordDict) -> RecordDict:
    """Ask for the weights that did not come along, which says nothing about any patient; nothing is carried out."""
    try:
        ledger = site.ledger()
        conversation = site.contact.opened(asked, site=site.config.site, kind=TRAIN, ledger=ledger, signer=site.signer)
        site.contact.asks(conversation, run=order.run, round_number=order.round)
        _check(site, order)
        site.contact.refuse_unknown(order.course)
        site.journal.finished(number, "wanted", detail="the weights that do not change are not here any more")
        return build_wanted(site=site.config, ledger=ledger, conversation=conversation)
    except WardposeError as error:
        site.journal.finished(number, "refused", detail=str(error))
        raise


def _round(
    site: Site, path: Path, order: RoundOrder, weights: dict[str, Any], number: int, asked: RecordDict
) -> RecordDict:
    """Charge, train and build what leaves; the journal's entry `number` says how it ended."""
    laps = Laps()
    try:
        ledger = site.ledger()
        conversation = site.contact.opened(asked, site=site.config.site, kind=TRAIN, ledger=ledger, signer=site.signer)
        site.contact.asks(conversation, run=order.run, round_number=order.round)
        _check(site, order)
        check_weights(site.config, order, weights)
        check_paths(site.config.cohort.data, "cohort.data")
        site.contact.refuse_unknown(order.course)
        site.contact.refuse_unconfirmed(conversation)
        if order.resident is None:
            site.kept_weights.keep(order, weights)
        masker = take_seat(site, order)
        site.contact.begin(conversation)
        laps.mark("checks")
        paid = charge_and_open(site, path, order, ledger)
        laps.mark("charge")
        if paid.without:
            logger.warning(
                "round %d: %d patients take no part, their own budget is spent", order.round, len(paid.without)
            )
        update = train_round(site, paid.data, order, weights, without=paid.without, sites=masker.sites if masker else 1)
        laps.mark("train")
        ledger.commit(paid.reservation)
        content, size = build_release(
            site=site.config,
            order=order,
            update=update,
            ledger=ledger,
            reservation=paid.reservation,
            masker=masker,
            conversation=conversation,
        )
        site.contact.sent(facts_hash(content), order=conversation.seal.order, run=order.run, round_number=order.round)
        laps.mark("release")
        laps.log(logger, "order", order.round)
    except (PolicyViolation, BudgetExceeded, SignatureError, LedgersApartError) as error:
        site.journal.finished(number, "refused", detail=str(error))
        raise
    except BaseException as error:
        site.journal.finished(number, "failed", detail=f"{type(error).__name__}: {error}")
        raise
    verdicts = [verdict for verdict in (update.view, update.projection, update.ridge) if verdict is not None]
    for verdict in verdicts:
        if not verdict.used:
            logger.warning("round %d of run %s: %s", order.round, order.run, verdict)
    site.journal.finished(number, "released", detail="; ".join(map(str, verdicts)), bytes_up=size)
    return content


def _evaluate(message: Message, path: Path) -> Message:
    order, weights = unpack(message.content, EvaluationOrder)
    if hash_arrays(weights) != order.weights_hash:
        raise WireError("the weights are not those that the order names")
    site = open_site(path)
    number = site.journal.received(
        run=order.run, round_number=order.number, federation=order.course.federation, mechanism=EVALUATION
    )
    if order.code_hash != code_hash():
        site.journal.finished(number, "refused", detail="the server runs other code")
        return refusal(Refusal.CODE, message)
    with at_declared_times(site.config.answer_seconds):
        content = evaluate_cohort(site, path, order, weights, number, message.content)
    return Message(content, reply_to=message)


def _check(site: Site, order: RoundOrder) -> None:
    """Hold the order, and the public view it needs, against the site's policy; nothing is charged yet."""
    check_order(site.config, order)
    if order.mechanism.uses_public_views:
        site.public_view  # noqa: B018 (opening it checks its certificate)
    if order.mechanism.sends_coefficients:
        known = open_public_data(site.config.public_data, order.model.skeleton).identity()
        if known != order.public_data:
            raise PolicyViolation(f"public_data {known} at the site is not the server's {order.public_data}")


def _preflight(message: Message, path: Path) -> Message:
    order: RoundOrder | EvaluationOrder
    if message.metadata.message_type == PREFLIGHT_EVALUATION:
        order, _ = unpack(message.content, EvaluationOrder)
    else:
        order, _ = unpack(message.content, RoundOrder)
    site, mechanism = open_site(path), order.course.mechanism
    if order.code_hash != code_hash():
        return refusal(Refusal.CODE, message)
    ledger = site.ledger()
    kind = PREFLIGHT if isinstance(order, RoundOrder) else PREFLIGHT_EVALUATION
    conversation = site.contact.opened(
        message.content, site=site.config.site, kind=kind, ledger=ledger, signer=site.signer
    )
    ledger.begin()  # its first head tells it from any other that an empty place may hold later
    if isinstance(order, RoundOrder):
        site.contact.asks(conversation, run=order.run, round_number=order.round)
        _check(site, order)
    else:
        check_evaluation(site.config, order)
    ledger.check(
        site.config.cohort.name,
        charged_events(site.config, order),
        budget=site.budget(private=mechanism.is_private or not mechanism.reads_private),
        course=order.course,
    )
    site.contact.accept(order.course)
    asked = order.resident if isinstance(order, RoundOrder) else None
    resident = asked is not None and site.kept_weights.have(asked)
    content = build_status(site=site.config, ledger=ledger, conversation=conversation, resident=resident)
    return Message(content, reply_to=message)


def _receipts(message: Message, path: Path) -> Message:
    unpack(message.content, ReceiptsOrder)
    site = open_site(path)
    ledger = site.ledger()
    conversation = site.contact.opened(
        message.content, site=site.config.site, kind=RECEIPTS, ledger=ledger, signer=site.signer
    )
    return Message(build_kept(site=site.config, ledger=ledger, conversation=conversation), reply_to=message)
