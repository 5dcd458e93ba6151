"""Children that end, hang or outstay: started again, killed, taken along."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wardpose.shared.errors import ConfigError
from wardpose.shared.supervision import only_launcher

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs process groups and flock")

LAUNCHER = """\
import logging, os, pathlib, subprocess, sys
from wardpose.shared.supervision import AGAIN, Service, only_launcher, supervise

folder = pathlib.Path(sys.argv[1])
logger = logging.getLogger("test")

def start(script):
    return lambda: subprocess.Popen(["sh", "-c", script], text=True, process_group=0)
"""


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def begin(script: str) -> subprocess.Popen[str]:
        source = LAUNCHER + textwrap.dedent(script)
        command = [sys.executable, "-c", source, str(tmp_path)]
        started.append(subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, text=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def test_one_that_lives_and_does_not_answer_is_killed_and_started_again(
    launch: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    """The first never answers; the second does, and stays although it was asked as often."""
    launch("""
        asked = folder / "asked"
        def answers():
            with asked.open("a") as file: file.write("x\\n")
            return len((folder / "pids").read_text().split()) > 1
        node = Service(name="node", start=start("trap '' TERM; echo $$ >> pids; exec sleep 100"), answers=answers)
        supervise([node], logger, patience=0.5)
    """)
    wait_for(lambda: len(lines(tmp_path / "pids")) == 2)
    before = len(lines(tmp_path / "asked"))
    wait_for(lambda: len(lines(tmp_path / "asked")) > before + 8)
    first, second = (int(pid) for pid in lines(tmp_path / "pids"))
    assert not Path(f"/proc/{first}").exists()
    assert Path(f"/proc/{second}").exists()


def test_stages_end_in_order_and_a_service_that_does_not_lead_ends_nothing(
    launch: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = launch("""
        def waits(name):
            return start(f"trap 'sleep 0.3; echo {name} >> ended; exit 0' TERM; echo {name} >> up; "
                         "while :; do sleep 0.05; done")
        services = [Service(name="link", start=waits("link"), stage=1), Service(name="exec", start=waits("exec")),
                    Service(name="short", start=start("echo short >> up; exit 7"), stage=1)]
        sys.exit(supervise(services, logger))
    """)
    wait_for(lambda: lines(tmp_path / "up").count("short") == 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0
    assert lines(tmp_path / "ended") == ["exec", "link"]


def test_a_home_has_one_launcher_until_it_ends_however_it_ends(
    launch: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = launch("""
        import time
        with only_launcher(folder / "home"):
            (folder / "there").touch()
            time.sleep(100)
    """)
    wait_for((tmp_path / "there").exists)
    with pytest.raises(ConfigError, match="is run by another process already"), only_launcher(tmp_path / "home"):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with only_launcher(tmp_path / "home"):
        pass
