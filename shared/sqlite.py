"""Small durable SQLite files: journals that outlive the processes that write them.

A new file is made whole under another name first: whoever reads finds none, or one that a reader may open. (A process
that is killed while it switches a file to the write-ahead log leaves one behind that only a writer can repair.)
"""

import glob
import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from wardpose.shared.errors import DamagedError, StorageError
from wardpose.shared.files import PRIVATE, keep_private, private_folder

Row = TypeVar("Row")


_TEMPORARY = 8  # random bytes in the name of a file that is being made


@contextmanager
def making(path: Path) -> Iterator[sqlite3.Connection]:
    """Fill a new file under a name that nobody knows, and give it its own at the end of the block.

    Where another process was first, its file stays. What killed processes left half-made goes. Only the owner may read
    it, and the files that SQLite puts beside it, which have its permissions.

    Args:
        path: of the file, whose folder exists.

    Raises:
        OSError: the folder cannot be written.
        sqlite3.Error: the disk is full.

    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(_TEMPORARY)}")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, PRIVATE))  # empty: SQLite fills it
        with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            yield connection
        with suppress(FileExistsError):
            os.link(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, sqlite3.Error):
        if not path.exists():  # else another process was first, and swept this one's away
            raise
    finally:
        for ending in _ENDINGS:
            with suppress(OSError):
                temporary.with_name(f"{temporary.name}{ending}").unlink()
    _sweep(path)


def sweep(path: Path) -> None:
    """Remove what processes that were killed while they made a file left behind, if it has its own name."""
    if path.stat().st_nlink > 1:  # killed between its two names
        _sweep(path)


def _sweep(path: Path) -> None:
    name = f".{glob.escape(path.name)}.{'[0-9a-f]' * 2 * _TEMPORARY}"
    for ending in _ENDINGS:
        for leftover in path.parent.glob(f"{name}{ending}"):
            with suppress(OSError):
                leftover.unlink()


_ENDINGS = ("", "-journal", "-wal", "-shm")


def keep_database_private(path: Path) -> None:
    """Take away what others may do with a database and the files beside it, which an older release left readable."""
    for ending in _ENDINGS:
        keep_private(path.with_name(f"{path.name}{ending}"))


@contextmanager
def transaction(path: Path, schema: str) -> Iterator[sqlite3.Connection]:
    """Open the file (made with `schema` when new) for one write transaction; an error rolls it back.

    Raises:
        StorageError: the disk is full, the file is not writable, locked or no database; it is as it was before.

    """
    try:
        private_folder(path.parent)
    except OSError as error:
        raise StorageError(error.errno, error.strerror, str(path)) from error
    try:
        if path.exists():
            sweep(path)
            keep_database_private(path)
        else:
            with making(path) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
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
    except OSError as error:
        raise StorageError(error.errno, error.strerror, str(path)) from error
    except UnicodeDecodeError as error:
        raise StorageError(None, f"damaged: {error}", str(path)) from error
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


def read_rows(path: Path, query: str, *arguments: object, added: str | None = None) -> list[dict[str, Any]]:
    """Return the rows of a query; none where there is no file, or one that its writer has just begun to make.

    Args:
        path: of the file.
        query: in SQL.
        arguments: of the query.
        added: table of it that files of an earlier version do not have; such a file has no rows.

    Raises:
        DamagedError: the file is locked, broken, or has other tables.

    """
    if not path.exists():
        return []
    with understood(path), reading(path) as connection:
        tables = {row["name"] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables or (added is not None and added not in tables):
            return []
        return [dict(row) for row in connection.execute(query, arguments).fetchall()]


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """Make whatever a damaged file does to its reader one error that names it.

    Raises:
        DamagedError: the block could not make sense of what it read.

    """
    try:
        yield
    except DamagedError:
        raise
    except (sqlite3.Error, TypeError, ValueError, KeyError) as error:  # a wrong column, text that is no JSON or UTF-8
        text = " ".join(str(error).split())
        raise DamagedError(f"{path}: cannot be read ({text}); is it damaged, or of another version?") from error


def as_rows(kind: type[Row], rows: Iterable[dict[str, Any]], path: Path) -> list[Row]:
    """Make dataclasses of rows, each value of the type that its field says.

    Raises:
        DamagedError: a row has other columns, or a value of another type.

    """
    plain: Any = kind  # mypy does not know that classes are hashable
    types, found = _types(plain), []
    with understood(path):
        for row in rows:
            for name, value in row.items():
                if not isinstance(value, types[name]):
                    raise TypeError(f"{name} is {type(value).__name__}")
            found.append(kind(**row))
    return found


@lru_cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
