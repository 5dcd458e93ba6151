"""The service as a process: TLS, limits, health, reflection, and an end that lets calls finish."""

import ipaddress
import logging
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import FrameType

import grpc
from cryptography.x509 import load_pem_x509_certificates
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from wardpose.server.budget_service.service import BudgetService
from wardpose.shared.budget_wire import budget_pb2, budget_pb2_grpc
from wardpose.shared.errors import ConfigError, WardposeError, one_line
from wardpose.shared.files import refuse_readable

logger = logging.getLogger("wardpose.budget_service")

SERVICE = budget_pb2.DESCRIPTOR.services_by_name["BudgetService"].full_name
REQUEST_BYTES = 1 << 14
ANSWER_BYTES = 1 << 23

_CALLS_AT_ONCE = 48  # each may hold a thread: no call that is let in waits for another to end
_GRACE_SECONDS = 5.0
_OPTIONS = (
    ("grpc.max_receive_message_length", REQUEST_BYTES),
    ("grpc.max_send_message_length", ANSWER_BYTES),
    ("grpc.max_metadata_size", 1 << 13),
    ("grpc.max_concurrent_streams", 16),  # of a connection
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_connection_age_ms", 900_000),  # whoever reads too slowly, or holds an old certificate, must come again
    ("grpc.max_connection_age_grace_ms", 60_000),
    ("grpc.so_reuseport", 0),  # a second service on the port is refused
)


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """What TLS needs.

    Attributes:
        certificate: of the service.
        key: of the certificate.
        authority: certificate of the authority that signs sites' and auditors' certificates.

    """

    certificate: Path
    key: Path
    authority: Path

    def credentials(self) -> grpc.ServerCredentials:
        """Return what makes gRPC demand a certificate of every client.

        Raises:
            ConfigError: a file cannot be read, or holds no certificate.

        """
        refuse_readable(self.key)
        certificate, key, authority = (_content(path) for path in (self.certificate, self.key, self.authority))
        for path, content in ((self.certificate, certificate), (self.authority, authority)):
            try:
                load_pem_x509_certificates(content)
            except ValueError as error:
                raise ConfigError(f"{path}: holds no certificate (allowed: PEM)") from error
        return grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)


class Server:
    """A service that listens.

    Attributes:
        port: that it listens on.

    """

    def __init__(self, service: BudgetService, listen: str, tls: TlsFiles | None, *, refresh_seconds: float = 10.0):
        """Bind, without answering yet.

        Args:
            service: what answers.
            listen: `host:port`; port 0 takes a free one.
            tls: certificates; without them everybody who reaches the port is believed, so it must be on loopback.
            refresh_seconds: how often the ledger is read, so that health follows it and calls find little to read.

        Raises:
            ConfigError: the address is wrong or taken, or not on loopback without TLS; a certificate is wrong.

        """
        self._service = service
        self._refresh_seconds = refresh_seconds
        self._stopped = threading.Event()
        self._health = health.HealthServicer()
        self._set_health(serving=False)
        self._server = grpc.server(
            ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="budget"),
            options=_OPTIONS,
            maximum_concurrent_rpcs=_CALLS_AT_ONCE,
        )
        register: Callable[[BudgetService, grpc.Server], None] = budget_pb2_grpc.add_BudgetServiceServicer_to_server
        register(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.port = self._bind(listen, tls)
        self._reader = threading.Thread(target=self._read, name="budget-reader", daemon=True)

    def _bind(self, listen: str, tls: TlsFiles | None) -> int:
        check_address(listen, insecure=tls is None)
        credentials = None if tls is None else tls.credentials()
        try:
            if credentials is None:
                return int(self._server.add_insecure_port(listen))
            return int(self._server.add_secure_port(listen, credentials))
        except RuntimeError as error:
            raise ConfigError(
                f"{listen}: cannot be listened on (allowed: a free host:port; a key that fits its certificate)"
            ) from error

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()
        self._reader.start()

    def stop(self) -> None:
        """Answer no new call, let those that run finish for some seconds, and end."""
        self._stopped.set()
        self._health.enter_graceful_shutdown()
        self._server.stop(_GRACE_SECONDS).wait()
        if self._reader.ident is not None:
            self._reader.join()

    def run(self) -> None:
        """Answer until the process is told to end."""
        ended: SimpleQueue[int] = SimpleQueue()  # the one queue that a signal's handler may put into

        def end(number: int, _frame: FrameType | None) -> None:
            ended.put(number)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)
        self.start()
        logger.info("signal %d: ending", ended.get())
        self.stop()

    def _read(self) -> None:
        while True:
            try:
                self._service.view.snapshot()
            except (WardposeError, OSError) as error:
                logger.error("%s: %s", type(error).__name__, one_line(error, 1000))
                self._set_health(serving=False)
            else:
                self._set_health(serving=True)
            if self._stopped.wait(self._refresh_seconds):
                return

    def _set_health(self, *, serving: bool) -> None:
        states = health_pb2.HealthCheckResponse
        for name in ("", SERVICE):
            self._health.set(name, states.SERVING if serving else states.NOT_SERVING)


def check_address(listen: str, *, insecure: bool) -> None:
    """Refuse an address that is none, or that others reach where nobody is asked who they are.

    Raises:
        ConfigError: names it.

    """
    host, _, port = listen.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise ConfigError(f"--listen {one_line(listen)!r} (allowed: host:port)")
    if not insecure:
        return
    try:
        loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = False  # a name may lead anywhere tomorrow
    if not loopback:
        raise ConfigError(f"--listen {listen!r} with --insecure (allowed: 127.0.0.1:PORT or [::1]:PORT)")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
