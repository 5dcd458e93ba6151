"""What an operator asks about nodes and runs, read from the SuperLink's SQLite database without touching it.

Flower's own commands show no names, need a SuperLink that is up, and take seconds each. Tables are Flower's own: their
columns are checked by a test against the installed version.
"""

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from wardpose.shared.sqlite import reading

_THERE = "status IN ('registered', 'online', 'offline')"


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A node that is registered.

    Attributes:
        name: the site's.
        number: Flower's.
        key: its public key, as text.

    """

    name: str
    number: int
    key: str


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What Flower knows of a run.

    Attributes:
        ended: whether its ServerApp has ended, well or not.
        outcome: `completed`, `failed` or `stopped`; empty before the end.
        detail: what Flower was told of the end.

    """

    ended: bool
    outcome: str
    detail: str


def registered(database: Path) -> list[Registered]:
    """Return the nodes that are registered and not unregistered, by name; none where there is no database yet.

    Raises:
        sqlite3.Error: the database is locked or not a SuperLink's.

    """
    if not database.exists():
        return []
    with reading(database) as connection:
        rows = connection.execute(f"SELECT name, node_id, public_key FROM node WHERE {_THERE}").fetchall()  # noqa: S608 (fixed words)
    nodes = [
        Registered(name=row["name"] or "", number=_unsigned(row["node_id"]), key=_text(row["public_key"]))
        for row in rows
    ]
    return sorted(nodes, key=lambda node: node.name)


def run_state(database: Path, run: int) -> RunState | None:
    """Return what became of a run; `None` where the SuperLink knows none of this number.

    Raises:
        sqlite3.Error: the database is locked or not a SuperLink's.

    """
    row = _task(database, run, "finished_at, sub_status, details")
    if row is None:
        return None
    ended = row["finished_at"] is not None
    return RunState(ended=ended, outcome=row["sub_status"] if ended else "", detail=row["details"] or "")


def run_log(database: Path, run: int) -> str:
    """Return what a run's ServerApp wrote, as the SuperLink keeps it.

    Raises:
        sqlite3.Error: the database is locked or not a SuperLink's.

    """
    task = _task(database, run, "task_id")
    if task is None:
        return ""
    with reading(database) as connection:
        query = "SELECT log FROM task_logs WHERE task_id = ? ORDER BY timestamp, rowid"
        return "".join(row["log"] for row in connection.execute(query, (task["task_id"],)))


def _task(database: Path, run: int, columns: str) -> sqlite3.Row | None:
    if not database.exists():
        return None
    query = f"SELECT {columns} FROM run JOIN task ON task_id = primary_task_id WHERE run.run_id = ?"  # noqa: S608 (fixed words)
    with reading(database) as connection:
        row: sqlite3.Row | None = connection.execute(query, (_signed(run),)).fetchone()
        return row


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number  # SQLite has no unsigned numbers


def _unsigned(number: int) -> int:
    return number % (1 << 64)


def _text(key: bytes | str | None) -> str:
    return key.decode(errors="replace") if isinstance(key, bytes) else key or ""
