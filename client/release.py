"""The only door out of a site.

`build_release` and, for scores on patients, `build_scores` are the functions in `wardpose.client` that make something
for the server. What they let through is fixed by the types `SiteRelease` and `EvaluationRelease`: a noised vector and
facts that follow from the order, the site's configuration and the ledger, signed by the site's key. They refuse to
build anything for a reservation that is not committed, for a vector that the mechanism did not make, and for numbers
that are not finite and of the agreed type. A loss, a count of samples, a batch size, a norm, a time: there is no field
they could be put in. Under secure aggregation the site's sum has a share of the noise only; it leaves masked, and
`build_part` lets the protocol's own messages out, which hold keys and shares of keys.

How long a round takes depends on how many units were drawn, and whoever receives the answer sees when it comes; no
accountant charges that. `at_declared_times` therefore opens the door, for releases and refusals alike, only at whole
multiples of a time that the site declares. One that is longer than every round says nothing at all; a shorter one
says how many of them the round took, and the site's log warns.
"""

import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray
from torch import Tensor

from wardpose.client.contact import Conversation
from wardpose.client.policy import charged_events
from wardpose.client.tiers import declared_units
from wardpose.shared.data.source import names_patients
from wardpose.shared.errors import LedgerError, WireError
from wardpose.shared.messages import (
    EvaluationOrder,
    EvaluationRelease,
    ReceiptsKept,
    RoundOrder,
    SiteRelease,
    SiteStatus,
    WeightsWanted,
)
from wardpose.shared.privacy.ledger import Ledger, Reservation
from wardpose.shared.seals import Head
from wardpose.shared.secure_aggregation.messages import RevealedShares, SealedShares, SignedKeys, SignedSurvivors
from wardpose.shared.secure_aggregation.site import Masker
from wardpose.shared.signing import Signer
from wardpose.shared.site_config import SiteConfig
from wardpose.shared.training.local import LocalUpdate
from wardpose.shared.version import code_hash
from wardpose.shared.wire import COEFFICIENTS, MASKED, SCORES, hash_arrays, pack

logger = logging.getLogger("wardpose.client")


@contextmanager
def at_declared_times(seconds: float) -> Iterator[None]:
    """Leave the block, by its end or by an error, only a whole multiple of `seconds` after it was entered.

    Args:
        seconds: 0 leaves at once, which is for sites that are simulated on the server's own machine.

    """
    entered = time.monotonic()
    try:
        yield
    except Exception:
        _wait(entered, seconds)
        raise
    _wait(entered, seconds)


def _wait(entered: float, seconds: float) -> None:
    if seconds <= 0:
        return
    elapsed = time.monotonic() - entered
    periods = max(1, math.ceil(elapsed / seconds))
    if periods > 1:
        logger.warning(
            "the round took %.0f s, answer_seconds = %g: the server sees about how long it took; raise it above that",
            elapsed,
            seconds,
        )
    time.sleep(max(0.0, entered + periods * seconds - time.monotonic()))


def build_release(
    *,
    site: SiteConfig,
    order: RoundOrder,
    update: LocalUpdate,
    ledger: Ledger,
    reservation: Reservation,
    conversation: Conversation,
    masker: Masker | None = None,
) -> tuple[RecordDict, int]:
    """Make what leaves the site after a round, signed, and its size in bytes.

    Args:
        site: its configuration.
        order: what was asked.
        update: what training made.
        ledger: that paid for it.
        reservation: with which it paid.
        conversation: in which it was asked.
        masker: this round's masks, under secure aggregation.

    Raises:
        LedgerError: the update is not paid for (its reservation is not committed, or is not of this round).
        WireError: the update is not what the order asked for, or is not finite.

    """
    _refuse_unpaid(site, order, order.round, ledger, reservation)
    if update.mechanism != order.mechanism or update.steps != order.training.steps:
        raise WireError("the update was made by another mechanism or number of steps than ordered")
    arrays = _plain(update) if order.mechanism.distributed is None else _masked(update, masker)
    body = SiteRelease(
        run=order.run,
        round=order.round,
        mechanism=order.mechanism,
        steps=order.training.steps,
        weights_hash=order.weights_hash,
        arrays=hash_arrays(arrays),
        paid=Head(reservation.sequence, reservation.hash),
        **_facts(site, ledger, conversation, secure=update.secure),
    )
    return pack(body, arrays, signer=conversation.signer), sum(array.nbytes for array in arrays.values())


def build_part(body: SignedKeys | SealedShares | SignedSurvivors | RevealedShares, signer: Signer) -> RecordDict:
    """Make the answer to a message of secure aggregation: keys, signatures and sealed or revealed shares of keys."""
    return pack(body, signer=signer)


def _plain(update: LocalUpdate) -> dict[str, NDArray[Any]]:
    arrays = {}
    for name, tensor in _payload(update).items():
        array = tensor.detach().cpu().numpy()
        if array.dtype != (np.float64 if name == COEFFICIENTS else np.float32) or not np.isfinite(array).all():
            raise WireError(f'update "{name}" is not finite and of the agreed type')
        arrays[name] = array
    return arrays


def _masked(update: LocalUpdate, masker: Masker | None) -> dict[str, NDArray[Any]]:
    """Return what leaves instead of a site's own sum, whose share of noise protects nobody."""
    if masker is None or update.share is None:
        raise WireError("a site's sum with a share of the noise does not leave without its masks")
    return {MASKED: masker(update.share.numpy())}


def build_scores(
    *,
    site: SiteConfig,
    order: EvaluationOrder,
    scores: NDArray[np.float64],
    secure: bool,
    ledger: Ledger,
    reservation: Reservation,
    conversation: Conversation,
) -> tuple[RecordDict, int]:
    """Make what leaves the site after an evaluation, signed, and its size in bytes.

    Args:
        site: its configuration.
        order: what was asked.
        scores: (D,), noised.
        secure: whether the noise was cryptographically secure.
        ledger: that paid for it.
        reservation: with which it paid.
        conversation: in which it was asked.

    Raises:
        LedgerError: the scores are not paid for (their reservation is not committed, or is not of this evaluation).
        WireError: the scores are not those that the order asked for, or are not finite.

    """
    _refuse_unpaid(site, order, order.number, ledger, reservation)
    if scores.shape != (order.layout.size,) or scores.dtype != np.float64 or not np.isfinite(scores).all():
        raise WireError("the scores are not finite and of the ordered form")
    arrays = {SCORES: scores}
    body = EvaluationRelease(
        run=order.run,
        number=order.number,
        weights_hash=order.weights_hash,
        arrays=hash_arrays(arrays),
        paid=Head(reservation.sequence, reservation.hash),
        **_facts(site, ledger, conversation, secure=secure),
    )
    return pack(body, arrays, signer=conversation.signer), scores.nbytes


def build_status(*, site: SiteConfig, ledger: Ledger, conversation: Conversation, resident: bool = False) -> RecordDict:
    """Make the answer to a preflight: what the ledger and site.yaml say, and whether it has the `resident` weights."""
    declared = declared_units(site.cohort)
    body = SiteStatus(
        declared_units=declared if isinstance(declared, dict) else {"": declared},
        resident=resident,
        **_facts(site, ledger, conversation),
    )
    return pack(body, signer=conversation.signer)


def build_wanted(*, site: SiteConfig, ledger: Ledger, conversation: Conversation) -> RecordDict:
    """Make the answer to an order whose resident weights are not here: nothing was charged, and nothing is released."""
    return pack(WeightsWanted(**_facts(site, ledger, conversation)), signer=conversation.signer)


def build_kept(*, site: SiteConfig, ledger: Ledger, conversation: Conversation) -> RecordDict:
    """Make the answer to receipts: which of them were kept, and what the ledger says."""
    return pack(ReceiptsKept(**_facts(site, ledger, conversation)), signer=conversation.signer)


def _facts(
    site: SiteConfig, ledger: Ledger, conversation: Conversation, *, secure: bool | None = None
) -> dict[str, Any]:
    """Return what every answer says."""
    sequence, head = ledger.head()
    seal = conversation.seal
    return {
        "site": site.site,
        "key": conversation.signer.public.text,
        "nonce": seal.nonce,
        "order": seal.order,
        "code_hash": code_hash(),
        "secure": site.simulation_seed is None if secure is None else secure,
        "ledger_sequence": sequence,
        "ledger_head": head,
        "server_ledger": conversation.server_ledger,
        "receipts": tuple(receipt.digest for receipt in seal.receipts),
        "words": conversation.words,
        **_budget(site, ledger),
    }


def _refuse_unpaid(
    site: SiteConfig, order: RoundOrder | EvaluationOrder, number: int, ledger: Ledger, reservation: Reservation
) -> None:
    paid = (reservation.run_id, reservation.round, reservation.cohort, tuple(reservation.events))
    asked = (order.run, number, site.cohort.name, charged_events(site, order))
    if paid != asked or not ledger.is_committed(reservation):
        raise LedgerError(f"{ledger.path}: round {number} of run {order.run} is not committed; nothing may leave")


def _payload(update: LocalUpdate) -> Mapping[str, Tensor]:
    """Return the update, or the coefficients that it amounts to where the mechanism sends those."""
    return update.update if update.coefficients is None else {COEFFICIENTS: update.coefficients}


def _budget(site: SiteConfig, ledger: Ledger) -> dict[str, float]:
    policy = site.policy
    account = ledger.account(
        site.cohort.name,
        policy.delta,
        adjacency=policy.adjacency,
        whole_ledger=not names_patients(site.cohort.data),
        unit=policy.unit,
    )
    return {"epsilon_spent": account.epsilon, "epsilon_budget": policy.epsilon, "delta": policy.delta}
