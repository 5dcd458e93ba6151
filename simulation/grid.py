"""An in-process Flower grid: the very apps that hospitals run, without processes and network between them.

One worker answers in the thread that asks, several in threads of their own. Faults can be injected at the moment where
the network or a machine would fail.
"""

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo  # the type that Grid.get_nodes is declared with
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import (
    TaskIdentity,
)  # Message() needs the identity of the task that creates it

from wardpose.shared.messages import EVALUATE, SECURE_PARTS, TRAIN
from wardpose.shared.refusals import Refusal
from wardpose.shared.signing import load_public_key
from wardpose.shared.wire import refusal

_CRASHED = 8  # Flower's CLIENT_APP_CRASHED
_FIRST_NODE = 100

FaultKind = Literal["crash", "crash-after-training", "straggle", "refuse", "replace"]

Replacement = Callable[[Message, Message], Message | Sequence[Message] | None]
"""What a site sends instead, made of the message it got and its honest answer."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that goes wrong at a site.

    Attributes:
        site: where.
        round: when, counted from 1; 0 for preflights. With `evaluation`, the number of the evaluation.
        kind: `crash` before anything happened; `crash-after-training`: the budget is spent and the release is lost;
            `straggle`: the site trains but its answer comes too late; `refuse`: the site's policy says no; `replace`:
            it sends something else. Training stands for an evaluation where that is meant.
        message: type of the message of secure aggregation that it happens to; of no such when absent.
        replace: makes what it sends. What it raises, the server meets when it pulls, as with bytes that Flower cannot
            read.
        evaluation: it goes wrong in an evaluation on patients, and not in a round.

    """

    site: str
    round: int
    kind: FaultKind
    message: str = ""
    replace: Replacement | None = None
    evaluation: bool = False


class InProcessGrid(Grid):
    """Flower's grid interface over ClientApp calls in a pool of threads; a context manager.

    Args:
        client_app: the ClientApp of every site.
        sites: site name -> site.yaml.
        run_config: Flower's run config, as both apps see it.
        workers: sites that train at the same time. With one, a site answers while the server pulls, in the server's
            thread: a second thread with parallel kernels of its own would slow both down.
        faults: what goes wrong.
        observe: called with (site, `started` | `finished`) from the thread that trains; observes, never steers.

    """

    poll_seconds = 0.01
    simulated = True  # the server's ledger lies in the run's folder, as the sites' do

    def __init__(
        self,
        client_app: ClientApp,
        sites: Mapping[str, Path],
        *,
        run_config: Mapping[str, bool | float | int | str] | None = None,
        workers: int = 1,
        faults: Sequence[Fault] = (),
        observe: Callable[[str, str], None] | None = None,
    ) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self._app = client_app
        self._names = dict(enumerate(sites, start=_FIRST_NODE))
        self._keys = {name: load_public_key(path.parent / "node.pub") for name, path in sites.items()}
        self._contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"site-config": str(sites[name])},
                state=RecordDict(),
                run_config=dict(run_config or {}),
            )
            for node, name in self._names.items()
        }
        self._faults = {(fault.site, fault.round, fault.message, fault.evaluation): fault for fault in faults}
        self._observe = observe or (lambda site, event: None)
        self._pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="site") if workers > 1 else None
        self._answers: dict[str, Future[Sequence[Message]]] = {}
        self._queue: dict[str, Message] = {}
        self._identifiers = (f"message-{number}" for number in itertools.count())
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def set_run(self, run: Run) -> None:
        """Remember Flower's description of the run; nothing here needs it."""
        self._run = run

    @property
    def run(self) -> Run:
        """Flower's description of the run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message as Flower's own grids do."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return one number a site."""
        return list(self._contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the sites with their names and keys."""
        return [
            NodeInfo(node_id=node, name=name, public_key=self._keys[name].text.encode())
            for node, name in self._names.items()
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand messages to the sites; returns at once."""
        identifiers = []
        for message in messages:
            identifier = next(self._identifiers)
            message.metadata.__dict__["_message_id"] = identifier  # what the SuperLink does
            if self._pool is None:
                self._queue[identifier] = message
            else:
                self._answers[identifier] = self._pool.submit(self._answer, message)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the answers that are there, after having one more site answer where they share this thread."""
        wanted = list(message_ids)
        self._work(next((identifier for identifier in wanted if identifier in self._queue), None))
        futures = {identifier: self._answers[identifier] for identifier in wanted if identifier in self._answers}
        ready = [identifier for identifier, future in futures.items() if future.done()]
        return [answer for identifier in ready for answer in self._answers.pop(identifier).result()]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and wait for the answers."""
        identifiers = list(self.push_messages(messages))
        for identifier in identifiers:
            self._work(identifier)
            self._answers[identifier].exception(timeout=timeout)
        return self.pull_messages(identifiers)

    def _work(self, identifier: str | None) -> None:
        """Carry out one queued message in this thread."""
        message = self._queue.pop(identifier, None) if identifier is not None else None
        if identifier is None or message is None:
            return
        future = self._answers[identifier] = Future()
        try:
            future.set_result(self._answer(message))
        except Exception as error:
            future.set_exception(error)

    def _answer(self, message: Message) -> Sequence[Message]:
        if self._stopped.is_set():
            return ()
        node = message.metadata.dst_node_id
        name = self._names[node]
        kind_of_message, group = message.metadata.message_type, message.metadata.group_id
        measured, part = kind_of_message == EVALUATE, kind_of_message if kind_of_message in SECURE_PARTS else ""
        number = int(group.rpartition("-")[2]) if measured or part or kind_of_message == TRAIN else 0
        fault = self._faults.get((name, number, part, measured))
        kind = None if fault is None else fault.kind
        if kind == "crash":
            return (Message(Error(_CRASHED, "crashed"), reply_to=message),)
        if kind == "refuse":
            return (refusal(Refusal.POLICY, message),)
        self._observe(name, "started")
        try:
            answer = self._app(message, self._contexts[node])
        finally:
            self._observe(name, "finished")
        if kind == "crash-after-training":
            return (Message(Error(_CRASHED, "crashed"), reply_to=message),)
        if kind == "straggle":
            return ()
        if fault is not None and fault.replace is not None:
            sent = fault.replace(message, answer)
            return () if sent is None else (sent,) if isinstance(sent, Message) else sent
        return (answer,)
