"""Files are whole or as they were, and what there was no room for is said in bytes."""

import errno
import os
import re
import signal
import sqlite3
from pathlib import Path

import pytest
from support.disks import small_disk

from wardpose.shared import files
from wardpose.shared.errors import DataError, StorageError
from wardpose.shared.sqlite import read_rows, transaction

SCHEMA = "CREATE TABLE IF NOT EXISTS facts (name TEXT);"
ROOM = r": (\d+) bytes are needed, (\d+) are free$"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("size", [40_000, 65_536, 300_000])
def test_what_does_not_fit_leaves_what_was_there(size: int, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as resize:
        path = tmp_path / "disk" / "model.bin"
        files.write_bytes(path, b"old" * 9000)
        with pytest.raises(StorageError) as caught:
            files.write_bytes(path, b"n" * size)
        text = str(caught.value)
        assert text.startswith(f"{path}: cannot be written (No space left on device)")
        found = re.search(ROOM, text)
        assert found is not None
        assert int(found[1]) == size > int(found[2])
        assert path.read_bytes() == b"old" * 9000
        assert names(path.parent) == ["model.bin"]
        resize(1024)
        files.write_bytes(path, b"n" * size)
        assert path.read_bytes() == b"n" * size
        assert names(path.parent) == ["model.bin"]


def test_a_disk_without_a_single_byte(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 16):
        (tmp_path / "disk" / "filler").write_bytes(bytes(16 * 1024))
        with pytest.raises(StorageError, match=r"sites/a/site\.yaml: cannot be written"):
            files.write_text(tmp_path / "disk" / "sites" / "a" / "site.yaml", "site: a\n")
        assert not [path for path in (tmp_path / "disk").rglob("*") if path.is_file() and path.name != "filler"]


def test_room_is_claimed_before_anything_large_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed: list[int] = []
    real = os.posix_fallocate
    monkeypatch.setattr(
        os, "posix_fallocate", lambda descriptor, start, size: (claimed.append(size), real(descriptor, start, size))[1]
    )
    files.write_bytes(tmp_path / "large", bytes(100_000))
    files.write_bytes(tmp_path / "small", bytes(10))
    assert claimed == [100_000]

    def unable(descriptor: int, start: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(os, "posix_fallocate", unable)
    files.write_bytes(tmp_path / "large", bytes(200_000))
    assert (tmp_path / "large").stat().st_size == 200_000


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match=r"Permission denied\)$"):
        files.write_bytes(tmp_path / "a", b"")


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(StorageError, match=r"a/b: cannot be written \((File exists|Not a directory)\)$"):
        files.write_bytes(tmp_path / "a" / "b", b"")
    with pytest.raises(StorageError, match=r"a/b: cannot be written"), transaction(tmp_path / "a" / "b", SCHEMA):
        pass


def test_what_a_killed_writer_left_goes_and_what_somebody_writes_stays(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        with files.written_whole(tmp_path / "model"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (left,) = tmp_path.iterdir()
    with files.written_whole(tmp_path / "model") as file:
        file.write(b"new")
        files.remove_unfinished(tmp_path, "other")
        assert left.exists()
        files.remove_unfinished(tmp_path)
        assert not left.exists()
        file.write(b" weights")
    (tmp_path / ".model.settings").touch()  # nobody's temporary file
    (tmp_path / ".model.0123abcd").mkdir()
    files.remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".model.0123abcd", ".model.settings", "model"]
    assert (tmp_path / "model").read_bytes() == b"new weights"


def test_a_writer_that_is_swept_before_it_holds_its_lock_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = files.fcntl.flock, []

    def swept(descriptor: int, operation: int) -> None:
        if not seen:
            seen.extend(tmp_path.iterdir())
            seen[0].unlink()
        real(descriptor, operation)

    monkeypatch.setattr(files.fcntl, "flock", swept)
    files.write_bytes(tmp_path / "model", b"weights")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model").read_bytes() == b"weights"


def test_storing_says_the_same_and_what_to_do(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64):
        path = tmp_path / "disk" / "picture.png"
        with pytest.raises(DataError) as caught, files.storing(path, "the old one is still there"):
            files.write_bytes(path, bytes(100_000))
        assert re.fullmatch(
            rf"{path}: cannot be read or written \(No space left on device\): 100000 bytes are needed, \d+ are free; "
            "the old one is still there",
            str(caught.value),
        )


def test_a_journal_on_a_full_disk_is_as_it_was(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as resize:
        path = tmp_path / "disk" / "state" / "journal.sqlite"
        with transaction(path, SCHEMA) as connection:
            connection.execute("INSERT INTO facts VALUES ('first')")
        with pytest.raises(StorageError) as caught, transaction(path, SCHEMA) as connection:  # noqa: PT012 (the block is the test)
            for number in range(1000):
                connection.execute("INSERT INTO facts VALUES (?)", (f"{number}" * 100,))
        assert re.fullmatch(
            rf"{path}: cannot be written \(.*; \d+ bytes are free; nothing was changed\)", str(caught.value)
        )
        resize(1024)
        assert read_rows(path, "SELECT name FROM facts") == [{"name": "first"}]
        with transaction(path, SCHEMA) as connection:
            connection.execute("INSERT INTO facts VALUES ('second')")
        assert len(read_rows(path, "SELECT name FROM facts")) == 2


def test_a_journal_that_is_no_database_is_said_and_a_wrong_statement_is_a_defect(tmp_path: Path) -> None:
    (tmp_path / "broken.sqlite").write_bytes(b"dear sir or madam" * 500)
    with pytest.raises(StorageError, match="not a database"), transaction(tmp_path / "broken.sqlite", SCHEMA):
        pass
    with pytest.raises(sqlite3.ProgrammingError), transaction(tmp_path / "a.sqlite", SCHEMA) as connection:
        connection.execute("INSERT INTO facts VALUES (?)", ())


def test_a_size_is_none_where_nothing_is(tmp_path: Path) -> None:
    """A database's log goes between one look and the next, and its reader must not fall over it."""
    file = tmp_path / "ledger.sqlite-wal"
    assert files.size_of(file) is None
    file.write_bytes(b"abc")
    assert files.size_of(file) == 3
    file.unlink()
    assert files.size_of(file) is None
