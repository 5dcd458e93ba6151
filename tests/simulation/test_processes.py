"""Stopping must end everything that was started and nothing else."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wardpose.simulation.processes import ProcessError, Processes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and pidfd")
ENVIRONMENT = {"PATH": os.environ["PATH"]}


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "waited for 20 s"
        time.sleep(0.02)


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path / "processes.json", tmp_path / "logs")
    yield made
    made.stop(*{process.role for process in made.alive()}, grace=0)
    assert made.alive() == []


def start(processes: Processes, role: str, script: str) -> None:
    processes.start(role, ["sh", "-c", script], environment=ENVIRONMENT, folder=processes.state.parent)


def test_children_and_the_stubborn_are_ended(processes: Processes) -> None:
    start(processes, "parent", "trap '' TERM; sleep 100 & sleep 100 & echo ready; while :; do wait; done")
    wait_for(lambda: "ready" in processes.tail("parent") and len(processes.alive()) == 3)
    processes.stop("parent", grace=0.5)
    assert processes.alive() == []
    processes.forget()
    assert not processes.state.exists()


def test_a_child_that_left_its_parents_session_is_ended(processes: Processes) -> None:
    start(processes, "parent", "setsid sleep 100 & wait")
    wait_for(lambda: len(processes.alive()) == 2)
    processes.send("parent", signal.SIGKILL)
    processes.stop("parent")
    assert processes.alive() == []


def test_others_are_left_alone(processes: Processes) -> None:
    other = subprocess.Popen(["sleep", "100"])
    try:
        start(processes, "ours", "exec sleep 100")
        start(processes, "theirs", "exec sleep 100")
        content = json.loads(processes.state.read_text())
        # As if the number of a process of ours had been given to another one since.
        content["started"].append({"role": "ours", "pid": other.pid, "started": 1})
        processes.state.write_text(json.dumps(content))
        processes.stop("ours")
        assert other.poll() is None
        assert [process.role for process in processes.alive()] == ["theirs"]
        assert "theirs" not in processes.dead()
        assert processes.dead().count("ours") == 2
    finally:
        other.kill()
        other.wait()


def test_whoever_comes_later_finds_them_by_the_file(processes: Processes) -> None:
    start(processes, "one", "exec sleep 100")
    later = Processes(processes.state, processes.logs)
    assert later.roles() == ["one"]
    with pytest.raises(ProcessError, match="still alive"):
        later.forget()
    later.stop("one")
    assert processes.alive() == []


def test_a_start_that_crashed_before_it_was_written_down_is_found(processes: Processes) -> None:
    start(processes, "one", "exec sleep 100")
    content = json.loads(processes.state.read_text())
    processes.state.write_text(json.dumps({**content, "started": []}))
    assert [process.role for process in processes.alive()] == ["one"]


def test_what_is_to_be_restarted_comes_back_until_it_is_stopped(processes: Processes) -> None:
    command = ["sh", "-c", "echo started; exit 3"]
    processes.start("again", command, environment=ENVIRONMENT, folder=processes.state.parent, restart_seconds=0)
    wait_for(lambda: processes.tail("again").count("started") >= 2)
    assert "again ended (3)" in processes.tail("again")
    assert processes.dead() == []
    processes.stop("again")
    assert processes.alive() == []


def test_a_program_that_is_not_there(processes: Processes) -> None:
    with pytest.raises(ProcessError, match="no-such-program"):
        processes.start("x", ["no-such-program"], environment=ENVIRONMENT, folder=processes.state.parent)
