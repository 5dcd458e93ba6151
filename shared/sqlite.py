"""Small durable SQLite files: journals that outlive the processes that write them."""

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from wardpose.shared.errors import StorageError


@contextmanager
def transaction(path: Path, schema: str) -> Iterator[sqlite3.Connection]:
    """Open the file (made with `schema` when new) for one write transaction; an error rolls it back.

    Raises:
        StorageError: the disk is full, the file is not writable, locked or no database; it is as it was before.

    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(error.errno, error.strerror, str(path)) from error
    try:
        with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.executescript(f"BEGIN IMMEDIATE; {schema}")  # a reader sees all tables or none
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # SQLite has rolled back on its own where the disk was full
                    connection.execute("ROLLBACK")
                raise
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError:
            free = shutil.disk_usage(path.parent).free  # SQLite says "disk I/O error" of a full disk, too
            raise StorageError(None, f"{error}; {free} bytes are free; nothing was changed", str(path)) from error
        raise  # a wrong statement


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
