"""Flower's own simulation engine (Ray) runs the same two apps, on a machine that never saw Flower."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from wardpose.server.operator import ask, environment, program
from wardpose.server.summary import summarise
from wardpose.shared.files import write_text
from wardpose.simulation.ports import free_ports
from wardpose.simulation.processes import Processes

REPOSITORY = Path(__file__).parents[2]
SITES = 2
_ATTEMPTS = 3  # `flwr run` gives its SuperLink 15 s to start, which a busy machine exceeds
pytestmark = [pytest.mark.slow, pytest.mark.guard, pytest.mark.realdata, pytest.mark.timeout(1500)]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """What `flwr run` starts detached (its local SuperLink, Ray) inherits the token, and is found and ended by it."""
    made = Processes(tmp_path / "processes.json", tmp_path / "logs")
    yield made
    made.stop(*{process.role for process in made.alive()}, grace=10)
    assert made.alive() == []


def test_flwr_run_ends_completed(processes: Processes, plan: Path, tmp_path: Path) -> None:
    settings = {"federation": str(plan), "run-directory": str(tmp_path / "run"), "resume": False}
    run_config = tmp_path / "run.toml"
    write_text(run_config, "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    command = [
        *(program("flwr"), "run", ".", "--stream", "--run-config", str(run_config)),
        *("--federation-config", f"num-supernodes={SITES} client-resources-num-cpus=1"),
    ]
    for attempt in range(_ATTEMPTS):
        role, home = f"flwr-run-{attempt}", tmp_path / f"flwr-{attempt}"
        home.mkdir()
        port = {"FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(free_ports(1)[0])}
        processes.start(role, command, environment={**environment(home), **port}, folder=REPOSITORY)
        until = time.monotonic() + 600
        while role not in processes.dead():
            assert time.monotonic() < until, processes.tail(role)
            time.sleep(0.5)
        if "Failed to start local SuperLink" not in processes.log(role).read_text():
            break
        processes.stop(role)

    runs = ask(home, "list", variables=port)["runs"]
    assert [run["status"] for run in runs] == ["finished:completed"], processes.tail(role)
    summary = summarise(tmp_path / "run")
    assert summary["status"] == "completed"
    assert [site["rounds_released"] for site in summary["sites"]] == [2] * SITES
