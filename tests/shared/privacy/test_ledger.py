import json
import math
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wardpose.shared.errors import BudgetExceeded, ConfigError, LedgerError
from wardpose.shared.privacy import accounting
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.ledger import Budget, Ledger

DELTA = 1e-5
EVENT = Event(mechanism="dp-sgd", unit="patient", sample_rate=0.1, noise_multiplier=2.0, steps=5, max_grad_norm=1.0)
BUDGET = Budget(epsilon=3.0, delta=DELTA)
UNLIMITED = Budget(epsilon=math.inf, delta=DELTA)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.sqlite"


def spend(ledger: Ledger, rounds: int, cohort: str = "ward", budget: Budget = BUDGET) -> None:
    for number in range(rounds):
        ledger.commit(ledger.reserve(cohort, [EVENT], run_id="run", round=number, budget=budget))


def test_reservation_counts_before_and_after_the_commit(path: Path) -> None:
    ledger = Ledger(path, clock=lambda: 1_700_000_000.9)
    assert ledger.events("ward") == ()
    assert ledger.head() == (0, "0" * 64)
    reservation = ledger.reserve("ward", [EVENT], run_id="run", round=4, budget=BUDGET)
    assert not ledger.is_committed(reservation)
    charged = ledger.epsilon("ward", DELTA)
    assert charged == accounting.epsilon([EVENT], delta=DELTA)
    ledger.commit(reservation)
    assert ledger.is_committed(reservation)
    assert Ledger(path).epsilon("ward", DELTA) == charged
    assert [entry.kind for entry in ledger.entries()] == ["genesis", "reserve", "commit"]
    assert {entry.body["time"] for entry in ledger.entries()} == {1_700_000_000}
    assert ledger.entries()[1].body["round"] == 4
    with pytest.raises(LedgerError, match="committed before"):
        ledger.commit(reservation)


def test_a_round_tried_again_is_charged_again(path: Path) -> None:
    ledger = Ledger(path)
    for _ in range(2):
        ledger.reserve("ward", [EVENT], run_id="run", round=1, budget=BUDGET)
    assert ledger.epsilon("ward", DELTA) == accounting.epsilon([EVENT, EVENT], delta=DELTA)


def test_nothing_is_charged_over_budget(path: Path) -> None:
    ledger = Ledger(path)
    budget = Budget(epsilon=accounting.epsilon([EVENT] * 3, delta=DELTA), delta=DELTA)
    spend(ledger, 3, budget=budget)
    head = ledger.head()
    ledger.check("other", [EVENT], budget=budget)
    with pytest.raises(BudgetExceeded, match=r"cohort 'ward': epsilon would be .* at delta 1e-05 \(.* is spent\)"):
        ledger.reserve("ward", [EVENT], run_id="run", round=3, budget=budget)
    with pytest.raises(BudgetExceeded):
        ledger.check("ward", [EVENT], budget=budget)
    assert ledger.head() == head


def test_adjacency_and_unlimited_budgets(path: Path) -> None:
    ledger = Ledger(path)
    replace = Budget(epsilon=accounting.epsilon([EVENT], delta=DELTA) * 1.2, delta=DELTA, adjacency="replace-one")
    with pytest.raises(BudgetExceeded):
        ledger.reserve("ward", [EVENT], run_id="run", round=0, budget=replace)
    bare = Event.from_json({**EVENT.to_json(), "mechanism": "none", "noise_multiplier": 0})
    with pytest.raises(BudgetExceeded, match="inf"):
        ledger.reserve("ward", [bare], run_id="run", round=0, budget=BUDGET)
    ledger.reserve("ward", [bare], run_id="run", round=0, budget=UNLIMITED)
    assert ledger.epsilon("ward", DELTA) == math.inf
    with pytest.raises(BudgetExceeded):
        ledger.reserve("ward", [EVENT], run_id="run", round=1, budget=BUDGET)
    for wrong in ({"epsilon": -1}, {"epsilon": float("nan")}, {"delta": 2}, {"by_tier": {"a": -1}}):
        with pytest.raises(ConfigError):
            Budget(**{"epsilon": 1.0, "delta": DELTA, **wrong})  # type: ignore[arg-type]


def test_tiers_have_their_own_limits(path: Path) -> None:
    ledger = Ledger(path)
    strict = Event.from_json({**EVENT.to_json(), "tier": "strict", "sample_rate": 0.05})
    relaxed = Event.from_json({**EVENT.to_json(), "tier": "open"})
    limit = accounting.epsilon([strict] * 2, delta=DELTA)
    budget = Budget(epsilon=5, delta=DELTA, by_tier={"strict": limit})
    for number in range(2):
        ledger.reserve("ward", [strict, relaxed], run_id="run", round=number, budget=budget)
    tiers = ledger.epsilon_by_tier("ward", DELTA)
    assert 0 == tiers[""] < tiers["strict"] == limit < tiers["open"] == ledger.epsilon("ward", DELTA)
    with pytest.raises(BudgetExceeded, match="tier 'strict'"):
        ledger.reserve("ward", [strict, relaxed], run_id="run", round=2, budget=budget)
    ledger.reserve("ward", [relaxed], run_id="run", round=2, budget=budget)
    # What charges everybody charges the strict, too.
    with pytest.raises(BudgetExceeded, match="tier 'strict'"):
        ledger.reserve("ward", [EVENT], run_id="run", round=3, budget=budget)
    with pytest.raises(BudgetExceeded, match="tier 'strict'"):
        ledger.reserve("fresh", [EVENT] * 9, run_id="run", round=3, budget=budget)


def test_statistics_are_charged_like_steps(path: Path) -> None:
    ledger = Ledger(path)
    count = Event(
        mechanism="noised-count", unit="patient", sample_rate=1, noise_multiplier=10, steps=1, max_grad_norm=1
    )
    ledger.reserve("ward", [count], run_id="status", round=0, budget=BUDGET)
    assert ledger.epsilon("ward", DELTA) == accounting.epsilon([count], delta=DELTA) > 0


def test_cohorts_share_a_file_and_keep_their_identity(path: Path) -> None:
    ledger = Ledger(path)
    ledger.declare("ward", identity="aa", units=40)
    ledger.declare("ward", identity="aa", units=40)
    spend(ledger, 1, "ward")
    spend(ledger, 2, "clinic")
    assert ledger.cohorts() == ("ward", "clinic")
    assert ledger.events("clinic") == (EVENT, EVENT)
    assert sum(entry.kind == "cohort" for entry in ledger.entries()) == 1
    ledger.declare("ward", identity="bb", units=41)  # patients joined
    for identity in ("aa", "bb"):
        with pytest.raises(LedgerError, match="a new name is not a new budget"):
            ledger.declare("ward-again", identity=identity)
    assert ledger.epsilon("ward", DELTA) > 0
    with pytest.raises(ConfigError, match="printable"):
        ledger.reserve("a\nb", [EVENT], run_id="run", round=0, budget=BUDGET)


def test_commit_needs_its_own_ledger(path: Path, tmp_path: Path) -> None:
    ledger, other = Ledger(path), Ledger(tmp_path / "other.sqlite")
    reservation = ledger.reserve("ward", [EVENT], run_id="run", round=0, budget=BUDGET)
    spend(other, 2)
    for act in (other.commit, other.is_committed):
        with pytest.raises(LedgerError, match="has no reservation 2"):
            act(reservation)


def tamper(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript("DROP TRIGGER entries_keep; DROP TRIGGER entries_stay;" + ";".join(statements))
    connection.commit()
    connection.close()


SMALLER = "UPDATE entries SET body = replace(body, '\"steps\":5', '\"steps\":1') WHERE sequence = {}"


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ([SMALLER.format(2)], "entry 2 does not continue the chain"),
        ([SMALLER.format(8)], "entry 8 does not continue the chain"),
        (["UPDATE entries SET kind = 'commit' WHERE sequence = 4"], "entry 4 does not continue"),
        (["UPDATE entries SET hash = 'x' WHERE sequence = 9"], "entry 9 does not continue"),
        (["DELETE FROM entries WHERE sequence = 4"], "entry 4 is missing"),
        (["DELETE FROM entries WHERE sequence = 1"], "entry 1 is missing"),
        (["DELETE FROM entries"], "first entry is missing"),
        (
            ["DELETE FROM entries WHERE sequence = 4", "UPDATE entries SET sequence = sequence - 1 WHERE sequence > 4"],
            "entry 4 does not continue",
        ),
        (
            [
                "UPDATE entries SET sequence = 99 WHERE sequence = 2",
                "UPDATE entries SET sequence = 2 WHERE sequence = 4",
                "UPDATE entries SET sequence = 4 WHERE sequence = 99",
            ],
            "entry 2 does not continue",
        ),
        (["INSERT INTO entries SELECT 10, kind, body, previous, hash FROM entries WHERE sequence = 9"], "entry 10"),
        (["DROP TABLE entries"], "table is gone"),
        (["PRAGMA application_id = 7"], "not a Wardpose ledger"),
    ],
)
def test_tampering_is_found_at_every_use(path: Path, statements: list[str], message: str) -> None:
    ledger = Ledger(path)
    spend(ledger, 4)
    tamper(path, *statements)
    uses: list[Callable[[], object]] = [
        ledger.verify,
        lambda: ledger.epsilon("ward", DELTA),
        lambda: ledger.reserve("ward", [EVENT], run_id="run", round=9, budget=BUDGET),
        lambda: Ledger(path),
        lambda: Ledger.open_readonly(path),
    ]
    for use in uses:
        with pytest.raises(LedgerError, match=message):
            use()


def test_rows_cannot_be_changed_by_accident(path: Path) -> None:
    spend(Ledger(path), 1)
    connection = sqlite3.connect(path)
    for statement in ("DELETE FROM entries", "UPDATE entries SET kind = 'commit'"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()


def test_a_ledger_cut_short_or_rewritten_is_told_by_a_remembered_head(path: Path, tmp_path: Path) -> None:
    ledger = Ledger(path)
    spend(ledger, 2)
    shutil.copy(path, tmp_path / "backup.sqlite")
    early = ledger.head()
    spend(ledger, 2)
    late = ledger.head()
    ledger.verify(early)
    ledger.verify(late)
    ledger.verify((0, "0" * 64))
    with pytest.raises(LedgerError, match="not the one seen before"):
        ledger.verify((early[0], late[1]))
    shutil.copy(tmp_path / "backup.sqlite", path)  # the classic: restore an old backup to have the budget back
    ledger.verify(early)
    with pytest.raises(LedgerError, match="cut short: 5 entries, but 9 were seen"):
        ledger.verify(late)
    spend(ledger, 2)
    with pytest.raises(LedgerError, match="rewritten"):
        ledger.verify(late)
    path.unlink()
    with pytest.raises(LedgerError, match="cut short: 0 entries"):
        ledger.verify(late)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"not a ledger at all, but long enough to be one" * 40, "not an SQLite file"), (b"\x89PNG\r\n", "not an SQLite")],
)
def test_foreign_files_are_refused_and_left_alone(path: Path, content: bytes, message: str) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(LedgerError, match=message):
        Ledger(path)
    assert path.read_bytes() == content


def test_another_programs_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE journal (a)")
    connection.close()
    with pytest.raises(LedgerError, match="not a Wardpose ledger"):
        Ledger(path)


def test_damaged_pages_are_an_error(path: Path) -> None:
    ledger = Ledger(path)
    spend(ledger, 30, budget=UNLIMITED)
    content = bytearray(path.read_bytes())
    for start in range(4096, len(content), 4096):
        content[start : start + 64] = bytes(64)
    path.write_bytes(content)
    with pytest.raises(LedgerError):
        ledger.verify()


def test_a_cut_file_is_an_error(path: Path) -> None:
    ledger = Ledger(path)
    spend(ledger, 30, budget=UNLIMITED)
    os.truncate(path, 8192)
    with pytest.raises(LedgerError):
        ledger.verify()


def test_an_empty_file_is_a_ledger_that_was_never_written(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    ledger = Ledger(path)
    assert ledger.head()[0] == 0
    spend(ledger, 1)
    assert ledger.head()[0] == 3


def test_readonly_never_writes(path: Path) -> None:
    with pytest.raises(LedgerError, match="there is no ledger"):
        Ledger.open_readonly(path)
    spend(Ledger(path), 1)
    before = path.read_bytes()
    reader = Ledger.open_readonly(path)
    assert reader.events("ward") == (EVENT,)
    reader.verify()
    with pytest.raises(LedgerError, match="read-only"):
        reader.reserve("ward", [EVENT], run_id="run", round=1, budget=BUDGET)
    assert path.read_bytes() == before


def test_folders_that_cannot_be_written_are_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LedgerError, match="file"):
        spend(Ledger(tmp_path / "file" / "ledger.sqlite"), 1)
    (tmp_path / "folder.sqlite").mkdir()
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(tmp_path / "folder.sqlite")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_readonly_files_are_a_clear_error(path: Path) -> None:
    ledger = Ledger(path)
    spend(ledger, 1)
    path.chmod(0o400)
    path.parent.chmod(0o500)
    try:
        with pytest.raises(LedgerError, match=r"read-only|cannot be opened"):
            spend(ledger, 1)
        assert Ledger.open_readonly(path).events("ward") == (EVENT,)
    finally:
        path.parent.chmod(0o700)


CHILD = """
import sys
from wardpose.shared.errors import BudgetExceeded, LedgerError
from wardpose.shared.privacy.accounting import Event
from wardpose.shared.privacy.ledger import Budget, Ledger
path, mechanism, epsilon = sys.argv[1], sys.argv[2], float(sys.argv[3])
event = Event(mechanism=mechanism, unit="patient", sample_rate=1, noise_multiplier=20, steps=1, max_grad_norm=1)
budget = Budget(epsilon=epsilon, delta=1e-5)
print("ready", flush=True)
sys.stdin.readline()
ledger = Ledger(path)
try:
    for number in range(100_000):
        reservation = ledger.reserve("ward", [event], run_id="run", round=number, budget=budget)
        print("reserved", flush=True)
        ledger.commit(reservation)
except BudgetExceeded:
    print("exceeded", flush=True)
except LedgerError as error:
    print("error", error, flush=True)
"""
STATISTIC = Event(mechanism="count", unit="patient", sample_rate=1, noise_multiplier=20, steps=1, max_grad_norm=1)


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
    epsilon = accounting.epsilon([STATISTIC] * allowed, delta=DELTA)
    processes = [child(path, "count", epsilon) for _ in range(3)]
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
    budget = Budget(epsilon=accounting.epsilon([EVENT] * allowed, delta=DELTA), delta=DELTA)
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


def test_bodies_are_canonical_json(path: Path) -> None:
    ledger = Ledger(path)
    spend(ledger, 1)
    connection = sqlite3.connect(path)
    for (body,) in connection.execute("SELECT body FROM entries"):
        assert body == json.dumps(json.loads(body), sort_keys=True, separators=(",", ":"))
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
