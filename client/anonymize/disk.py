"""Writing beside what is there on a disk that may be full: whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wardpose.shared import files
from wardpose.shared.errors import StorageError


@contextmanager
def needing(path: Path, count: int) -> Iterator[None]:
    """Say of what the system refuses that `count` bytes were to be written to `path`.

    Raises:
        StorageError: instead of an `OSError` that does not know.

    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise files.storage_error(error, path, needed=count) from error


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
