"""One round under secure aggregation: agree on masks, charge, order, add up, have the survivors unmask the sum.

`wardpose.shared.secure_aggregation` has the protocol, `wardpose.shared.privacy.distributed` what the sum's noise is
worth. A site that does not answer is left out from there on. Nothing is ordered, and nobody charged, where too few
agree; once ordered, the round is charged whatever comes of it, and where too few survive it changes no weight.
"""

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from flwr.app import Message
from numpy.typing import NDArray

from wardpose.server.aggregation import Arrays
from wardpose.server.delivery import Delivery
from wardpose.server.exchange import Garbage, exchange
from wardpose.server.journal import SiteRow
from wardpose.server.roll import Member, error_code, sentence
from wardpose.shared.errors import WireError
from wardpose.shared.messages import SECURE_KEYS, SECURE_SHARES, SECURE_SURVIVORS, SECURE_UNMASK, RoundOrder
from wardpose.shared.privacy.distributed import DistributedNoise
from wardpose.shared.refusals import Refusal
from wardpose.shared.secure_aggregation.messages import (
    KeysRequest,
    RevealedShares,
    SealedShares,
    SecureBody,
    Session,
    SignedKeys,
    SignedSurvivors,
)
from wardpose.shared.secure_aggregation.server import MaskedSum
from wardpose.shared.signing import SignatureError
from wardpose.shared.training.local import apply_sum
from wardpose.shared.training.step import expected_batch_size
from wardpose.shared.wire import MASKED, ArrayForm, check_signed, pack, unpack_body

if TYPE_CHECKING:
    from wardpose.server.rounds import Coordinator

logger = logging.getLogger("wardpose.server")

Body = TypeVar("Body", bound=SecureBody)


class SecureRound:
    """One round of a coordinator.

    Args:
        coordinator: whose round it is.
        order: what every site is asked, without its shares.
        noise: how its noise is shared out.

    """

    def __init__(self, coordinator: "Coordinator", order: RoundOrder, noise: DistributedNoise) -> None:
        self._coordinator = coordinator
        self._order = order
        self._noise = noise
        self._rows: list[SiteRow] = []
        self._weights = coordinator.state.weights
        self._coordinates = sum(value.size for value in coordinator.admission.trained(self._weights).values())

    def run(self) -> bool:
        """Take the round; `False`, and nothing charged, when fewer sites than are needed can take part."""
        coordinator, number, started = self._coordinator, self._order.round, time.time()
        members = coordinator.roll.members()
        if len(members) < coordinator.quorum:
            logger.warning("round %d: %d able sites, %d are needed", number, len(members), coordinator.quorum)
            return False
        delivery = coordinator.delivery()
        weights = self._weights
        masked = MaskedSum(self._session(members))
        try:
            self._agree(masked, members)
            members = [member for member in coordinator.charge(self._order) if member.name in masked.deliveries()]
            request = self._collect(delivery, masked, members)
            total = self._unmask(masked, members)
            weights = self._combine(total, [m for m in members if m.name in masked.survivors], request)
        except WireError as error:
            logger.warning("round %d: %s: weights unchanged", number, error)
        coordinator.close(number, weights, self._rows, started=started, delivery=delivery)
        return True

    def _session(self, members: Sequence[Member]) -> Session:
        noise, mechanism = self._noise, self._order.mechanism.at(self._order.first_step)
        return Session(
            run=self._order.run,
            round=self._order.round,
            course=self._order.course.identity,
            nonce=secrets.token_hex(32),
            participants=tuple(sorted(member.name for member in members)),
            minimum_survivors=noise.minimum_survivors,
            colluding=noise.colluding,
            bits=noise.bits,
            coordinates=self._coordinates,
            scales=noise.scales(mechanism.noise_multiplier, sites=len(members))[1:],
        )

    def _agree(self, masked: MaskedSum, members: list[Member]) -> None:
        """Have the members exchange keys and shares; who does not is not ordered."""
        begin = KeysRequest(session=masked.session)
        self._ask(SECURE_KEYS, members, begin, SignedKeys, masked.add_keys, needed=True)
        members = [member for member in members if member.name in masked.keys]
        self._ask(SECURE_SHARES, members, masked.shares_request(), SealedShares, masked.add_shares, needed=True)
        masked.deliveries()

    def _collect(self, delivery: Delivery, masked: MaskedSum, members: list[Member]) -> Message:
        """Order, and add up the masked sums that come; returns one of the messages."""
        coordinator = self._coordinator
        if not members:
            raise WireError("no site can be ordered")
        deliveries = masked.deliveries()
        orders = {name: self._order.model_copy(update={"secure": shares}) for name, shares in deliveries.items()}
        form = ArrayForm(shape=(self._coordinates, masked.session.bits // 8), dtype=np.dtype(np.uint8))
        for member, answer in delivery.exchange(orders, members):
            seal = delivery.seals[member.name]
            row, admitted = coordinator.judge(self._order, member, answer, seal, form)
            self._rows.append(row)
            coordinator.give_receipt(row, admitted, seal.order)
            if admitted is not None:
                masked.add(member.name, admitted.update[MASKED].view(np.uint8))
        if delivery.request is None:
            raise WireError("no site can be ordered")
        return delivery.request

    def _unmask(self, masked: MaskedSum, members: Iterable[Member]) -> NDArray[np.int64]:
        """Have the survivors sign who they are, and take the masks off their sum."""
        signatures: dict[str, str] = {}
        revealed: dict[str, RevealedShares] = {}
        survivors = [member for member in members if member.name in masked.survivors]
        self._ask(
            SECURE_SURVIVORS,
            survivors,
            masked.survivors_request(),
            SignedSurvivors,
            lambda site, signed: signatures.update({site: signed.signature}),
        )
        signers = [member for member in survivors if member.name in signatures]
        asked = masked.unmask_request(signatures)
        self._ask(SECURE_UNMASK, signers, asked, RevealedShares, lambda site, shown: revealed.update({site: shown}))
        return masked.unmask(revealed)

    def _combine(self, total: NDArray[np.int64], survivors: Iterable[Member], request: Message) -> Arrays:
        """Return the next global weights: one step over the survivors' cohorts, by the plan's rule."""
        mechanism = self._order.mechanism.at(self._order.first_step)
        expected = sum(expected_batch_size(mechanism, _declared(member.declared_units)) for member in survivors)
        start = self._coordinator.admission.trained(self._weights)
        update = apply_sum(
            {name: torch.from_numpy(value.copy()) for name, value in start.items()},
            torch.from_numpy(total),
            mechanism,
            self._order.training,
            expected=expected,
        )
        arrays = self._coordinator.admission.of_weights({name: value.numpy() for name, value in update.items()})
        return self._coordinator.aggregator.combine(
            self._weights, {"sum": (arrays, 1.0)}, round_number=self._order.round, request=request
        )

    def _ask(
        self,
        kind: str,
        members: list[Member],
        body: SecureBody,
        answer_kind: type[Body],
        take: Callable[[str, Body], None],
        *,
        needed: bool = False,
    ) -> None:
        """Send one message to several sites and take their answers.

        Args:
            kind: of the message.
            members: who is asked.
            body: what.
            answer_kind: what an answer must be.
            take: takes a site's answer.
            needed: who gives none has no part in the round.

        """
        server = self._coordinator.config.server
        seconds, content = min(server.deadline_seconds, server.wait_seconds), pack(body)
        group = str(self._order.round)
        contact = self._coordinator.contact
        messages = [
            Message(
                contact.sealed(content, site=member.name, kind=kind)[0],
                member.node_id,
                kind,
                group_id=group,
                ttl=seconds,
            )
            for member in members
        ]
        answers = exchange(self._coordinator.grid, messages, seconds=seconds)
        for member in members:
            answer = answers[member.node_id]
            code = error_code(answer)
            try:
                if answer is None or code is not None or isinstance(answer, Garbage):
                    raise WireError(f"no answer to {kind}" if code is None else f"{kind}: {sentence(code)}")
                part = unpack_body(answer.content, answer_kind, arrays=False)
                if member.key is not None:  # Flower's simulated nodes have none that is known beforehand
                    check_signed(answer.content, answer_kind, member.key)
                take(member.name, part)
            except (WireError, SignatureError) as error:
                self._lost(member.name, str(error), code, needed=needed)

    def _lost(self, site: str, why: str, code: int | None, *, needed: bool) -> None:
        roll, number = self._coordinator.roll, self._order.round
        if not needed:
            logger.warning("site %s: %s", site, why)
        elif code == Refusal.POLICY:
            roll.drop(site, why)
            self._rows.append(roll.row(number, site, "refused", code=code))
        else:
            logger.warning("site %s: takes no part in round %d (%s)", site, number, why)
            roll.present.discard(site)
            self._rows.append(roll.row(number, site, "late" if code is None else "failed", code=code))


def _declared(units: Mapping[str, int]) -> int | Mapping[str, int]:
    return units[""] if set(units) == {""} else units
