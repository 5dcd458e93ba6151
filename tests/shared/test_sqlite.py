"""A journal that is being made is empty to its readers, never broken."""

import sqlite3
import threading
from pathlib import Path

import pytest

from wardpose.shared.sqlite import read_rows, transaction

SCHEMA = "CREATE TABLE IF NOT EXISTS facts (name TEXT); CREATE TABLE IF NOT EXISTS others (name TEXT);"


def test_what_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    assert read_rows(path, "SELECT * FROM facts") == []
    sqlite3.connect(path).close()
    path.touch()
    assert read_rows(path, "SELECT * FROM facts") == []
    with transaction(path, SCHEMA) as connection:
        connection.execute("INSERT INTO facts VALUES ('a')")
        assert read_rows(path, "SELECT * FROM facts") == []
    assert read_rows(path, "SELECT * FROM facts WHERE name = ?", "a") == [{"name": "a"}]


def test_an_error_rolls_back(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with transaction(path, SCHEMA):
        pass
    with pytest.raises(ZeroDivisionError), transaction(path, SCHEMA) as connection:  # noqa: PT012 (the block is the test)
        connection.execute("INSERT INTO facts VALUES ('a')")
        raise ZeroDivisionError
    assert read_rows(path, "SELECT * FROM facts") == []


def test_writers_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"

    def write() -> None:
        for _ in range(10):
            with transaction(path, SCHEMA) as connection:
                count = connection.execute("SELECT count(*) FROM facts").fetchone()[0]
                connection.execute("INSERT INTO facts VALUES (?)", (str(count),))

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [row["name"] for row in read_rows(path, "SELECT name FROM facts ORDER BY rowid")]
    assert names == [str(number) for number in range(40)]


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_text("not a database" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        read_rows(path, "SELECT 1")
