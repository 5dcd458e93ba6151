"""Writing on a disk that may be full: whole or not at all, and what there was no room for is said in bytes."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wardpose.shared import files
from wardpose.shared.errors import DataError

_GO_ON = "what was finished stays, run the same command again to go on"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write(path: Path, content: bytes, *, mode: int) -> None:
    """Replace a file by `content`, as `files.write_bytes`; the `OSError` knows file and bytes."""
    with needing(path, len(content)):
        files.write_bytes(path, content, mode=mode)


@contextmanager
def needing(path: Path, count: int) -> Iterator[None]:
    """Note in an `OSError` that `count` bytes were to be written to `path`."""
    try:
        yield
    except OSError as error:
        if hasattr(error, "__notes__"):
            raise  # it knows better
        error.filename = str(path)
        error.filename2 = None
        if error.errno in _FULL:
            error.add_note(f"{count} bytes are needed, {_free(path)} are free")
        raise


@contextmanager
def told_in_one_line(path: Path) -> Iterator[None]:
    """Turn what the system says into one line.

    Args:
        path: named where the system names no file.

    Raises:
        DataError: instead of an `OSError`.

    """
    try:
        yield
    except OSError as error:
        room = "".join(f": {note}" for note in getattr(error, "__notes__", []))
        raise DataError(
            f"{error.filename or path}: cannot be read or written ({error.strerror}){room}; {_GO_ON}"
        ) from error


def move(temporary: Path, path: Path, *, mode: int) -> None:
    """Give a finished file its name, durably."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.chmod(mode)
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _free(path: Path) -> int:
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
