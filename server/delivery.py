"""An order on its way to sites: what they do not have yet comes along, and what no round changes comes once.

A site that has the resident weights of a run gets the trained ones only (`RoundOrder.resident`). It said in its
preflight that it has them, or got them with an earlier order. One that lost them since asks, in a signed answer to that
very message (`WeightsWanted`), and gets the whole order at once, in the same round and under the same charge: the
site has charged nothing, and its answer used up the first message, so that one release at most comes of the charge.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from wardpose.server.admission import Admission, Rejected
from wardpose.server.aggregation import Arrays
from wardpose.server.budget import GlobalBudget
from wardpose.server.exchange import Answer, exchange_each
from wardpose.server.roll import Member
from wardpose.shared.messages import TRAIN, RoundOrder
from wardpose.shared.seals import OrderSeal
from wardpose.shared.wire import hash_arrays, pack, pack_together

logger = logging.getLogger("wardpose.server")


def resident_hash(weights: Arrays, trained: Arrays) -> str:
    """Return the hash of the weights that no round changes."""
    return hash_arrays({name: value for name, value in weights.items() if name not in trained})


@dataclass(kw_only=True)
class Delivery:
    """One round's orders.

    Attributes:
        grid: Flower's connection to the sites.
        admission: believes a site that asks.
        budget: in which the round was charged.
        weights: that the round starts from.
        trained: those of them that it changes.
        seconds: until the round goes on without those who have not answered.
        seals: of what each site was sent last.
        request: a message of the round.
        bytes_down: weights that were sent, to all sites.

    """

    grid: Grid
    admission: Admission
    budget: GlobalBudget
    weights: Arrays
    trained: Arrays
    seconds: float
    seals: dict[str, OrderSeal] = field(default_factory=dict)
    request: Message | None = None
    bytes_down: int = 0
    _packed: dict[bool, ArrayRecord] = field(default_factory=dict)

    def exchange(self, orders: Mapping[str, RoundOrder], members: Sequence[Member]) -> Iterator[tuple[Member, Answer]]:
        """Send the sites their orders, and yield each one with its answer as it comes; late ones last.

        Args:
            orders: by site, with the hash of their resident weights.
            members: whom to send to.

        Raises:
            httpx.HTTPError: the SuperLink itself cannot be reached.

        """
        by_node = {member.node_id: member for member in members}
        until = time.monotonic() + self.seconds

        def again(node: int, answer: Answer) -> Message | None:
            member = by_node[node]
            if not member.has_resident or not self._wanted(member, answer):
                return None
            logger.warning("site %s lacks the weights that do not change; it gets them again", member.name)
            member.has_resident, member.forgets = False, True
            return self._message(member, orders[member.name], seconds=max(1.0, until - time.monotonic()))

        messages = [self._message(member, orders[member.name], seconds=self.seconds) for member in members]
        self.request = messages[0]
        for node, answer in exchange_each(self.grid, messages, seconds=self.seconds, again=again):
            yield by_node[node], answer

    def _message(self, member: Member, order: RoundOrder, *, seconds: float) -> Message:
        whole = not member.has_resident
        sent = order.model_copy(update={"resident": None}) if whole else order
        content = pack(sent)
        content["arrays"] = self._arrays(whole=whole)
        self.bytes_down += sum(array.nbytes for array in (self.weights if whole else self.trained).values())
        sealed, self.seals[member.name] = self.admission.contact.sealed(
            content,
            site=member.name,
            kind=TRAIN,
            charge=self.budget.charge(member.name, order.run, order.round),
        )
        return Message(sealed, member.node_id, TRAIN, group_id=str(order.round), ttl=seconds)

    def _arrays(self, *, whole: bool) -> ArrayRecord:
        """Return the weights as records, made once for all sites."""
        if whole not in self._packed:
            self._packed[whole] = pack_together(self.weights if whole else self.trained)
        return self._packed[whole]

    def _wanted(self, member: Member, answer: Answer) -> bool:
        """Tell whether a site asks for the weights that did not come along; anything else is judged by others."""
        if not isinstance(answer, Message) or answer.has_error() or "arrays" in answer.content:
            return False
        try:
            self.admission.wants_weights(answer, site=member.name, seal=self.seals[member.name], key=member.key)
        except Rejected as error:
            logger.warning("site %s: %s", member.name, error)
            return False
        return True
