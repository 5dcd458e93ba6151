"""Containers, systemd units and nginx: accepted by their programs, and shut where they must be."""

import http.server
import json
import os
import re
import shutil
import socket
import socketserver
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
from support.kits import kit_of, machine_plan, small_wheel

from wardpose.server.operator import program
from wardpose.server.provision.archives import Made, provision
from wardpose.server.provision.plan import MachinePlan
from wardpose.shared.deployment import DeploymentConfig, ServerPorts
from wardpose.shared.home import LOOPBACK
from wardpose.shared.kits.placing import place
from wardpose.simulation.ports import free_ports


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return provision(machine_plan(), tmp_path_factory.mktemp("federation") / "kits", wheel=small_wheel())


@pytest.fixture(scope="module")
def homes(federation: Made, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The homes of the server and of a hospital, with this environment's programs."""
    folder, binaries = tmp_path_factory.mktemp("homes"), Path(sys.executable).parent
    return {
        machine: place(kit_of(federation, machine), folder / machine, binaries=binaries).home
        for machine in ("server", "north")
    }


def units(home: Path) -> list[Path]:
    return sorted((home / "systemd").glob("*.service"))


def compose(home: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((home / "compose" / "docker-compose.yaml").read_text())
    return content


def commands(homes: dict[str, Path]) -> Iterator[list[str]]:
    """Command lines of units and containers, as lists of words."""
    for home in homes.values():
        for unit in units(home):
            joined = unit.read_text().replace("\\\n", " ")
            line = next(line for line in joined.splitlines() if line.startswith("ExecStart="))
            yield [Path(line.partition("=")[2].split()[0]).name, *line.split()[1:]]
        for service in compose(home)["services"].values():
            yield [str(word) for word in service["command"]]


def flags(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--")}


OURS = [
    ("server", "superlink"),
    ("server", "exec"),
    ("server", "metrics"),
    ("server", "budget-service"),
    ("site", "node"),
    ("site", "exec"),
    ("site", "metrics"),
]


@pytest.mark.parametrize(("role", "part"), OURS)
def test_every_part_is_started_by_a_command_that_is_there(homes: dict[str, Path], role: str, part: str) -> None:
    """Flower's own start commands would run whatever app a server names."""
    found = [words for words in commands(homes) if words[:3] == ["wardpose", role, part]]
    assert len(found) == 2
    asked = [program("wardpose"), role, part, "--help"]
    known = subprocess.run(asked, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"})
    for words in found:
        for flag in flags(words):
            assert re.search(rf"(?<!\S){flag}\b", known.stdout), flag


def test_nothing_else_is_started(homes: dict[str, Path]) -> None:
    started = {tuple(words[:3]) if words[0] == "wardpose" else words[0] for words in commands(homes)}
    assert started == {*(("wardpose", *pair) for pair in OURS), "nginx", "prometheus"}
    for words in commands(homes):
        assert "--insecure" not in words
        if words[:3] == ["wardpose", "site", "node"]:
            assert flags(words) >= {"--superlink", "--root-certificates", "--auth-private-key", "--secret-file"}
        if words[:2] == ["wardpose", "site"]:
            assert any("site.yaml" in word for word in words) == (words[2] != "node")


def test_whoever_sees_the_data_sees_no_network(homes: dict[str, Path]) -> None:
    content = compose(homes["north"])
    services = content["services"]
    assert services["site-exec"]["networks"] == ["site"]
    assert content["networks"]["site"]["internal"] is True
    assert content["networks"]["metrics"]["internal"] is True
    assert services["supernode"]["volumes"] == [f"{homes['north']}/keys:{homes['north']}/keys:ro"]
    assert not [service for service in services.values() if "ports" in service]
    executor = (homes["north"] / "systemd" / "wardpose-site-exec.service").read_text().splitlines()
    assert {"IPAddressDeny=any", "IPAddressAllow=localhost"} <= set(executor)


def test_every_container_comes_back_and_has_what_it_names(homes: dict[str, Path]) -> None:
    for home in homes.values():
        content = compose(home)
        for name, service in content["services"].items():
            assert service["restart"] == "always", name
            assert set(service.get("networks", [])) <= set(content.get("networks", {})), name
            assert set(service.get("depends_on", [])) <= set(content["services"]), name
            for volume in service["volumes"]:
                source = volume.partition(":")[0]
                assert source.startswith("${WARDPOSE_FRAMES") or Path(source).exists(), volume
            if name != "nginx":
                assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"]), name


def test_units_end_with_their_children_come_back_and_share_nothing(homes: dict[str, Path]) -> None:
    assert [len(units(home)) for home in homes.values()] == [6, 3]
    for unit in (unit for home in homes.values() for unit in units(home)):
        lines = unit.read_text().splitlines()
        assert {"KillMode=control-group", "Restart=always", "RestartSec=10", "UMask=0077", "User=wardpose"} <= set(
            lines
        )
        assert {"Environment=FLWR_TELEMETRY_ENABLED=0", "Environment=FLWR_DISABLE_UPDATE_CHECK=1"} <= set(lines)
        assert "ProtectSystem=strict" in lines


_FLOWERS_HOME = """
import sys
from pathlib import Path
from flwr.supercore.utils import get_flwr_home
from wardpose.server.commands.launching import entered

entered(Path(sys.argv[1]))
print(get_flwr_home())
"""


def test_flower_keeps_its_files_where_units_may_write(homes: dict[str, Path]) -> None:
    """The user of the units has no home folder, and a container's is read-only."""
    nobody = {name: value for name, value in os.environ.items() if name != "FLWR_HOME"} | {"HOME": "/nonexistent"}
    words = [sys.executable, "-c", _FLOWERS_HOME, homes["server"]]
    said = subprocess.run(words, env=nobody, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(said).is_relative_to(homes["server"])
    for name in ("wardpose-supernode", "wardpose-site-exec"):
        unit = (homes["north"] / "systemd" / f"{name}.service").read_text()
        ((place,), (writable,)) = (
            re.findall(rf"^{key}(\S+)$", unit, re.M) for key in ("Environment=FLWR_HOME=", "ReadWritePaths=")
        )
        assert Path(place).is_relative_to(writable)


def test_systemd_accepts_the_units(homes: dict[str, Path], installed: Callable[[str], str], tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    for unit in (unit for home in homes.values() for unit in units(home)):
        (tmp_path / unit.name).write_text(unit.read_text())
    checked = subprocess.run([analyze, "verify", *tmp_path.glob("*.service")], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_prometheus_accepts_what_is_filled_in(homes: dict[str, Path], installed: Callable[[str], str]) -> None:
    for home, jobs in (
        (homes["server"], ["wardpose-server", "wardpose-site"]),
        (homes["north"], ["wardpose-site", "wardpose-site-local"]),
    ):
        path = home / "prometheus" / "prometheus.yml"
        checked = subprocess.run([installed("promtool"), "check", "config", path], capture_output=True, text=True)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert "WARNING" not in checked.stdout + checked.stderr
        scraped = yaml.safe_load(path.read_text())["scrape_configs"]
        assert [job["job_name"] for job in scraped] == jobs
        port = {"server": 9464, "north": 9465}[home.name]
        assert scraped[0]["static_configs"] == [{"targets": [f"127.0.0.1:{port}"]}]


def test_grafana_finds_its_dashboards(homes: dict[str, Path]) -> None:
    for home in homes.values():
        providers = yaml.safe_load((home / "grafana/provisioning/dashboards/wardpose.yaml").read_text())["providers"]
        folder = Path(providers[0]["options"]["path"])
        assert sorted(folder.glob("*.json"))
        for dashboard in folder.glob("*.json"):
            json.loads(dashboard.read_text())


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


class Echo(socketserver.BaseRequestHandler):
    """A Budget service that TLS must reach unopened: it says back what came."""

    def handle(self) -> None:
        self.request.sendall(self.request.recv(1024))


@pytest.fixture
def door(installed: Callable[[str], str], tmp_path: Path) -> Iterator[Callable[..., tuple[int, bytes]]]:
    """The real nginx of a server's home, in front of a TLS server and of an echo; asks it for a path."""
    nginx = installed("nginx")
    if not Path("/usr/lib/nginx/modules/ngx_stream_module.so").exists() and "--with-stream " not in version(nginx):
        installed("nginx's stream module (Debian: libnginx-mod-stream)")
    upstream = http.server.ThreadingHTTPServer((LOOPBACK, 0), Upstream)
    echo = socketserver.ThreadingTCPServer((LOOPBACK, 0), Echo)
    fleet, budget = free_ports(2)
    ports = {"superlink": upstream.server_port, "budget_service": echo.server_address[1]}
    deployment = DeploymentConfig(address="localhost", ports=ServerPorts(fleet=fleet, budget=budget, **ports))
    plan = MachinePlan(**{**vars(machine_plan()), "deployment": deployment})
    home = place(kit_of(provision(plan, tmp_path / "kits", wheel=small_wheel()), "server"), tmp_path / "home").home
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "keys" / "server.crt", home / "keys" / "server.key")
    upstream.socket = context.wrap_socket(upstream.socket, server_side=True)
    threads = [threading.Thread(target=server.serve_forever) for server in (upstream, echo)]
    for thread in threads:
        thread.start()
    command = [nginx, "-e", str(home / "log" / "nginx.log"), "-c", str(home / "nginx.conf")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen([*command, "-g", "daemon off;"])
    client = ssl.create_default_context(cafile=str(home / "keys" / "ca.crt"))

    def ask(path: str, body: bytes | None = None) -> tuple[int, bytes]:
        until = time.monotonic() + 10
        while True:
            try:
                if path == "budget":
                    with socket.create_connection((LOOPBACK, budget), timeout=10) as connection:
                        connection.sendall(body or b"")
                        return 0, connection.recv(1024)
                url = f"https://localhost:{fleet}{path}"
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
        for server in (upstream, echo):
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()


def version(nginx: str) -> str:
    return subprocess.run([nginx, "-V"], capture_output=True, text=True).stderr + " "


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
    hello = b"\x16\x03\x01 any bytes: TLS ends in the service"
    assert door("budget", hello) == (0, hello)
