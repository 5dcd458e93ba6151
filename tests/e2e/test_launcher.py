"""A server's home run by one command, on real processes: what dies comes back, and a run outlives it."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wardpose.server.operator import environment, program
from wardpose.server.runs import find_run
from wardpose.shared.config import FederationConfig
from wardpose.shared.health import healthy
from wardpose.shared.yaml_config import to_yaml
from wardpose.simulation.dev import Deployment
from wardpose.simulation.ports import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.guard, pytest.mark.timeout(1500)]
WARD = {"kind": "ward", "hospital": "north", "patients": 12, "frames_per_patient": 1, "seed": 1}
PLAN = FederationConfig.model_validate(
    {
        "name": "small",
        "rounds": 2,
        "sites": [{"name": "north", "data": WARD}],
        "mechanism": {"sample_rate": 0.5, "noise_multiplier": 3.0, "frames_per_unit": 1},
        "model": {"input_size": [32, 32], "weights": "random"},
        "privacy": {"epsilon": 50.0, "delta": 1e-3},
        "training": {"strategy": "head", "steps": 1},
    }
)
SERVER, SITE = "server", "site"


def wait_for(condition: Callable[[], bool], *, what: str, seconds: float = 400) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.3)


class Home:
    """A home and its one site, each under its launcher."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment, self.folder, self.processes = deployment, deployment.folder, deployment.processes

    def start(self, role: str, *arguments: str) -> None:
        self.processes.start(
            role, [program("wardpose"), *arguments], environment=environment(self.folder / role), folder=self.folder
        )

    def server(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command of the coordinator in the home, as an operator would."""
        command = [program("wardpose"), "server", *arguments]
        return subprocess.run(command, cwd=self.folder, env=environment(self.folder), capture_output=True, text=True)

    def asked(self, *arguments: str) -> Any:
        found = self.server(*arguments, "--json")
        assert found.stdout.startswith("{"), found.stderr
        return json.loads(found.stdout)

    def children(self, role: str, words: str) -> set[int]:
        found = set()
        for process in self.processes.alive():
            line = Path(f"/proc/{process.pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if process.role == role and words in line:
                found.add(process.pid)
        return found

    def kill(self, words: str) -> None:
        (victim,) = self.children(SERVER, words)
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: self.children(SERVER, words) not in ({victim}, set()), what=f"another {words}")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    deployment = Deployment(tmp_path_factory.mktemp("launcher") / "home")
    deployment.up(PLAN)  # makes the home, its keys and the registration
    deployment.down()
    made = Home(deployment)
    try:
        made.start(SERVER, "server", "run")
        there = deployment.home
        wait_for(lambda: healthy(there.superlink, there.authority), what="the SuperLink")
        site = deployment.site_config("north")
        made.start(
            *(SITE, "site", "run", str(site), "--superlink", there.superlink),
            *("--root-certificates", str(there.authority), "--auth-private-key", str(site.parent / "node.key")),
            *("--port", str(free_ports(1)[0])),
        )
        wait_for(lambda: made.asked("nodes")["nodes"][0]["online"], what="the site")
        yield made
    finally:
        deployment.down()
        assert deployment.processes.alive() == []


def test_a_run_outlives_its_executor_and_the_superlink(home: Home) -> None:
    second = home.server("run")
    assert (second.returncode, "is run by another process already" in second.stderr) == (2, True)

    submitted = home.asked("submit")
    assert submitted["answers"] == {"north": "ready"}
    assert submitted["status"] == "running"
    (app,) = home.children(SERVER, "wardpose.server.serverapp")
    home.kill("wardpose.server exec")
    home.kill("wardpose.server superlink")
    assert home.children(SERVER, "wardpose.server.serverapp") == {app}
    wait_for(lambda: home.server("status").returncode != 4, what="the run's end")

    ended = home.server("status")
    assert ended.returncode == 0, ended.stderr
    assert "2 of 2 rounds are done" in ended.stderr
    assert home.asked("status")["rounds"] == 2
    assert (home.deployment.database.stat().st_mode & 0o077) == 0
    run = find_run(home.folder / "runs")
    assert home.asked("report") == {"report": str(run.report)}
    assert "round 2/2" in home.server("log").stdout

    before = run.model.read_bytes()
    again = home.server("resume")
    assert again.returncode == 0
    assert "completed: 2 of 2 rounds are done" in again.stderr
    assert len(run.flower_runs) == 1
    assert run.model.read_bytes() == before


def test_a_run_that_is_told_to_stop_is_told_apart_and_goes_on(home: Home) -> None:
    plans = {rounds: home.folder / f"plan-{rounds}.yaml" for rounds in (1, 1000)}
    for rounds, path in plans.items():
        mechanism = PLAN.mechanism.model_copy(update={"noise_multiplier": 150.0})
        path.write_text(to_yaml(PLAN.model_copy(update={"rounds": rounds, "mechanism": mechanism})))
    home.asked("submit", str(plans[1000]))
    assert home.asked("stop")["status"] == "told to stop"
    wait_for(lambda: home.server("status").returncode != 4, what="the run's end")
    stopped = home.server("status")
    assert stopped.returncode == 3, stopped.stderr
    assert "it was told to" in stopped.stderr
    resumed = home.server("resume", "--plan", str(plans[1]))
    assert resumed.returncode == 0, resumed.stderr


def test_a_site_that_is_revoked_is_no_longer_registered_and_nothing_outlives_the_launcher(home: Home) -> None:
    home.asked("revoke", "north")
    assert home.asked("nodes") == {"nodes": []}
    assert home.server("register").returncode == 2
    assert len(list((home.folder / "nodes" / "revoked").iterdir())) == 1
    (launcher,) = home.children(SERVER, "server run")
    os.kill(launcher, signal.SIGKILL)
    wait_for(lambda: not home.children(SERVER, ""), what="everything to end with the launcher", seconds=60)
