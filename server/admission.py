"""What the coordinator believes: an answer is held against what its order can lead to, before it touches anything.

A site is authenticated and not trusted. Its release must hold exactly the agreed records; answer this order and no
other; carry the trained weights' names, shapes and types and nothing else; be finite; be no longer than its mechanism
can make it (`norm_bound`); be signed by the site's key (`contact`); and come from a ledger that continues the one
seen before (`heads`). A release that does not is `Rejected`: a fixed word for journal and metrics, a line for people.
That site leaves the run, and nobody else.

What no server can tell: an update that is as long as an honest one and points wherever its sender likes. Against
those stand the median of the norms and robust rules (`aggregation`).
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Message, RecordDict
from numpy.typing import NDArray

from wardpose.server.aggregation import Arrays
from wardpose.server.budget_service.alarms import ALARMS, Alarms
from wardpose.server.contact import Contact
from wardpose.server.exchange import Garbage
from wardpose.server.heads import STATED, Heads
from wardpose.server.journal import Reason
from wardpose.server.norm_bound import Trained, largest_norm, largest_scores
from wardpose.server.uplink import UplinkDecoder
from wardpose.shared.config import FederationConfig
from wardpose.shared.errors import ConfigError, LedgerError, WireError
from wardpose.shared.messages import (
    EvaluationOrder,
    EvaluationRelease,
    ReceiptsKept,
    RoundOrder,
    SiteAnswer,
    SiteRelease,
    SiteStatus,
    WeightsWanted,
)
from wardpose.shared.pose.low_rank import SUFFIX, expanded
from wardpose.shared.pose.model import PoseModel, shapes_of, trained_shapes
from wardpose.shared.privacy.accounting import MINIMUM_DELTA
from wardpose.shared.privacy.mechanisms import Mechanism
from wardpose.shared.seals import OrderSeal, body_text, text_hash
from wardpose.shared.signing import PublicKey, SignatureError
from wardpose.shared.training.step import expected_batch_size
from wardpose.shared.wire import (
    COEFFICIENTS,
    MASKED,
    SCORES,
    ArrayForm,
    check_signed,
    hash_arrays,
    unpack_arrays,
    unpack_body,
)

logger = logging.getLogger("wardpose.server")


class Rejected(WireError):  # noqa: N818 (says what happened, as the journal does)
    """An answer is not what its order can lead to.

    Attributes:
        reason: in a word.

    """

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, kw_only=True, eq=False)
class Admitted:
    """A release that is believed.

    Attributes:
        release: its facts.
        facts: their hash, as its receipt names it.
        update: of the trained weights, by name, float32.
        size: bytes of the arrays as they came.
        norm: L2 norm of the update.

    """

    release: SiteRelease
    facts: str
    update: Arrays
    size: int
    norm: float


class Admission:
    """Judge answers of sites.

    Attributes:
        config: the plan.
        mechanism: the run's, calibrated.
        heads: what sites' ledgers were.
        contact: their keys, and what they know of the coordinator's ledger.

    """

    def __init__(
        self,
        config: FederationConfig,
        mechanism: Mechanism,
        model: PoseModel,
        uplink: UplinkDecoder,
        heads: Heads,
        contact: Contact,
    ) -> None:
        self.config = config
        self.mechanism = mechanism
        self.heads = heads
        self.contact = contact
        self._uplink = uplink
        self._trained = trained_shapes(shapes_of(model), config.training.strategy)
        self._shapes = dict(shapes_of(model))

    def status(
        self,
        answer: Message | Garbage,
        *,
        order: RoundOrder | EvaluationOrder,
        registered: str,
        seal: OrderSeal,
        key: PublicKey | None,
    ) -> SiteStatus:
        """Read an answer to a preflight, and remember the head of the site's ledger.

        Args:
            answer: what came.
            order: that the preflight asked about.
            registered: the node's name; empty where Flower simulates it.
            seal: that the preflight had.
            key: the node's registered key; `None` where Flower simulates it.

        Raises:
            Rejected: the answer is not believed.

        """
        with _reading(Reason.PAYLOAD):
            content = _content(answer)
            status = unpack_body(content, SiteStatus, arrays=False)
        if registered and status.site != registered:
            raise Rejected(Reason.SENDER, f'registered as "{registered}", it gives another name')
        signed_by = self._check_signed(content, status, seal, key)
        if status.code_hash != order.code_hash:
            raise Rejected(Reason.ORDER, "it runs other code than the server")
        self._check_facts(status)
        self._check_head(status.site, status, seal, grown=False)
        self._hears(status, signed_by)
        return status

    def kept(self, answer: Message | Garbage, *, site: str, seal: OrderSeal, key: PublicKey | None) -> None:
        """Read an answer to receipts.

        Raises:
            Rejected: the answer is not believed.

        """
        with _reading(Reason.PAYLOAD):
            content = _content(answer)
            kept = unpack_body(content, ReceiptsKept, arrays=False)
        if kept.site != site:
            raise Rejected(Reason.SENDER, f'asked as "{site}", it gives another name')
        signed_by = self._check_signed(content, kept, seal, key)
        self._check_head(site, kept, seal, grown=False)
        self._hears(kept, signed_by)

    def wants_weights(self, answer: Message, *, site: str, seal: OrderSeal, key: PublicKey | None) -> None:
        """Read a site's word that it lacks the weights that did not come along, and has carried out nothing.

        Raises:
            Rejected: the answer is not that, or is not believed.

        """
        with _reading(Reason.PAYLOAD):
            wanted = unpack_body(answer.content, WeightsWanted, arrays=False)
        if wanted.site != site:
            raise Rejected(Reason.SENDER, f'asked as "{site}", it gives another name')
        signed_by = self._check_signed(answer.content, wanted, seal, key)
        self._check_head(site, wanted, seal, grown=False)
        self._hears(wanted, signed_by)

    def release(
        self,
        answer: Message | Garbage,
        *,
        site: str,
        order: RoundOrder,
        seal: OrderSeal,
        key: PublicKey | None,
        weights: Arrays,
        declared_units: Mapping[str, int],
        masked: ArrayForm | None = None,
    ) -> Admitted:
        """Read a release, and remember the head of the site's ledger.

        Args:
            answer: what came.
            site: who was asked.
            order: what was asked.
            seal: with which it was asked.
            key: the node's registered key; `None` where Flower simulates it.
            weights: the global weights that went along.
            declared_units: as the site stated them in its preflight.
            masked: under secure aggregation: the form of the one array. Nothing in it can be judged.

        Raises:
            Rejected: the release is not believed; nothing is remembered.

        """
        with _reading(Reason.PAYLOAD):
            content = _content(answer)
            release = unpack_body(content, SiteRelease, arrays=True)
        _check_answers(release, site, order)
        signed_by = self._check_signed(content, release, seal, key)
        _check_delta(release)
        self._check_head(site, release, seal, grown=True)
        with _reading(Reason.ARRAYS):
            received = unpack_arrays(content, self._forms(weights) if masked is None else [{MASKED: masked}])
        if hash_arrays(received) != release.arrays:
            raise Rejected(Reason.ARRAYS, "its arrays are not those that it signed")
        update = self._update(received, weights) if masked is None else dict(received)
        norm = _norm(update) if masked is None else 0.0
        bound = self._bound(order, declared_units, weights, in_span=COEFFICIENTS in received)
        if norm > bound:
            raise Rejected(
                Reason.NORM,
                f"its update is {norm:.3g} long (allowed: {bound:.3g}; server.admission has what the bound rests on)",
            )
        self._hears(release, signed_by)
        size = sum(array.nbytes for array in received.values())
        return Admitted(release=release, facts=text_hash(body_text(content)), update=update, size=size, norm=norm)

    def _check_signed(
        self, content: RecordDict, stated: SiteAnswer, seal: OrderSeal, registered: PublicKey | None
    ) -> PublicKey:
        """See that the site's key signed an answer, and that it answers this very message."""
        try:
            key = self.contact.check_key(stated.site, stated.key, registered)
            check_signed(content, type(stated), key)
        except (SignatureError, ConfigError) as error:
            raise Rejected(Reason.SIGNATURE, str(error)) from error
        if (stated.nonce, stated.order) != (seal.nonce, seal.order):
            raise Rejected(Reason.ORDER, "it answers another message")
        return key

    def _hears(self, stated: SiteAnswer, key: PublicKey) -> None:
        """Remember what a believed answer says of both ledgers."""
        try:
            self.contact.hears(stated, key)
        except LedgerError as error:
            raise Rejected(Reason.LEDGER, str(error)) from error
        self.heads.remember(stated.site, stated.ledger_sequence, stated.ledger_head)

    def trained(self, weights: Arrays) -> Arrays:
        """Return the weights that sites train, in the order of their vectors; factors of low rank begin at 0."""
        return {
            name: weights[name] if name in weights else np.zeros(shape, np.float32)
            for name, shape in self._trained.items()
        }

    def moving(self, weights: Arrays) -> Arrays:
        """Return the network's own weights that rounds may change."""
        return {name: weights[name] for name in (trained.removesuffix(SUFFIX) for trained in self._trained)}

    def of_weights(self, update: Arrays) -> Arrays:
        """Return an update of what sites train as one of the network's own weights."""
        if set(update) <= set(self._shapes):
            return update
        whole = expanded({name: torch.from_numpy(value.copy()) for name, value in update.items()}, self._shapes)
        return {name: value.numpy() for name, value in whole.items()}

    def scores(
        self,
        answer: Message | Garbage,
        *,
        site: str,
        order: EvaluationOrder,
        seal: OrderSeal,
        key: PublicKey | None,
        declared_units: Mapping[str, int],
    ) -> tuple[EvaluationRelease, NDArray[np.float64]]:
        """Read a release of scores, and remember the head of the site's ledger.

        Args:
            answer: what came.
            site: who was asked.
            order: what was asked.
            seal: with which it was asked.
            key: the node's registered key; `None` where Flower simulates it.
            declared_units: as the site stated them in its preflight.

        Raises:
            Rejected: the release is not believed; nothing is remembered.

        """
        with _reading(Reason.PAYLOAD):
            content = _content(answer)
            release = unpack_body(content, EvaluationRelease, arrays=True)
        asked = {"site": site, "run": order.run, "number": order.number}
        _check_facts_of(release, asked | {"weights_hash": order.weights_hash, "code_hash": order.code_hash})
        signed_by = self._check_signed(content, release, seal, key)
        _check_delta(release)
        self._check_head(site, release, seal, grown=True)
        form = ArrayForm(shape=(order.layout.size,), dtype=np.dtype(np.float64))
        with _reading(Reason.ARRAYS):
            received = unpack_arrays(content, [{SCORES: form}])
        if hash_arrays(received) != release.arrays:
            raise Rejected(Reason.ARRAYS, "its scores are not those that it signed")
        _check_finite(received)
        bound = largest_scores(
            order.evaluation,
            order.layout,
            unit=self.mechanism.unit,
            declared_units=sum(declared_units.values()),
            admission=self.config.server.admission,
        )
        norm = _norm(received)
        if norm > bound:
            raise Rejected(Reason.NORM, f"its scores are {norm:.3g} long (allowed: {bound:.3g})")
        self._hears(release, signed_by)
        return release, received[SCORES]

    def _check_facts(self, status: SiteStatus) -> None:
        """Hold what a site declares of itself against what the arithmetic of budgets and bounds can use."""
        units, smallest = sum(status.declared_units.values()), self.config.server.admission.smallest_cohort
        if units < smallest:
            key = "server.admission.smallest_cohort"
            raise Rejected(Reason.FACTS, f"it declares {units} units (allowed: {key} = {smallest} or more)")
        _check_delta(status)
        declared = status.declared_units
        try:
            expected_batch_size(self.mechanism.at(0), declared[""] if set(declared) == {""} else declared)
        except ConfigError as error:
            raise Rejected(Reason.FACTS, str(error)) from error

    def _check_head(self, site: str, stated: SiteAnswer, seal: OrderSeal, *, grown: bool) -> None:
        head = (stated.ledger_sequence, stated.ledger_head)
        try:
            self._check_stated(site, head, seal)
            self.heads.check(site, *head, grown=grown, asked=seal.site_ledger)
        except LedgerError as error:
            self.contact.alarm(site, str(error))
            raise Rejected(Reason.LEDGER, str(error)) from error

    def _check_stated(self, site: str, head: tuple[int, str], seal: OrderSeal) -> None:
        """Hold a site's ledger against what was heard of it between rounds, at the Budget service of this ledger.

        Raises:
            LedgerError: what it stated there did not continue its ledger, and nobody settled it; or its ledger does
                not continue what it stated.

        """
        folder = self.contact.ledger.path.parent
        for alarm in Alarms(folder / ALARMS).of(site):
            raise LedgerError(f"at the Budget service: {alarm.what} (to settle it: wardpose server accept-ledger)")
        before = Heads(folder / STATED).last(site, before=seal.issued)
        if before is not None:
            Heads(folder / STATED).check(site, *head, grown=False, asked=before)

    def _forms(self, weights: Arrays) -> list[Mapping[str, ArrayForm]]:
        """Return what the arrays of a release may be: the update or, where it was ordered, its coefficients."""
        trained = self.trained(weights)
        whole = {name: ArrayForm(shape=value.shape, dtype=value.dtype) for name, value in trained.items()}
        count = self._uplink.coefficients
        short = [] if count is None else [{COEFFICIENTS: ArrayForm(shape=(count,), dtype=np.dtype(np.float64))}]
        return [whole, *short]

    def _update(self, received: Mapping[str, NDArray[np.float32]], weights: Arrays) -> Arrays:
        """Return the update, decoded where it came as coefficients."""
        _check_finite(received)
        try:
            update = self._uplink(weights, dict(received))
        except WireError as error:
            raise Rejected(Reason.ARRAYS, str(error)) from error
        _check_finite(update)
        return self.of_weights(update)

    def _bound(self, order: RoundOrder, declared_units: Mapping[str, int], weights: Arrays, *, in_span: bool) -> float:
        start = self.trained(weights)
        return largest_norm(
            order.mechanism,
            order.training,
            first_step=order.first_step,
            declared_units=declared_units,
            trained=Trained(parameters=sum(value.size for value in start.values()), norm=_norm(start)),
            admission=self.config.server.admission,
            in_span=in_span,
        )


@contextmanager
def _reading(reason: Reason) -> Iterator[None]:
    """Let nothing out of the reading of foreign bytes but `Rejected`: what they can do to a parser has no list."""
    try:
        yield
    except Rejected:
        raise
    except WireError as error:
        raise Rejected(reason, str(error)) from error
    except Exception as error:
        logger.warning("an answer broke its reader", exc_info=True)
        raise Rejected(reason, f"the answer cannot be read ({type(error).__name__})") from error


def _content(answer: Message | Garbage) -> RecordDict:
    if isinstance(answer, Garbage):
        raise Rejected(Reason.PAYLOAD if answer.own else Reason.SENDER, answer.why)
    return answer.content


def _check_answers(release: SiteRelease, site: str, order: RoundOrder) -> None:
    """Compare what a release says it answers with what was asked.

    Raises:
        Rejected: names what differs.

    """
    asked = {
        "site": site,
        "run": order.run,
        "round": order.round,
        "mechanism": order.mechanism,
        "steps": order.training.steps,
        "weights_hash": order.weights_hash,
        "code_hash": order.code_hash,
    }
    _check_facts_of(release, asked)


def _check_facts_of(release: SiteRelease | EvaluationRelease, asked: Mapping[str, object]) -> None:
    other = [name for name, value in asked.items() if getattr(release, name) != value]
    if other:
        raise Rejected(Reason.ORDER, f"the release does not answer the order: another {', '.join(other)}")


def _check_delta(stated: SiteAnswer) -> None:
    if stated.delta < MINIMUM_DELTA:
        raise Rejected(Reason.FACTS, f"its delta is {stated.delta:g} (allowed: {MINIMUM_DELTA:g} or more)")


def _check_finite(arrays: Mapping[str, NDArray[np.float32]]) -> None:
    for name, value in arrays.items():
        if not np.isfinite(value).all():
            raise Rejected(Reason.FINITE, f'array "{name}" is not finite')


def _norm(arrays: Mapping[str, NDArray[np.float32]]) -> float:
    """L2 norm over all arrays; float64, so that finite numbers have a finite norm."""
    return float(np.sqrt(sum(np.sum(np.square(value, dtype=np.float64)) for value in arrays.values())))
