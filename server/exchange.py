"""One exchange with the sites: messages out, and from each site one answer, none, or something that is no answer.

Whatever a site sends concerns that site alone. Answers are therefore pulled one at a time: Flower turns bytes into
records while it pulls, and a payload that it cannot read would otherwise take the others' along.

Flower waits for a SuperLink that is away. One that answers with a server error (its database is locked, it is about to
end) is asked again here, except to send: whether the messages got through is then unknown, and sending them twice could
have a site train twice. Their sites are late; what never reached one it signs away at the next contact.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import httpx
from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

logger = logging.getLogger("wardpose.server")

_NODES_SECONDS = 120.0  # in which a SuperLink in trouble must say again which nodes are online
_POLL_SECONDS = 0.5  # each poll of a real SuperLink is a request; a grid in this process says how often it may be asked
_BRISKLY, _SHARE = 0.1, 0.02  # seconds, and of the time since messages went out, that an answer may have to wait


@dataclass(frozen=True, kw_only=True)
class Garbage:
    """What came instead of an answer.

    Attributes:
        why: one line.
        own: whether it surely came from the node that was asked.

    """

    why: str
    own: bool


Answer = Message | Garbage | None
Again = Callable[[int, Answer], Message | None]


def exchange(grid: Grid, messages: Sequence[Message], *, seconds: float) -> dict[int, Answer]:
    """Send messages and collect the answers until all are there or the time is up; node -> answer, `None` where late.

    Raises:
        httpx.HTTPError: the SuperLink itself cannot be reached.

    """
    return dict(exchange_each(grid, messages, seconds=seconds))


def exchange_each(
    grid: Grid, messages: Sequence[Message], *, seconds: float, again: Again | None = None
) -> Iterator[tuple[int, Answer]]:
    """Send messages and yield node and answer as they come, each node once; those that are late last, with `None`.

    Nothing is kept of an answer that was yielded. An answer to anything but these very messages is never looked at:
    what comes to an earlier round's stays where it is.

    Args:
        grid: Flower's.
        messages: one a node.
        seconds: after which a node is late.
        again: makes another message to a node of its answer, which is then not yielded, but the other message's is.

    Raises:
        httpx.HTTPError: the SuperLink itself cannot be reached.

    """
    asked = _push(grid, messages)
    late = {message.metadata.dst_node_id for message in messages}
    began = time.monotonic()
    pause, longest = 0.005, getattr(grid, "poll_seconds", _POLL_SECONDS)
    while asked:
        for identifier, node in list(asked.items()):
            answer = _pull(grid, identifier, node)
            if answer is None:
                continue
            del asked[identifier]
            further = None if again is None else again(node, answer)
            if further is not None:
                asked |= _push(grid, [further])
                continue
            late.discard(node)
            yield node, answer
        passed = time.monotonic() - began
        if not asked or passed > seconds:
            break
        time.sleep(pause)
        pause = min(longest, max(pause * 1.5, _SHARE * passed) if pause < _BRISKLY else max(_BRISKLY, _SHARE * passed))
    for node in late:
        yield node, None


def _push(grid: Grid, messages: Sequence[Message]) -> dict[str, int]:
    """Send messages; identifier -> node, without those that Flower could not push."""
    try:
        pushed = list(grid.push_messages(messages))
    except httpx.HTTPStatusError as error:
        if not _in_trouble(error):
            raise
        logger.warning("the SuperLink has answered %d to %d messages", error.response.status_code, len(messages))
        return {}
    return {
        identifier: message.metadata.dst_node_id
        for identifier, message in zip(pushed, messages, strict=True)
        if identifier is not None
    }


def nodes_of(grid: Grid) -> list[NodeInfo]:
    """Return the nodes that are online, asking again for a while where the SuperLink is in trouble.

    Raises:
        httpx.HTTPError: it does not get out of it.

    """
    until = time.monotonic() + _NODES_SECONDS
    while True:
        try:
            return list(grid.get_nodes())
        except httpx.HTTPStatusError as error:
            if not _in_trouble(error) or time.monotonic() > until:
                raise
            logger.warning("the SuperLink has answered %d; asking it again", error.response.status_code)
            time.sleep(getattr(grid, "poll_seconds", _POLL_SECONDS))


def _in_trouble(error: httpx.HTTPStatusError) -> bool:
    return error.response.is_server_error


def _pull(grid: Grid, identifier: str, node: int) -> Answer:
    """Return the answer to one message, if it is there; the first counts."""
    try:
        received = list(grid.pull_messages([identifier]))
    except httpx.HTTPStatusError as error:
        if not _in_trouble(error):
            raise
        logger.warning("the SuperLink has answered %d; asking it again", error.response.status_code)
        return None
    except (httpx.HTTPError, ConnectionError):
        raise  # the link, not a site
    except Exception as error:
        logger.warning("node %d: its answer cannot be read", node, exc_info=True)
        return Garbage(why=f"the answer cannot be read ({type(error).__name__})", own=True)
    for message in received:
        if not isinstance(message, Message) or message.metadata.reply_to_message_id != identifier:
            continue
        source = message.metadata.src_node_id
        if source == node or (message.has_error() and source == SUPERLINK_NODE_ID):
            return message
        return Garbage(why=f"the answer came from node {source}", own=False)
    return None
