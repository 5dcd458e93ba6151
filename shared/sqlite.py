"""Small durable SQLite files: journals that outlive the processes that write them."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def transaction(path: Path, schema: str) -> Iterator[sqlite3.Connection]:
    """Open the file (made with `schema` when new) for one write transaction; an error rolls it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(f"BEGIN IMMEDIATE; {schema}")  # a reader sees all tables or none
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open an existing file for reading; `sqlite3.OperationalError` when it does not exist.

    Readers do not wait for writers of a write-ahead log; two seconds are for a file that is locked as a whole.
    """
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=2)) as connection:
        connection.row_factory = sqlite3.Row
        yield connection


def read_rows(path: Path, query: str, *arguments: object) -> list[dict[str, Any]]:
    """Return the rows of a query; none where there is no file, or one that its writer has just begun to make.

    Raises:
        sqlite3.Error: the file is locked, broken, or has other tables.

    """
    if not path.exists():
        return []
    with reading(path) as connection:
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            return []
        return [dict(row) for row in connection.execute(query, arguments).fetchall()]
