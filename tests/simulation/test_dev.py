"""Starting and stopping a deployment, with placeholders instead of Flower's programs."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wardpose.server import submission
from wardpose.server.superlink import Node
from wardpose.shared.config import FederationConfig, load_federation
from wardpose.shared.errors import ConfigError
from wardpose.simulation import dev
from wardpose.simulation.commands.dev import dev as commands
from wardpose.simulation.dev import Deployment
from wardpose.simulation.processes import ProcessError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and pidfd")
WARD = {"kind": "ward", "hospital": "north", "patients": 4, "frames_per_patient": 1}
PLAN = FederationConfig.model_validate({"sites": [{"name": name, "data": WARD} for name in ("north", "south")]})


@pytest.fixture
def deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexec sleep 100\n")
    program.chmod(0o755)
    monkeypatch.setattr(dev, "program", lambda name: str(program))
    monkeypatch.setattr(dev, "healthy", lambda address, authority: True)
    monkeypatch.setattr(dev, "register", lambda home, names: dict.fromkeys(names, "registered"))
    monkeypatch.setattr(
        dev, "registered_nodes", lambda path: [Node(name=name, online=True) for name in ("north", "south")]
    )
    made = Deployment(tmp_path / "deployment")
    yield made
    made.down()
    assert made.processes.alive() == []


def test_sites_stop_first_and_the_superlink_last(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment.up(PLAN)
    assert set(deployment.processes.roles()) == {
        "superlink", "superlink-exec", "node-north", "exec-north", "node-south", "exec-south",
    }  # fmt: skip
    stopped: list[set[str]] = []
    later = Deployment(deployment.folder)
    stop = later.processes.stop
    monkeypatch.setattr(later.processes, "stop", lambda *roles: (stopped.append(set(roles)), stop(*roles)))
    assert len(later.down()) == 6
    assert stopped == [{"node-north", "node-south"}, {"exec-north", "exec-south", "superlink-exec"}, {"superlink"}]
    assert later.processes.alive() == []
    assert later.down() == []


def test_a_second_start_keeps_keys_and_sites(deployment: Deployment) -> None:
    deployment.up(PLAN)
    kept = [deployment.folder / "authority" / "ca.crt", *deployment.folder.glob("sites/*/node.key")]
    kept += deployment.folder.glob("sites/*/site.yaml")
    before = [path.read_bytes() for path in kept]
    assert len(kept) == 5
    with pytest.raises(ConfigError, match="is up already"):
        deployment.up(PLAN)
    deployment.down()
    deployment.up(PLAN)
    assert [path.read_bytes() for path in kept] == before


def test_a_start_that_fails_leaves_nothing_running(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev, "_START_SECONDS", 0.5)
    monkeypatch.setattr(dev, "registered_nodes", lambda path: [])
    with pytest.raises(ProcessError, match="the sites north, south to come online"):
        deployment.up(PLAN)
    assert deployment.processes.alive() == []
    assert not deployment.processes.state.exists()


def test_a_run_has_a_folder_of_its_own_and_a_bundle_without_code(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def ask(home: Path, *arguments: str) -> dict[str, str]:
        asked.append((arguments[0], sorted(path.name for path in Path(arguments[1]).iterdir())))
        return {"run-id": str(6 + len(asked))}

    monkeypatch.setattr(submission, "ask", ask)
    deployment.up(PLAN)
    first, second = deployment.submit(), deployment.submit()
    assert asked == [("run", ["README.md", "pyproject.toml"])] * 2
    assert first.folder != second.folder
    assert (first.flower_runs, second.flower_runs) == ([7], [8])
    assert deployment.run_directory == second.folder
    assert load_federation(second.plan) == PLAN


def test_commands_without_a_deployment(tmp_path: Path) -> None:
    stopped = CliRunner().invoke(commands, ["down", "--directory", str(tmp_path), "--json"])
    assert json.loads(stopped.stdout) == {"stopped": []}
    for command in ("run", "status"):
        answer = CliRunner().invoke(commands, [command, "--directory", str(tmp_path)])
        assert isinstance(answer.exception, ConfigError), command
    many = CliRunner().invoke(commands, ["up", "demo", "--sites", "9", "--directory", str(tmp_path / "new")])
    assert isinstance(many.exception, ConfigError)
    assert list(tmp_path.iterdir()) == []
