"""The web server of an exporter: a status page, metrics, and what only the machine itself may see of either.

It answers `GET` alone, reads and changes nothing but what its sources read, and speaks HTTP without TLS: it belongs on
loopback. What may only be seen on the machine itself (`/metrics/local`, and local parts of the page) is shown where all
of this holds: the request came to a loopback address and from one, it was not passed on by a proxy that gives itself
away (by a header, or by the HTTP/1.0 that nginx speaks to what is behind it unless told otherwise), and it asks for a
loopback name, so that no page that a browser on this machine has open can read it by giving its own name this address.
"""

import http.server
import ipaddress
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from types import FrameType
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from wardpose.shared.errors import ConfigError, one_line
from wardpose.shared.status_html import HEADERS, headers, render
from wardpose.shared.status_view import StatusView

logger = logging.getLogger("wardpose.exporter")

_OF_A_PROXY = ("forwarded", "via", "x-real-ip", "true-client-ip", "cf-connecting-ip")
_OF_PROXIES = ("x-forwarded-", "x-original-", "x-client-", "x-cluster-client-", "x-envoy-")  # how they begin
_SECONDS = 30.0  # that a client may take for its request


@dataclass(frozen=True, kw_only=True)
class Pages:
    """What an exporter serves.

    Attributes:
        metrics: at `/metrics`.
        status: makes what `/` shows.
        local: at `/metrics/local`, to the machine itself; `None` where there are no such.

    """

    metrics: Collector
    status: Callable[[], StatusView]
    local: Collector | None = None


def url(host: str, port: int) -> str:
    """Return the address as one types it: an IPv6 address stands in brackets, its zone escaped (RFC 3986, RFC 6874)."""
    try:
        if ipaddress.ip_address(host).version == 6:
            host = f"[{host.replace('%', '%25')}]"
    except ValueError:
        pass  # a name
    return f"http://{host}:{port}/"


def serve(pages: Pages, *, host: str, port: int) -> None:
    """Serve until the process is told to stop (SIGTERM or Ctrl-C).

    Raises:
        ConfigError: the address cannot be bound.

    """
    stop = threading.Event()

    def leave(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    server = StatusServer(pages, host=host, port=port)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    print(f"metrics on {server.url}metrics, status page on {server.url}", file=sys.stderr, flush=True)
    with server:
        stop.wait()


class StatusServer:
    """A running server; use it in a `with` statement.

    Attributes:
        url: of the page.

    Raises:
        ConfigError: the address cannot be bound.

    """

    def __init__(self, pages: Pages, *, host: str, port: int) -> None:
        host = host.removeprefix("[").removesuffix("]")
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._server = _server(pages, family, address)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"--host {host} --port {port}: cannot listen there ({reason})") from error
        self.url = url(host, self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "StatusServer":
        """Begin to answer."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _server(pages: Pages, family: int, address: object) -> http.server.ThreadingHTTPServer:
    metrics = _registry(pages.metrics)
    local = None if pages.local is None else _registry(pages.local)
    making = threading.Lock()  # two readers at once must not compute the same epsilons twice

    class Handler(http.server.BaseHTTPRequestHandler):
        server_version = "wardpose"
        sys_version = ""
        timeout = _SECONDS

        def do_GET(self) -> None:
            """Answer."""
            path = urlsplit(self.path).path
            if path == "/":
                with making:
                    view = pages.status()
                self._answer(HTTPStatus.OK, render(view if self._is_local() else view.shared()).encode(), headers())
            elif path == "/metrics":
                self._metrics(metrics)
            elif path == "/metrics/local" and local is not None:
                if self._is_local():
                    self._metrics(local)
                else:
                    self._say(HTTPStatus.FORBIDDEN, "these figures stay on this machine; ask its loopback address")
            else:
                self._say(HTTPStatus.NOT_FOUND, "there is / (the status page) and /metrics")

        do_HEAD = do_GET  # noqa: N815 (the library's name)

        def _metrics(self, registry: CollectorRegistry) -> None:
            encode, kind = choose_encoder(self.headers.get("Accept", ""))
            self._answer(HTTPStatus.OK, encode(registry), {"Content-Type": kind, **HEADERS})

        def _say(self, status: HTTPStatus, text: str) -> None:
            self._answer(status, f"{text}\n".encode(), {"Content-Type": "text/plain; charset=utf-8", **HEADERS})

        def _answer(self, status: HTTPStatus, content: bytes, told: Mapping[str, str]) -> None:
            with suppress(ConnectionError):  # whoever asked did not wait: a scraper whose time was over
                self.send_response(status)
                for name, value in told.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

        def _is_local(self) -> bool:
            asked = self.headers.get("Host", "")
            here = _is_loopback(str(self.request.getsockname()[0])) and _is_loopback(str(self.client_address[0]))
            passed_on = self.request_version == "HTTP/1.0" or any(map(_is_of_a_proxy, self.headers))
            return here and not passed_on and _names_loopback(asked)

        def log_message(self, text: str, *values: object) -> None:
            logger.debug("%s: %s", self.client_address[0], one_line(text % values))

    class Server(http.server.ThreadingHTTPServer):
        address_family = family
        daemon_threads = True

    return Server(address, Handler)  # type: ignore[arg-type]


def _registry(collector: Collector) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return registry


def _is_of_a_proxy(header: str) -> bool:
    name = header.lower()
    return name in _OF_A_PROXY or name.startswith(_OF_PROXIES)


def _is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def _names_loopback(host: str) -> bool:
    """Tell whether a `Host` header names this machine's loopback: an address of it, or `localhost`."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name == "localhost" or _is_loopback(name)
