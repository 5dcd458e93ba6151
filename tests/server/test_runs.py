"""Run folders and what became of the runs in them."""

import shutil
import sqlite3
from pathlib import Path

import pytest
import yaml
from flwr.supercore.corestate.sql_corestate import SqlCoreState
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.state.alembic.utils import run_migrations
from sqlalchemy import create_engine
from support.federations import tiny_federation

from wardpose.server.folder import held
from wardpose.server.home import FILE
from wardpose.server.link_state import RunState, registered, run_log, run_state
from wardpose.server.outcome import outcome
from wardpose.server.runs import Run, find_run, make_latest, new_run
from wardpose.server.superlink_process import renew_leases
from wardpose.shared.config import load_federation
from wardpose.shared.errors import ConfigError

PLAN = tiny_federation(["north", "south"])
BIG = (1 << 63) + 5  # Flower's numbers have 64 bits, SQLite's a sign


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database as the installed SuperLink makes it."""
    path = tmp_path_factory.mktemp("superlink") / "state.sqlite"
    engine = create_engine(f"sqlite:///{path}")
    run_migrations(engine)
    engine.dispose()
    return path


@pytest.fixture
def home(tmp_path: Path, empty: Path) -> Path:
    """A server's home with a SuperLink's database."""
    (tmp_path / FILE).write_text(yaml.safe_dump({"name": "tiny", "address": "localhost"}))
    shutil.copyfile(empty, tmp_path / "state.sqlite")
    return tmp_path


def flower(home: Path, number: int, *, ended: bool, outcome: str = "", details: str = "") -> Path:
    signed = number - (1 << 64) if number >= 1 << 63 else number
    finished, key = "2026-01-01 00:00:00" if ended else None, f"key {number}".encode()
    with sqlite3.connect(home / "state.sqlite") as connection:
        connection.execute("INSERT INTO run (run_id, primary_task_id) VALUES (?, ?)", (signed, signed + 1))
        connection.execute(
            "INSERT INTO task (task_id, type, run_id, pending_at, finished_at, sub_status, details) "
            "VALUES (?, 'flwr-serverapp', ?, '2026-01-01 00:00:00', ?, ?, ?)",
            (signed + 1, signed, finished, outcome, details),
        )
        connection.execute("INSERT INTO task_logs VALUES (1.0, ?, ?)", (signed + 1, f"said by {number}\n"))
        connection.execute(
            "INSERT INTO node (node_id, name, status, public_key) VALUES (?, 'north', 'online', ?)", (signed, key)
        )
    return home / "state.sqlite"


def begin(run: Run, status: str, *, detail: str = "") -> None:
    run.journal.start(
        run="tiny-1", federation="tiny", mechanism="dp-sgd", unit="patient", delta=1e-3, overlap=1, rounds=2,
        config={"sites": []}, score_name="pck",
    )  # fmt: skip
    if status != "running":
        run.journal.finish("tiny-1", status, detail=detail)


def test_no_folder_is_used_twice_and_each_keeps_the_plan_that_was_submitted(home: Path) -> None:
    runs = home / "runs"
    first, second, third = (new_run(runs, PLAN, now=moment) for moment in (0.0, 0.0, 60.0))
    assert [run.name for run in (first, second, third)] == [
        "tiny-19700101-000000", "tiny-19700101-000000-2", "tiny-19700101-000100",
    ]  # fmt: skip
    assert load_federation(first.plan) == PLAN
    assert first.folder.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="has no run"):
        find_run(runs)
    make_latest(second)
    make_latest(third)
    assert find_run(runs) == third
    assert (runs / "latest").is_symlink()
    assert find_run(runs, second.name) == second
    for name in ("none", "../runs", ".", ""):
        with pytest.raises(ConfigError, match=r"(has no run|is no ID)"):
            find_run(runs, name)


def test_flowers_numbers_of_a_run_survive_sqlite_and_json(home: Path) -> None:
    run = new_run(home / "runs", PLAN)
    assert run.flower_runs == []
    run.submitted(7)
    run.submitted(BIG)
    assert run.flower_runs == [7, BIG]
    database = flower(home, BIG, ended=True, outcome="failed", details="why")
    assert run_state(database, BIG) == RunState(ended=True, outcome="failed", detail="why")
    assert run_state(database, 7) is None
    assert run_log(database, BIG) == f"said by {BIG}\n"
    assert [(node.name, node.number, node.key) for node in registered(database)] == [("north", BIG, f"key {BIG}")]
    assert registered(home / "none.sqlite") == []


@pytest.mark.parametrize(
    ("journal", "ended", "said", "detail", "status", "exit_status", "why"),
    [
        ("completed", True, "completed", "", "completed", 0, "0 of 2 rounds are done, and the model is"),
        ("stopped", True, "completed", "south: gone", "stopped", 3, "south: gone"),  # Flower calls it completed
        ("failed", True, "failed", "boom", "failed", 1, "boom"),
        ("running", False, "", "", "running", 4, "its process has not begun yet"),
        ("running", True, "failed", "no heartbeat", "failed", 1, "no heartbeat"),
        ("running", True, "stopped", "", "stopped", 3, "it was told to"),
        ("interrupted", True, "failed", "", "failed", 1, "its process was ended before the run was"),
        ("", True, "failed", "ServerApp failed with exception: another plan", "failed", 1, "another plan (no round"),
        ("", False, "", "", "running", 4, "its process has not begun yet"),
    ],
)
def test_the_ends_of_runs_are_told_apart(
    home: Path, journal: str, ended: bool, said: str, detail: str, status: str, exit_status: int, why: str
) -> None:
    run = new_run(home / "runs", PLAN)
    if journal:
        begin(run, journal, detail=detail)
    run.submitted(5)
    found = outcome(run, flower(home, 5, ended=ended, outcome=said, details=detail))
    assert (found.status, found.exit_status) == (status, exit_status)
    assert found.why.startswith(why)
    assert run.name in found.sentence
    if status in ("stopped", "failed"):
        assert f"wardpose server resume {run.name} --home {home}" in found.next


def test_a_run_whose_folder_is_held_is_at_work_and_one_that_was_killed_is_not(home: Path) -> None:
    run = new_run(home / "runs", PLAN)
    begin(run, "running")
    with held(run.folder):
        assert outcome(run).status == "running"
    killed = outcome(run)
    assert (killed.status, killed.exit_status) == ("failed", 1)
    assert "its process was ended" in killed.why


def test_a_resume_that_fails_is_told_and_not_what_the_run_was_before(home: Path) -> None:
    run = new_run(home / "runs", PLAN)
    begin(run, "stopped", detail="too few")
    run.submitted(5)
    run.submitted(6)
    found = outcome(run, flower(home, 6, ended=True, outcome="failed", details="started with another mechanism"))
    assert found.status == "failed"
    assert found.why.startswith("started with another mechanism")


class Core(SqlCoreState):
    """What SuperLink and SuperNode share of Flower's state, without what either adds."""

    def get_node_id(self) -> int:
        raise NotImplementedError

    def store_message_and_object_tree(self, *_: object, **__: object) -> str | None:
        raise NotImplementedError


def test_a_run_is_not_lost_because_the_superlink_was_away(home: Path) -> None:
    """By the very code with which the installed SuperLink gives tasks up."""
    database = home / "state.sqlite"
    for number in (3, 5):
        flower(home, number, ended=number == 5, outcome="completed" if number == 5 else "")
    with sqlite3.connect(database) as connection:
        connection.execute(
            "UPDATE task SET token = 'x', starting_at = pending_at, running_at = pending_at, "
            "active_until = '2026-01-01 00:00:00.000000+00:00' WHERE finished_at IS NULL"
        )

    def outcomes() -> list[str]:
        state = Core(str(database), ObjectStoreFactory().store())
        state.initialize()
        state._cleanup_expired_task_tokens()
        return [found.outcome if found.ended else "runs" for n in (3, 5) if (found := run_state(database, n))]

    renew_leases(database)
    assert outcomes() == ["runs", "completed"]
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE task SET active_until = '2026-01-01 00:00:00+00:00' WHERE finished_at IS NULL")
    assert outcomes() == ["failed", "completed"]
    renew_leases(home / "none.sqlite")
