"""Files that matter: after a crash there is the old one or the new one, never a part of one."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wardpose.shared.errors import DataError


def write_bytes(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `content`, atomically and durably; parents are created.

    Raises:
        OSError: the disk is full or the folder is not writable; `path` is then as it was.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def storing(path: Path, hint: str = "") -> Iterator[None]:
    """Turn what the operating system says (disk full, folder not writable) into one line that names the file.

    Args:
        path: named where the system names no file.
        hint: what the user can do, or what is still there.

    Raises:
        DataError: instead of an `OSError`.

    """
    try:
        yield
    except OSError as error:
        rest = f"; {hint}" if hint else ""
        raise DataError(f"{error.filename or path}: cannot be read or written ({error.strerror}){rest}") from error


def write_text(path: Path, content: str) -> None:
    """Replace `path` by UTF-8 `content`, as `write_bytes`."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Replace `path` by `content` as indented JSON, as `write_bytes`."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
