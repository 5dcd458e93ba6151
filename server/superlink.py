"""What Flower's SuperLink knows about nodes and runs, read from its SQLite database without touching it.

Flower has no metrics of its own. The two tables read here (`node`, `task`) are internal to it: names are
checked by a test against the installed version, and nothing but monitoring and `wardpose dev` depends on
them.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from wardpose.shared.sqlite import reading


@dataclass(frozen=True, kw_only=True)
class Node:
    """A registered SuperNode.

    Attributes:
        name: the site's name, as registered.
        online: whether its heartbeat is still good.

    """

    name: str
    online: bool


def registered_nodes(database: Path) -> list[Node]:
    """Return the SuperNodes that are registered and not unregistered, by name.

    Raises:
        sqlite3.Error: the database is missing, locked or not a SuperLink's.

    """
    with reading(database) as connection:
        rows = connection.execute(
            "SELECT name, status, online_until FROM node WHERE status IN ('registered', 'online', 'offline')"
        ).fetchall()
    now = time.time()
    nodes = [
        Node(name=row["name"] or "", online=row["status"] == "online" and (row["online_until"] or 0) > now)
        for row in rows
    ]
    return sorted(nodes, key=lambda node: node.name)


def run_ended(database: Path, run_id: int) -> bool:
    """Return whether a run's ServerApp has ended, well or not.

    Raises:
        sqlite3.Error: the database is missing, locked or not a SuperLink's.

    """
    signed = run_id - (1 << 64) if run_id >= 1 << 63 else run_id  # SQLite has no unsigned numbers
    with reading(database) as connection:
        row = connection.execute(
            "SELECT finished_at FROM run JOIN task ON task_id = primary_task_id WHERE run.run_id = ?",
            (signed,),
        ).fetchone()
    return row is not None and row["finished_at"] is not None
