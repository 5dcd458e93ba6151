"""Containers, systemd units and nginx: accepted by their programs, and shut where they must be."""

import http.server
import re
import shutil
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from wardpose.server.provision.certificates import create_authority, create_server_certificate
from wardpose.simulation.flower import LOOPBACK, free_ports, program

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


@pytest.fixture
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "compose" / "docker-compose.yaml").read_text())
    return content


def commands(compose: dict[str, Any]) -> Iterator[list[str]]:
    """Command lines of units and containers, as lists of words."""
    for unit in UNITS:
        joined = unit.read_text().replace("\\\n", " ")
        line = next(line for line in joined.splitlines() if line.startswith("ExecStart="))
        yield [Path(line.partition("=")[2].split()[0]).name, *line.split()[1:]]
    for service in compose["services"].values():
        if "command" in service:
            yield service["command"]


def flags(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--")}


@pytest.mark.parametrize("name", ["flower-superlink", "flower-superexec"])
def test_every_flag_is_one_of_the_installed_flower(compose: dict[str, Any], name: str) -> None:
    known = subprocess.run([program(name), "--help"], capture_output=True, text=True, check=True).stdout
    found = [words for words in commands(compose) if words[0] == name]
    assert len(found) >= 2
    for words in found:
        for flag in flags(words):
            assert re.search(rf"(?<!\S)\[?{flag}\b", known), flag


def test_servers_and_nodes_are_isolated_authenticated_and_install_nothing(compose: dict[str, Any]) -> None:
    for words in commands(compose):
        if words[0] == "flower-superlink":
            assert flags(words) >= {
                "--enable-supernode-auth",
                "--disable-runtime-dependency-installation",
                "--superexec-auth-secret-file",
                "--database",
                "--ssl-certfile",
            }
            assert "--insecure" not in words
            assert "process" in " ".join(words).split("--isolation")[1][:9]


def test_sites_are_started_by_wardpose_alone(compose: dict[str, Any]) -> None:
    """Flower's own start commands would run whatever app a server names."""
    started = list(commands(compose))
    assert not [words for words in started if words[0] == "flower-supernode"]
    for words in started:
        if words[0] == "flower-superexec":  # the coordinator's, for the ServerApp
            assert "--root-certificates" in flags(words)
    for half, needed in (
        ("node", {"--superlink", "--root-certificates", "--auth-private-key", "--secret-file"}),
        ("exec", {"--runtime-api-address", "--secret-file"}),
    ):
        found = [words for words in started if words[:3] == ["wardpose", "site", half]]
        assert len(found) == 2
        known = subprocess.run(
            [program("wardpose"), "site", half, "--help"], capture_output=True, text=True, check=True
        )
        for words in found:
            assert needed <= flags(words)
            for flag in flags(words):
                assert re.search(rf"(?<!\S){flag}\b", known.stdout), flag
            data = any("site.yaml" in word for word in words)
            assert data == (half == "exec")


def test_the_budget_service_asks_everybody_for_a_certificate(compose: dict[str, Any]) -> None:
    found = [words for words in commands(compose) if words[:3] == ["wardpose", "server", "budget-service"]]
    assert len(found) == 2
    known = subprocess.run(
        [program("wardpose"), "server", "budget-service", "--help"], capture_output=True, text=True, check=True
    )
    for words in found:
        assert flags(words) >= {"--certificate", "--key", "--ca"}
        assert "--insecure" not in words
        for flag in flags(words):
            assert re.search(rf"(?<!\S){flag}\b", known.stdout), flag


def test_whoever_sees_the_data_sees_no_network(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services["site-exec"]["networks"] == ["site"]
    assert compose["networks"]["site"]["internal"] is True
    assert "/data" not in str(services["supernode"]["volumes"])
    published = [str(port) for service in services.values() for port in service.get("ports", [])]
    assert [port for port in published if not port.startswith("127.0.0.1:")] == ["9443:9443", "443:443"]
    for name, service in services.items():
        assert service["restart"] == "always", name
        assert service["profiles"][0] in ("server", "site"), name
        assert all(network in compose["networks"] for network in service["networks"]), name


def test_units_end_with_their_children_and_come_back() -> None:
    assert len(UNITS) == 7
    for unit in UNITS:
        lines = unit.read_text().splitlines()
        assert {"KillMode=control-group", "Restart=always", "RestartSec=10"} <= set(lines), unit.name
        assert "Environment=FLWR_TELEMETRY_ENABLED=0" in lines
        assert "Environment=FLWR_DISABLE_UPDATE_CHECK=1" in lines


def test_systemd_accepts_the_units(installed: Callable[[str], str], tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    for unit in UNITS:
        text = unit.read_text().replace("/opt/wardpose/bin/", f"{Path(sys.executable).parent}/")
        (tmp_path / unit.name).write_text(text)
    checked = subprocess.run([analyze, "verify", *tmp_path.glob("*.service")], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


class Upstream(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode())

    def do_POST(self) -> None:
        length = len(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(length).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def door(installed: Callable[[str], str], tmp_path: Path) -> Iterator[Callable[..., tuple[int, bytes]]]:
    """The real nginx with the shipped configuration in front of a TLS server; asks it for a path."""
    nginx = installed("nginx")
    authority = create_authority(tmp_path, name="test", days=1)
    hosts = ("localhost", LOOPBACK, "superlink")
    certificate, key = create_server_certificate(tmp_path, tmp_path, hosts=hosts, days=1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    upstream = http.server.ThreadingHTTPServer((LOOPBACK, 0), Upstream)
    upstream.socket = context.wrap_socket(upstream.socket, server_side=True)
    thread = threading.Thread(target=upstream.serve_forever)
    thread.start()
    port = free_ports(1)[0]
    site = (DEPLOY / "nginx" / "wardpose.conf").read_text()
    site = site.replace("superlink:8000", f"{LOOPBACK}:{upstream.server_port}").replace("/run/keys", str(tmp_path))
    site = site.replace("listen 443", f"listen {LOOPBACK}:{port}")
    folders = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = tmp_path / "nginx.conf"
    main.write_text(
        f"daemon off; pid {tmp_path}/nginx.pid; error_log {tmp_path}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off; {folders}\n{site}\n}}\n"
    )
    command = [nginx, "-p", str(tmp_path), "-c", str(main)]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen(command)
    client = ssl.create_default_context(cafile=str(authority))

    def ask(path: str, body: bytes | None = None) -> tuple[int, bytes]:
        until = time.monotonic() + 10
        while True:
            try:
                url = f"https://localhost:{port}{path}"
                with urllib.request.urlopen(url, data=body, context=client, timeout=10) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                return error.code, b""
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    try:
        yield ask
    finally:
        process.terminate()
        process.wait(timeout=10)
        upstream.shutdown()
        upstream.server_close()
        thread.join()


def test_only_the_fleet_interface_is_reached_through_nginx(door: Callable[..., tuple[int, bytes]]) -> None:
    assert door("/v1/fleet/pull-messages", b"x" * 6_000_000) == (200, b"6000000")
    assert door("/health") == (200, b"/health")
    for path in (
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/",
        "/health/x",
        "/v1/fleet/../control/x",
    ):
        assert door(path)[0] == 403, path
    assert door("/v1/fleet/%2e%2e/control/start-run", b"x")[0] == 403
