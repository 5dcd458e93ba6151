"""A real Prometheus scrapes both exporters, answers every question of the dashboards, and its alerts fire."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.sites import write_site
from support.status_folders import SITES, add_evaluation, busy_coordinator, superlink_database

from wardpose.client.telemetry import TrainingRow, keep
from wardpose.server.provision.certificates import create_authority, create_server_certificate

DEPLOY = Path(__file__).parents[2] / "deploy"
WARDPOSE = (sys.executable, "-c", "from wardpose.simulation.cli import main; main()")
SECONDS = 400.0
EXPECTED = ("WardposeSiteLate", "WardposeSiteRefused", "WardposeLedgersApart", "WardposeCertificateEndsSoon")

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def running(*command: str | Path) -> Iterator[None]:
    process = subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=120)


def ask(address: str, query: str) -> list[dict[str, Any]]:
    url = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        content = json.load(answer)
    assert content["status"] == "success", content
    found: list[dict[str, Any]] = content["data"]["result"]
    return found


def expressions(name: str) -> list[str]:
    panels = json.loads((DEPLOY / "grafana" / name).read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return [expression.replace("$__rate_interval", "1m") for expression in found]


def test_prometheus_answers_every_panel_from_real_exporters(installed: Callable[[str], str], tmp_path: Path) -> None:
    prometheus, now = installed("prometheus"), time.time()
    (tmp_path / "run").mkdir()
    (tmp_path / "site").mkdir()
    add_evaluation(busy_coordinator(tmp_path / "run"))
    database = superlink_database(tmp_path / "state.sqlite", dict.fromkeys(SITES, ("online", now)))
    create_authority(tmp_path / "authority", name="test", days=30)
    create_server_certificate(tmp_path / "authority", tmp_path, hosts=["localhost"], days=10)
    site = write_site(tmp_path / "site")
    row = TrainingRow(
        run="r", round=1, ended=now, seconds=3.0, loss=7.0, clipped=0.5, norms=(0.1, 0.5, 2.0), max_grad_norm=1.0,
        frames_per_second=40.0, gpu_bytes=10, views_per_second=9.0,
    )  # fmt: skip
    keep(tmp_path / "site" / "state", row)
    server_port, site_port, port = free_port(), free_port(), free_port()
    content = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    content["global"] = {"scrape_interval": "5s", "evaluation_interval": "5s"}
    content["rule_files"] = [str(DEPLOY / "prometheus" / "rules.yml")]
    for job in content["scrape_configs"]:
        own = server_port if job["job_name"] == "wardpose-server" else site_port
        job["static_configs"] = [{"targets": [f"127.0.0.1:{own}"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(content))
    address = f"http://127.0.0.1:{port}"
    with (
        running(
            *(*WARDPOSE, "server", "metrics", "--directory", tmp_path / "run", "--port", str(server_port)),
            *("--superlink-database", database, "--certificate", tmp_path / "server.crt"),
        ),
        running(*WARDPOSE, "site", "metrics", site, "--port", str(site_port)),
        running(
            *(prometheus, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"),
            f"--web.listen-address=127.0.0.1:{port}",
        ),
    ):
        until = time.monotonic() + SECONDS
        alerts = f"count(count by (alertname) (ALERTS{{alertstate='firing',alertname=~'{'|'.join(EXPECTED)}'}}))"
        wanted = f"count(up == 1) == 3 and on () {alerts} == {len(EXPECTED)}"
        found: list[dict[str, Any]] = []
        while not found and time.monotonic() < until:
            time.sleep(1)
            try:
                found = ask(address, wanted)
            except OSError:
                continue
        assert found, "Prometheus never saw all exporters and alerts"
        silent = {expression for name in ("federation.json", "site.json") for expression in expressions(name)} - {
            expression
            for name in ("federation.json", "site.json")
            for expression in expressions(name)
            if ask(address, expression)
        }
        firing = {alert["metric"]["alertname"] for alert in ask(address, "ALERTS{alertstate='firing'}")}
    assert firing >= set(EXPECTED)
    quiet = ("increase(", "rate(", "wardpose_run_end_reason", "tier", 'moment="final"', "wardpose_site_rounds_left")
    quiet += ("wardpose_site_noise_multiplier", "wardpose_site_certificate", "wardpose_site_last_order")
    assert not {expression for expression in silent if not any(part in expression for part in quiet)}
