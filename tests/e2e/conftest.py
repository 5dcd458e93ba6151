"""Real processes on real frames: a small federation, its deployment, and a Prometheus that scrapes it."""

import json
import os
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from wardpose.server.operator import program
from wardpose.shared.config import FederationConfig, load_federation
from wardpose.shared.files import write_json, write_text
from wardpose.shared.home import LOOPBACK
from wardpose.simulation.dev import Deployment
from wardpose.simulation.ports import free_ports
from wardpose.simulation.processes import Processes

REPOSITORY = Path(__file__).parents[2]
SITES = ("north", "south")
PEOPLE = 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("e2e")


@pytest.fixture(scope="module")
def plan(folder: Path, data_root: Path) -> Path:
    """Write a federation of two hospitals with 24 real people each, as little training as there can be."""
    lspet = data_root / "lspet"
    for name, part, count in (("records", "extra", PEOPLE), ("val", "val", 16)):
        content = json.loads((lspet / "annotations" / f"{part}_coco17.json").read_text())
        write_json(folder / f"{name}.json", [Path(image["file_name"]).stem for image in content["images"][:count]])
    source = {"kind": "lsp", "path": str(lspet)}
    content = {
        "name": "small",
        "rounds": 2,
        "sites": list(SITES),
        "mechanism": {"unit": "frame", "sample_rate": 0.25, "noise_multiplier": 1.5},
        "data": {
            "private": {**source, "split": "private", "records": "records.json"},
            "validation": [{**source, "split": "val", "records": "val.json"}],
        },
        "model": {"input_size": [64, 64], "weights": "random"},
        "privacy": {"epsilon": 8.0, "delta": 1e-2},
        "training": {"strategy": "head", "steps": 2},
    }
    write_text(folder / "plan.yaml", yaml.safe_dump(content))
    return folder / "plan.yaml"


@pytest.fixture(scope="module")
def federation(plan: Path) -> FederationConfig:
    return load_federation(plan)


@pytest.fixture(scope="module")
def deployment(folder: Path, federation: FederationConfig) -> Iterator[Deployment]:
    made = Deployment(folder / "deployment")
    try:
        made.up(federation)
        yield made
    finally:
        Deployment(made.folder).down()  # as a later command would, which knows the folder only
        assert made.processes.alive() == []


class Monitor:
    """Both kinds of exporter and a Prometheus, with the configuration of `deploy/prometheus`."""

    def __init__(self, processes: Processes, port: int) -> None:
        self.processes = processes
        self._address = f"http://{LOOPBACK}:{port}"

    def query(self, expression: str) -> dict[tuple[str, ...], float]:
        """Ask by PromQL; label values (without job, instance and name) in the order of the labels -> value."""
        answer = self._get(f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
        ignored = {"__name__", "instance", "job"}
        return {
            tuple(value for name, value in sorted(sample["metric"].items()) if name not in ignored): float(
                sample["value"][1]
            )
            for sample in answer["data"]["result"]
        }

    def alerts(self) -> set[str]:
        """Names of the alerts that are pending or firing."""
        return {alert["labels"]["alertname"] for alert in self._get("/api/v1/alerts")["data"]["alerts"]}

    def _get(self, path: str) -> Any:
        try:
            with urllib.request.urlopen(self._address + path, timeout=10) as answer:
                return json.load(answer)
        except OSError:
            return {"data": {"result": [], "alerts": []}}  # not up yet; callers ask again


@pytest.fixture(scope="module")
def watch(folder: Path, deployment: Deployment, installed: Callable[[str], str]) -> Iterator[Callable[[], Monitor]]:
    """Start the monitor when it is first asked for, so that it does not compete with the run for two cores."""
    prometheus = installed("prometheus")
    ports = dict(zip(("prometheus", "server", *SITES), free_ports(2 + len(SITES)), strict=True))
    config = yaml.safe_load((REPOSITORY / "deploy" / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "4s", "scrape_timeout": "4s", "evaluation_interval": "4s"}
    config["rule_files"] = [str(REPOSITORY / "deploy" / "prometheus" / "rules.yml")]
    server, site, _local = config["scrape_configs"]
    config["scrape_configs"] = [server, site]
    server["static_configs"] = [{"targets": [f"{LOOPBACK}:{ports['server']}"]}]
    site["static_configs"] = [{"targets": [f"{LOOPBACK}:{ports[name]}"]} for name in SITES]
    write_text(folder / "prometheus.yml", yaml.safe_dump(config))
    processes = Processes(folder / "monitor.json", folder / "logs")
    commands = {
        "prometheus": [
            prometheus,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address={LOOPBACK}:{ports['prometheus']}",
        ],
        "server": [
            *(program("wardpose"), "server", "metrics", "--directory", str(deployment.folder / "runs")),
            *("--superlink-database", str(deployment.database), "--port", str(ports["server"])),
        ],
    }
    for name in SITES:
        config_file = str(deployment.site_config(name))
        commands[name] = [program("wardpose"), "site", "metrics", config_file, "--port", str(ports[name])]

    def start() -> Monitor:
        if not processes.roles():
            for role, command in commands.items():
                processes.start(role, command, environment=dict(os.environ), folder=folder)
        return Monitor(processes, ports["prometheus"])

    try:
        yield start
    finally:
        processes.stop(*commands, grace=10)
        assert processes.alive() == []
