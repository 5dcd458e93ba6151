"""Who may read what is written: its owner alone whatever the umask says, or those whom the user's umask lets."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wardpose.shared import files
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import ASKED_FOR
from wardpose.shared.sqlite import transaction

WRITERS: dict[str, Callable[[Path], None]] = {
    "bytes": lambda path: files.write_bytes(path, b"x"),
    "much": lambda path: files.write_bytes(path, bytes(1 << 17)),
    "text": lambda path: files.write_text(path, "x"),
    "json": lambda path: files.write_json(path, {"x": 1}),
    "whole": lambda path: _whole(path),
    "database": lambda path: _database(path),
}


def _whole(path: Path) -> None:
    with files.written_whole(path) as file:
        assert mode(next(path.parent.glob(".file.*"))) == 0o600, "readable while it is written"
        file.write(b"x")


def _database(path: Path) -> None:
    with transaction(path, "CREATE TABLE IF NOT EXISTS t (x);") as connection:
        connection.execute("INSERT INTO t VALUES (1)")
        beside = {file.name: mode(file) for file in path.parent.iterdir()}
    assert beside == {"file": 0o600, "file-wal": 0o600, "file-shm": 0o600}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    try:
        yield request.param
    finally:
        os.umask(before)


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_written_is_its_owners_alone_whatever_the_umask(tmp_path: Path, umask: int, kind: str) -> None:
    path = tmp_path / "new" / "deeper" / "file"
    WRITERS[kind](path)
    assert (mode(path), mode(path.parent), mode(path.parent.parent)) == (0o600, 0o700, 0o700)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_an_older_release_left_readable_is_not_readable_afterwards(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    WRITERS[kind](path)
    path.chmod(0o644)
    WRITERS[kind](path)
    assert mode(path) == 0o600


def test_what_a_user_asked_for_follows_their_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "new" / "report.html"
    files.write_text(path, "x", mode=ASKED_FOR)
    assert (mode(path), mode(path.parent)) == (0o666 & ~umask, 0o777 & ~umask)
    files.write_text(tmp_path / "private", "x")
    files.hand_over(tmp_path / "private", tmp_path / "shown")
    assert mode(tmp_path / "shown") == 0o666 & ~umask
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new", "shown"]


def test_a_folder_that_is_there_stays_its_users_business(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o755)
    files.write_text(shared / "a" / "file", "x")
    assert (mode(shared), mode(shared / "a")) == (0o755, 0o700)


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o666, 0o777])
def test_a_secret_with_any_bit_for_others_is_refused_with_the_line_to_run(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "node.key"
    path.touch()
    path.chmod(bits)
    with pytest.raises(ConfigError, match=rf"mode {bits:o}.*chmod 600 {path}"):
        files.refuse_readable(path)
    path.chmod(0o400)
    files.refuse_readable(path)
