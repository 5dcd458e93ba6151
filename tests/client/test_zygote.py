"""The warm process: a fork for each message, which inherits no thread and no random numbers, and dies alone."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wardpose.client.executor import Forks
from wardpose.client.supernode import wait_for_message
from wardpose.client.zygote import threads
from wardpose.shared.version import installed_files

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere nothing is forked")

PROGRAM = """\
import os, sys, time, threading
from pathlib import Path
from wardpose.client import zygote
from wardpose.shared.children import log_to_stderr

said = Path(sys.argv[1])

def say(*words):
    with open(said, "a") as file:
        print(*words, file=file)

def answer(site, address, token):
    say(token, os.getpid(), os.getppid(), site, address)
    if token == "dies":
        os.kill(os.getpid(), 9)
    if token == "ends":
        raise SystemExit(3)
    if token == "fails":
        raise ValueError("no")
    if token == "sleeps":
        try:
            time.sleep(60)
        except SystemExit as error:
            say("stopped", error.code)
            raise
    {extra}

zygote.answer_task = answer
zygote.preload = zygote._new_random_numbers = lambda: None  # both import torch, which takes seconds
{before}
log_to_stderr()
say("up", os.getpid())
zygote.serve(Path("site.yaml"), "127.0.0.1:1")
say("served")
"""


class Warm:
    """A zygote whose children write down what they were asked."""

    def __init__(self, folder: Path, *, extra: str = "pass", before: str = "") -> None:
        self.said, self.log = folder / "said", folder / "log"
        program = PROGRAM.format(extra=extra, before=textwrap.dedent(before))
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, str(self.said)],
            stdin=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
            process_group=0,
        )

    def ask(self, *tokens: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{token}\n" for token in tokens))
        self.process.stdin.flush()

    def lines(self, word: str) -> list[list[str]]:
        lines = self.said.read_text().splitlines() if self.said.exists() else []
        return [line.split() for line in lines if line.split()[0] == word]


def wait_for(condition: Callable[[], Any], what: str = "it") -> Any:
    until = time.monotonic() + 60
    while not (found := condition()):
        if time.monotonic() > until:
            pytest.fail(f"waited for {what}")
        time.sleep(0.05)
    return found


@pytest.fixture
def warm(tmp_path: Path) -> Iterator[Callable[..., Warm]]:
    made: list[Warm] = []

    def make(**changes: str) -> Warm:
        made.append(Warm(tmp_path, **changes))
        return made[-1]

    yield make
    for each in made:
        each.process.kill()
        each.process.wait()


def test_each_message_has_a_process_of_its_own_and_one_that_dies_takes_nothing_along(warm: Callable[..., Warm]) -> None:
    process = warm()
    process.ask("dies", "ends", "fails", "last")
    ((_, last, parent, *told),) = wait_for(lambda: process.lines("last"))
    ((_, zygote),) = process.lines("up")
    assert parent == zygote != last
    assert told == ["site.yaml", "127.0.0.1:1"]
    assert len({process.lines(token)[0][1] for token in ("dies", "ends", "fails", "last")}) == 4
    wait_for(lambda: process.log.read_text().count("the process of a message ended") == 3)
    assert "status -9" in process.log.read_text()
    assert "ValueError" in process.log.read_text()


def test_it_ends_when_nobody_hands_it_messages_any_more_and_not_before_they_are_answered(
    warm: Callable[..., Warm],
) -> None:
    process = warm(extra="time.sleep(1); say('done', token)")
    process.ask("a", "b")
    assert process.process.stdin is not None
    process.process.stdin.close()
    assert process.process.wait(timeout=60) == 0
    assert sorted(process.lines("done")) == [["done", "a"], ["done", "b"]]
    assert process.lines("served")


def test_a_signal_to_the_group_reaches_the_message_in_hand(warm: Callable[..., Warm]) -> None:
    process = warm()
    process.ask("sleeps")
    wait_for(lambda: process.lines("sleeps"))
    os.killpg(process.process.pid, signal.SIGTERM)
    assert process.process.wait(timeout=60) == 0
    assert process.lines("stopped") == [["stopped", str(128 + signal.SIGTERM)]]


def test_a_message_ends_with_a_zygote_that_is_killed(warm: Callable[..., Warm]) -> None:
    process = warm()
    process.ask("sleeps")
    wait_for(lambda: process.lines("sleeps"))
    process.process.kill()
    assert wait_for(lambda: process.lines("stopped"))


def test_nothing_is_forked_beside_another_thread(warm: Callable[..., Warm]) -> None:
    process = warm(before="threading.Thread(target=time.sleep, args=(60,), daemon=True).start()")
    process.ask("a")
    assert process.process.wait(timeout=60) == 1
    assert process.lines("a") == []
    assert "2 threads in the process that is to be forked" in process.log.read_text()


@pytest.mark.slow
@pytest.mark.guard
def test_what_is_imported_starts_no_thread_and_no_two_messages_have_the_same_random_numbers(tmp_path: Path) -> None:
    """With the very imports of a site, and no variable that limits threads but the executor's own."""
    program = """
        import sys
        from pathlib import Path
        from wardpose.client import zygote

        def answer(site, address, token):
            import numpy as np, torch
            from wardpose.shared.privacy.noise import secure_streams
            values = [np.random.random(), torch.rand(1).item(), *secure_streams().noise.gaussian(2, 1.0)]
            work = float((torch.ones(400, 400) @ torch.ones(400, 400)).sum())  # more threads than one, where there are
            line = " ".join(map(str, [*values, work, torch.cuda._is_in_bad_fork()]))
            with open(sys.argv[1], "a") as file: print(line, file=file)

        zygote.answer_task = answer
        zygote.serve(Path("x"), "y")
    """
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    said = tmp_path / "said"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(said)],
        env={**environment, "OPENBLAS_NUM_THREADS": "1"},
        input="a\nb\n",
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (line.split() for line in said.read_text().splitlines())
    assert first[-2:] == second[-2:] == [str(400.0**3), "False"]
    assert all(one != other for one, other in zip(first[:-2], second[:-2], strict=True))


def test_the_executor_takes_another_one_where_it_died_or_the_code_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[str]] = []

    def start(module: str, *arguments: str, talk: bool, environment: dict[str, str]) -> subprocess.Popen[str]:
        assert (module, arguments, talk) == ("wardpose.client.zygote", ("s.yaml", "a:1"), True)
        file = (tmp_path / str(len(started))).open("w")
        started.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file, text=True, process_group=0))
        return started[-1]

    monkeypatch.setattr("wardpose.client.executor.start_child", start)
    forks = Forks(Path("s.yaml"), "a:1")
    forks.take("one")
    forks.take("two")
    started[0].kill()
    started[0].wait()
    forks.take("three")
    monkeypatch.setattr("wardpose.shared.version.installed_files", lambda: {"x.py": (1, 1)})
    forks.take("four")
    forks.take("five")
    assert started[1].wait(timeout=30) == 0  # its messages are answered, and no more come
    forks.tidy()
    assert forks.children == [started[2]]
    wait_for(lambda: (tmp_path / "2").read_text() == "four\nfive\n")
    assert (tmp_path / "1").read_text() == "three\n"
    for process in started:
        process.kill()
        process.wait()


def test_a_change_of_code_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "client").mkdir()
    file = tmp_path / "client" / "a.py"
    file.write_text("x = 1\n")
    monkeypatch.setattr("wardpose.shared.version._SHARED", tmp_path / "shared")
    before = installed_files()
    assert list(before) == [str(file)]
    file.write_text("x = 22\n")
    changed = installed_files()
    (tmp_path / "client" / "b.py").touch()
    assert before != changed != installed_files() != before


def test_threads_are_counted() -> None:
    assert threads() >= 1


def test_the_next_message_is_asked_for_soon_after_the_last_one_and_less_often_later() -> None:
    pauses: list[float] = []
    answers = iter([None] * 400 + ["message"])
    assert wait_for_message(lambda: next(answers), sleep=pauses.append) == "message"
    assert (pauses[0], pauses[-1], len(pauses)) == (0.1, 3.0, 400)
    assert pauses == sorted(pauses)
    waited = [sum(pauses[:number]) for number in range(len(pauses))]
    assert all(pause <= max(0.1, 0.02 * before) + 1e-9 for pause, before in zip(pauses, waited, strict=True))
