"""A SuperLink that says whatever it likes: Flower's Fleet interface over TLS, without Flower's own checks."""

import http.server
import queue
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import fab_to_proto, message_from_proto, message_to_proto, run_to_proto
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from wardpose.shared.home import LOOPBACK

NODE = 77
SERVER_ERROR = "500"


@dataclass(kw_only=True)
class Order:
    """What is sent to the node in one run.

    Attributes:
        bundle: as the SuperLink hands it out.
        announced: hash that it is announced under; the bundle's own when absent.
        run: further fields of the run.
        message_type: of the message.

    """

    bundle: bytes
    announced: str
    run: dict[str, Any] = field(default_factory=dict)
    message_type: str = "query.preflight"


class HostileSuperlink:
    """Sends orders one after the other and keeps what comes back.

    Attributes:
        address: host:port.
        activations: how often a node came online.
        runtimes: how long each answer took at the site, as the site said.

    """

    def __init__(self, port: int) -> None:
        self.address = f"{LOOPBACK}:{port}"
        self.activations = 0
        self.runtimes: list[float] = []
        self._orders: queue.Queue[Order | str] = queue.Queue()
        self._answers: queue.Queue[Message] = queue.Queue()
        self._runs: dict[int, Order] = {}
        self._objects: dict[str, bytes] = {}

    def send(self, order: Order | str, *, timeout: float = 120) -> Message:
        """Send an order and wait for its answer."""
        self._orders.put(order)
        return self._answers.get(timeout=timeout)

    def fail(self) -> None:
        """Answer the next question for messages by HTTP 500."""
        self._orders.put(SERVER_ERROR)

    def reply(self, path: str, body: bytes) -> Any:
        """Return the answer to a request; `None` stands for HTTP 500."""
        name = path.rpartition("/")[2].replace("-", "_")
        return getattr(self, f"_{name}")(body)

    def _activate_node(self, _body: bytes) -> Any:
        self.activations += 1
        return fleet_pb2.ActivateNodeResponse(node_id=NODE)

    def _deactivate_node(self, _body: bytes) -> Any:
        return fleet_pb2.DeactivateNodeResponse()

    def _send_node_heartbeat(self, _body: bytes) -> Any:
        return heartbeat_pb2.SendNodeHeartbeatResponse(success=True)

    def _pull_messages(self, _body: bytes) -> Any:
        try:
            order = self._orders.get_nowait()
        except queue.Empty:
            return fleet_pb2.PullMessagesResponse()
        if isinstance(order, str):
            return None
        run_id = len(self._runs) + 1
        self._runs[run_id] = order
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, 1
        content = RecordDict({"ask": ConfigRecord({"site-config": "/etc/passwd"})})
        message = Message(content, dst_node_id=NODE, message_type=order.message_type)
        message.metadata.__dict__["_message_id"] = message.object_id
        self._objects |= {key: part.deflate() for key, part in get_all_nested_objects(message).items()}
        return fleet_pb2.PullMessagesResponse(
            messages_list=[message_to_proto(remove_content_from_message(message))],
            message_object_trees=[get_object_tree(message)],
        )

    def _get_run(self, body: bytes) -> Any:
        run_id = run_pb2.GetRunRequest.FromString(body).run_id
        order = self._runs[run_id]
        run = Run.create_empty(run_id)
        run.fab_id, run.fab_version, run.fab_hash = "wardpose/wardpose", "0.1.0", order.announced
        for name, value in order.run.items():
            setattr(run, name, value)
        return run_pb2.GetRunResponse(run=run_to_proto(run))

    def _get_fab(self, body: bytes) -> Any:
        order = self._runs[fab_pb2.GetFabRequest.FromString(body).run_id]
        return fab_pb2.GetFabResponse(fab=fab_to_proto(Fab(order.announced, order.bundle, {})))

    def _pull_object(self, body: bytes) -> Any:
        content = self._objects[message_pb2.PullObjectRequest.FromString(body).object_id]
        return message_pb2.PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def _confirm_message_received(self, _body: bytes) -> Any:
        return message_pb2.ConfirmMessageReceivedResponse()

    def _push_messages(self, body: bytes) -> Any:
        request = fleet_pb2.PushMessagesRequest.FromString(body)
        self.runtimes.extend(request.clientapp_runtime_list)
        for message in request.messages_list:
            self._answers.put(message_from_proto(message))
        return fleet_pb2.PushMessagesResponse()


@contextmanager
def serve_superlink(certificate: Path, key: Path) -> Iterator[HostileSuperlink]:
    """Serve one on a free port of loopback."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer = superlink.reply(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(500 if answer is None else 200)
            body = b"" if answer is None else answer.SerializeToString()
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = http.server.ThreadingHTTPServer((LOOPBACK, 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    superlink = HostileSuperlink(server.server_port)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield superlink
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
