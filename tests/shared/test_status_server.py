"""An exporter's web server: three addresses, of which one and a half are for the machine itself alone."""

import http.client
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from prometheus_client import Metric
from support.status_views import view

from wardpose.shared.exposition import FileCollector, gauge
from wardpose.shared.status_server import Pages, StatusServer


def collector(name: str) -> FileCollector:
    return FileCollector({"one": lambda: [gauge(name, "A value.", [({}, 1.0)])]}, prefix=f"{name}_exporter")


@pytest.fixture
def server() -> Iterator[StatusServer]:
    pages = Pages(metrics=collector("shared"), status=lambda: view("JaneDoe", local=True), local=collector("private"))
    with StatusServer(pages, host="127.0.0.1", port=0) as running:
        yield running


def ask(
    server: StatusServer, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None
) -> tuple[int, str, Mapping[str, str]]:
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port or 0, timeout=30)
    try:
        connection.request(method, path, headers=dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), dict(answer.getheaders())
    finally:
        connection.close()


def test_page_and_metrics_have_their_addresses(server: StatusServer) -> None:
    status, page, told = ask(server, "/")
    assert (status, "JaneDoe" in page) == (200, True)
    assert told["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert (told["X-Content-Type-Options"], told["X-Frame-Options"], told["Cache-Control"]) == (
        "nosniff", "DENY", "no-store",
    )  # fmt: skip
    assert "shared 1.0" in ask(server, "/metrics")[1]
    assert "private 1.0" in ask(server, "/metrics/local")[1]
    assert "private" not in ask(server, "/metrics")[1]
    assert ask(server, "/elsewhere")[0] == 404
    assert ask(server, "/../../etc/passwd")[0] == 404


def test_it_only_answers(server: StatusServer) -> None:
    assert [ask(server, "/", method=method)[0] for method in ("POST", "PUT", "DELETE", "OPTIONS")] == [501] * 4
    status, body, told = ask(server, "/", method="HEAD")
    assert (status, body) == (200, "")
    assert int(told["Content-Length"]) > 1000


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "ward.example"},
        {"Host": "127.0.0.1.ward.example"},
        {"Host": "localhost.ward.example:9465"},
        {"Host": ""},
        {"Host": "[::1"},
        {"Host": "127.0.0.1", "X-Forwarded-For": "10.0.0.7"},
        {"Host": "127.0.0.1", "Forwarded": "for=10.0.0.7"},
        {"Host": "127.0.0.1", "Via": "1.1 proxy"},
        {"Host": "127.0.0.1", "X-Real-IP": "10.0.0.7"},
        {"Host": "127.0.0.1", "x-forwarded-proto": "https"},
        {"Host": "127.0.0.1", "X-Forwarded-For": ""},
        {"Host": "127.0.0.1", "CF-Connecting-IP": "10.0.0.7"},
    ],
)
def test_who_comes_by_another_name_or_a_proxy_is_not_this_machine(
    server: StatusServer, headers: Mapping[str, str]
) -> None:
    status, text, _ = ask(server, "/metrics/local", headers=headers)
    assert (status, "private" in text) == (403, False)
    status, page, _ = ask(server, "/", headers=headers)
    assert (status, "<table" in page) == (200, False)
    assert ask(server, "/metrics", headers=headers)[0] == 200


def test_a_proxy_that_says_nothing_but_speaks_as_nginx_does_is_not_this_machine(server: StatusServer) -> None:
    """As nginx passes on by default: its own name for what is behind it, nothing of who asked, and HTTP/1.0."""
    address = urlsplit(server.url)
    for path, status in (("/metrics/local", b"403"), ("/metrics", b"200")):
        with socket.create_connection((address.hostname, address.port), timeout=30) as proxy:
            proxy.sendall(f"GET {path} HTTP/1.0\r\nHost: {address.netloc}\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: proxy.recv(65536), b""))
        assert answer.split()[1] == status
        assert b"private" not in answer


def other_address() -> str:
    """An address of this machine that is not of its loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but its loopback's")
        return str(asking.getsockname()[0])


@pytest.mark.parametrize("way", ["to another address", "from another address", "both"])
def test_who_comes_to_or_from_another_address_is_not_this_machine_whatever_they_say(way: str) -> None:
    pages = Pages(metrics=collector("shared"), status=lambda: view("JaneDoe", local=True), local=collector("private"))
    here, other = "127.0.0.1", other_address()
    source, target = {
        "to another address": (here, other),
        "from another address": (other, here),
        "both": (other, other),
    }[way]
    with StatusServer(pages, host="0.0.0.0", port=0) as running:  # as somebody may start it who knows no better
        port = urlsplit(running.url).port or 0
        for path, status in (("/metrics/local", 403), ("/", 200)):
            connection = http.client.HTTPConnection(target, port, timeout=30, source_address=(source, 0))
            connection.request("GET", path, headers={"Host": "127.0.0.1"})
            answer = connection.getresponse()
            text = answer.read().decode()
            connection.close()
            assert (answer.status, "private" in text, "<table" in text) == (status, False, False)
        connection = http.client.HTTPConnection(here, port, timeout=30)
        connection.request("GET", "/metrics/local")
        assert connection.getresponse().status == 200
        connection.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9465", "localhost", "LOCALHOST:1", "[::1]:9465"])
def test_the_machine_itself_may_give_any_of_its_loopback_names(server: StatusServer, host: str) -> None:
    assert ask(server, "/metrics/local", headers={"Host": host})[0] == 200


def test_without_local_figures_there_is_no_such_address() -> None:
    pages = Pages(metrics=collector("shared"), status=lambda: replace(view(), tables=()))
    with StatusServer(pages, host="127.0.0.1", port=0) as running:
        assert ask(running, "/metrics/local")[0] == 404


def test_a_scraper_that_does_not_wait_leaves_no_trace(capfd: pytest.CaptureFixture[str]) -> None:
    asked, gone = threading.Event(), threading.Event()

    def slow() -> list[Metric]:
        asked.set()
        assert gone.wait(30)
        return [gauge("shared", "A value.", [({}, 1.0)])]

    pages = Pages(metrics=FileCollector({"slow": slow}), status=lambda: view("JaneDoe", local=False))
    with StatusServer(pages, host="127.0.0.1", port=0) as running:
        address = urlsplit(running.url)
        with socket.create_connection((address.hostname, address.port)) as impatient:
            impatient.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert asked.wait(30)
            impatient.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset at the close
        gone.set()
        for thread in threading.enumerate():
            if "process_request_thread" in thread.name:
                thread.join(30)
        assert "shared 1.0" in ask(running, "/metrics")[1]
    assert capfd.readouterr().err == ""
