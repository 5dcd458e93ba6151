"""Processes at once, killed, or out of disk: no reservation is lost and none is made twice."""

import math
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.ledgers import DELTA, EVENT, UNLIMITED, cost, spend

from wardpose.shared.errors import BudgetExceeded, LedgerError
from wardpose.shared.privacy import chain
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.ledger import Budget, Ledger

CHILD = """
import sys
from wardpose.shared.errors import BudgetExceeded, LedgerError
from wardpose.shared.privacy.course import Course
from wardpose.shared.privacy.ledger import Budget, Ledger
from wardpose.shared.privacy.mechanisms import Mechanism
path, mechanism, epsilon = sys.argv[1], sys.argv[2], float(sys.argv[3])
value = Mechanism(name=mechanism, sample_rate=1, noise_multiplier=0 if mechanism == "none" else 20)
course = Course(run="run", federation="f", mechanism=value, steps=1, last_round=1_000_000)
budget = Budget(epsilon=epsilon, delta=1e-5)
print("ready", flush=True)
sys.stdin.readline()
ledger = Ledger(path)
try:
    for number in range(100_000):
        reservation = ledger.reserve("ward", course.events(1), run_id="run", round=number, budget=budget, course=course)
        print("reserved", flush=True)
        ledger.commit(reservation)
except BudgetExceeded:
    print("exceeded", flush=True)
except LedgerError as error:
    print("error", error, flush=True)
"""

STATISTIC = Event(mechanism="dp-sgd", unit="patient", sample_rate=1, noise_multiplier=20, steps=1, max_grad_norm=1)


def child(path: Path, mechanism: str = "none", epsilon: float = math.inf, **options: Any) -> "subprocess.Popen[str]":
    """A process that is ready to reserve for ever; a line on its input lets it go.

    Events of the mechanism `none` need no arithmetic: it then spends its time on the file alone.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), mechanism, str(epsilon)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **options,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_processes_at_once_never_overspend(path: Path) -> None:
    allowed = 24
    epsilon = cost(*[STATISTIC] * allowed)
    processes = [child(path, "dp-sgd", epsilon) for _ in range(3)]
    for process in processes:
        go(process)
    outputs = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert all(lines[-1] == "exceeded" for lines in outputs)
    assert sum(line == "reserved" for lines in outputs for line in lines) == allowed
    ledger = Ledger(path)
    ledger.verify()
    assert len(ledger.events("ward")) == allowed
    assert ledger.epsilon("ward", DELTA) == epsilon


def test_threads_at_once_never_overspend(path: Path) -> None:
    allowed, refusals = 6, []
    budget = Budget(epsilon=cost(*[EVENT] * allowed), delta=DELTA)
    ledger = Ledger(path)

    def work() -> None:
        try:
            spend(ledger, allowed, budget=budget)
        except BudgetExceeded as error:
            refusals.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.events("ward")) == allowed
    assert len(refusals) == 4


def test_two_that_keep_their_sums_never_overspend(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them knows an older account than the one it charges."""
    monkeypatch.setattr(chain, "_SPACING", 1)
    allowed = 6
    budget = Budget(epsilon=cost(*[EVENT] * allowed), delta=DELTA)
    turns = [Ledger(path), Ledger(path)] * allowed
    for ledger in turns[:allowed]:
        spend(ledger, 1, budget=budget)
    for ledger in turns[allowed:]:
        with pytest.raises(BudgetExceeded):
            spend(ledger, 1, budget=budget)
    assert len(Ledger(path).events("ward")) == allowed


def kill_while_spending(path: Path, after: float) -> int:
    """Let a process reserve, kill -9 it after so many seconds; how many reservations it had announced."""
    process = child(path)
    go(process)
    time.sleep(after)
    process.kill()
    output = process.communicate(timeout=60)[0]
    assert process.returncode == -signal.SIGKILL
    return output.count("reserved\n")


@pytest.mark.parametrize("after", [0.0, 0.15, 0.4])
def test_what_was_reserved_survives_kill_9(path: Path, after: float) -> None:
    announced = kill_while_spending(path, after)
    ledger = Ledger(path)
    ledger.verify()
    assert announced <= len(ledger.events("ward")) <= announced + 1
    spend(ledger, 1, budget=UNLIMITED)


@pytest.mark.slow
@pytest.mark.guard
def test_kill_9_at_any_moment_leaves_a_valid_ledger_that_counts_everything(path: Path) -> None:
    """Kill at moments spread over opening, reserving and committing: every ledger is valid, totals only grow."""
    announced, head = 0, (0, "0" * 64)
    for attempt in range(20):
        announced += kill_while_spending(path, attempt * 0.0117)
        ledger = Ledger(path)
        ledger.verify(head)
        head = ledger.head()
        assert announced <= len(ledger.events("ward")) <= announced + attempt + 1
    assert announced > 0


def small_files() -> None:
    """Limit this process's files; with the limit's signal ignored, a write fails as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))


def test_a_full_disk_writes_nothing_by_halves(path: Path) -> None:
    process = child(path, preexec_fn=small_files)
    go(process)
    lines = process.communicate(timeout=120)[0].splitlines()
    assert lines[-1].startswith(f"error {path}: ")
    assert "nothing was written" in lines[-1]
    ledger = Ledger(path)
    ledger.verify()
    assert len(ledger.events("ward")) == sum(line.startswith("reserved") for line in lines) > 0


def test_a_full_database_leaves_the_ledger_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(path)
    spend(ledger, 2)
    head, connect = ledger.head(), sqlite3.connect

    def full(*arguments: object, **options: object) -> sqlite3.Connection:
        connection = connect(*arguments, **options)  # type: ignore[call-overload]
        connection.execute(f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}")
        return connection  # type: ignore[no-any-return]

    monkeypatch.setattr(sqlite3, "connect", full)
    with pytest.raises(LedgerError, match="the disk is full; nothing was written"):
        spend(ledger, 20, budget=UNLIMITED)
    monkeypatch.undo()
    ledger.verify(head)
    spend(ledger, 1)
