"""Which nodes are there, as Flower's SuperLink knows, read from its SQLite database without touching it.

Flower has no metrics of its own. The table read here (`node`) is internal to it: names are checked by a test against
the installed version, and nothing but what is shown to people depends on them.
"""

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from wardpose.shared.sqlite import reading

_PATIENCE = 2  # heartbeats that Flower waits for (flwr.common.constant.HEARTBEAT_PATIENCE; a test compares them)
_LATE = 5.0  # seconds that a heartbeat's call may take (HEARTBEAT_CALL_TIMEOUT)


@dataclass(frozen=True, kw_only=True)
class Node:
    """A registered SuperNode.

    Attributes:
        name: the site's name, as registered.
        online: whether its last heartbeat is younger than the time within which the next one was due. A node that was
            killed is found out when it misses that one, at most 35 s later; Flower itself waits for two.
        last_seen: Unix time of its last heartbeat; of one that is offline, the latest at which that can have been;
            `None` for one that was never there.

    """

    name: str
    online: bool
    last_seen: float | None = None


def registered_nodes(database: Path) -> list[Node]:
    """Return the SuperNodes that are registered and not unregistered, by name.

    Raises:
        sqlite3.Error: the database is missing, locked or not a SuperLink's.

    """
    with reading(database) as connection:
        rows = connection.execute(
            "SELECT name, status, online_until, heartbeat_interval FROM node "
            "WHERE status IN ('registered', 'online', 'offline')"
        ).fetchall()
    return sorted((_node(row, time.time()) for row in rows), key=lambda node: node.name)


def _node(row: sqlite3.Row, now: float) -> Node:
    until, interval = row["online_until"], row["heartbeat_interval"] or 0.0
    seen = until - _PATIENCE * interval if row["status"] == "online" and until is not None else until
    online = row["status"] == "online" and until is not None and now < until and now <= seen + interval + _LATE
    return Node(name=row["name"] or "", online=online, last_seen=seen)
