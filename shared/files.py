"""Files that matter: after a crash there is the old one or the new one, never a part of one."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from wardpose.shared.errors import DataError, StorageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a disk, a quota or a file that can take no more."""

_LARGE = 1 << 16  # bytes, for which room is claimed before they are written


@contextmanager
def written_whole(path: Path, *, mode: int = 0o644) -> Iterator[BinaryIO]:
    """Give a file to write piece by piece, which becomes `path` when the block ends without an error.

    Raises:
        StorageError: the disk is full or the folder is not writable; `path` is then as it was.

    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
        _sync(path.parent)
    except StorageError:  # of another file, which the block wrote
        raise
    except OSError as error:
        raise storage_error(error, path) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `content`, atomically and durably; parents are created.

    Raises:
        StorageError: the disk is full or the folder is not writable; `path` is then as it was.

    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            if len(content) >= _LARGE:
                _allocate(file.fileno(), len(content))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise storage_error(error, path, needed=len(content)) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def storage_error(error: OSError, path: Path, *, needed: int | None = None) -> StorageError:
    """Say which file could not be written and, on a full disk, how many bytes it needed and how many are free."""
    made = StorageError(error.errno, error.strerror or str(error), str(path))
    if needed is not None and error.errno in FULL:
        made.add_note(f"{needed} bytes are needed, {_free(path)} are free")
    return made


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _allocate(descriptor: int, size: int) -> None:
    """Claim the room before anything is written to it, where the file system can."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


def _free(path: Path) -> int:
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


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
        rest = "".join(f": {note}" for note in getattr(error, "__notes__", [])) + (f"; {hint}" if hint else "")
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
