"""Files that matter: after a crash there is the old one or the new one, never a part of one.

Whatever a site or a coordinator writes is for its owner alone, in folders that are, whatever the umask says: ledgers,
messages and models say something of patients, and whoever forgets to say so must not be the one who leaks them. Only
what a user asked for by name (a prediction, an export, a report) says `ASKED_FOR` and gets what their umask gives.
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from wardpose.shared.errors import ConfigError, DataError, StorageError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a disk, a quota or a file that can take no more."""

PRIVATE = 0o600
"""Mode of a file that its owner alone may read."""

PRIVATE_FOLDER = 0o700

ASKED_FOR = None
"""Mode of a file that a user asked for by name: their umask decides."""

OTHERS = 0o077
"""What anybody but the owner may do."""

_TOKEN = 8  # hexadecimal digits at the end of the name of a file that is not whole yet
_LARGE = 1 << 16  # bytes, for which room is claimed before they are written


def private_process() -> None:
    """Let whatever this process and its children write be for their owner alone, Flower's and SQLite's files too."""
    os.umask(OTHERS)


def private_folder(folder: Path) -> Path:
    """Make a folder, and those above it that are missing, for their owner alone; one that is there stays as it is.

    Raises:
        OSError: it cannot be made.

    """
    if not folder.is_dir():
        private_folder(folder.parent)
        folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
    return folder


def private_opener(path: str, flags: int) -> int:
    """Open for `open(..., opener=private_opener)`: a file that is new is its owner's alone."""
    return os.open(path, flags, PRIVATE)


def keep_private(path: Path) -> None:
    """Take away what others may do with a file of this user's that an older release left readable."""
    with suppress(OSError):  # of somebody else, or gone: whoever opens it says so
        mode = path.stat().st_mode
        if mode & OTHERS:
            path.chmod(mode & 0o700)


def size_of(path: Path) -> int | None:
    """Return a file's bytes; `None` where there is none, or none any more: others may remove it at any moment."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def refuse_missing(files: Mapping[str, Path]) -> None:
    """See that the files that options name are there.

    Args:
        files: option -> file.

    Raises:
        ConfigError: one is not.

    """
    for option, file in files.items():
        if not file.is_file():
            raise ConfigError(f"{option} {file}: no such file")


def refuse_readable(path: Path) -> None:
    """See that a secret is its owner's alone.

    Raises:
        ConfigError: it is not there, or others may read or change it; the line says what to run.

    """
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    if mode & OTHERS:
        raise ConfigError(f"{path}: may be read by others (mode {mode:o}; allowed: 600; chmod 600 {path})")


@contextmanager
def written_whole(path: Path, *, mode: int | None = PRIVATE) -> Iterator[BinaryIO]:
    """Give a file to write piece by piece, which becomes `path` when the block ends without an error.

    Args:
        path: of the file; parents are created.
        mode: its permissions, or `ASKED_FOR`.

    Raises:
        StorageError: the disk is full or the folder is not writable; `path` is then as it was.

    """
    temporary: Path | None = None
    try:
        descriptor, temporary = _temporary(path, mode)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
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


def write_bytes(path: Path, content: bytes, *, mode: int | None = PRIVATE) -> None:
    """Replace `path` by `content`, atomically and durably; parents are created.

    Args:
        path: of the file.
        content: all of it.
        mode: its permissions, or `ASKED_FOR`.

    Raises:
        StorageError: the disk is full or the folder is not writable; `path` is then as it was.

    """
    temporary: Path | None = None
    try:
        descriptor, temporary = _temporary(path, mode)
        with os.fdopen(descriptor, "wb") as file:
            if len(content) >= _LARGE:
                _allocate(file.fileno(), len(content))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise storage_error(error, path, needed=len(content)) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _temporary(path: Path, mode: int | None) -> tuple[int, Path]:
    """Make and open the file under another name that nobody knows; it has its permissions from its first byte on.

    It is locked while it is open, so that `remove_unfinished` can tell it from one whose writer was killed.
    """
    if mode is ASKED_FOR:
        path.parent.mkdir(parents=True, exist_ok=True)
    else:
        private_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(_TOKEN // 2)}")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else PRIVATE)
    with suppress(OSError):  # a file system without locks: nothing is removed there
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    if os.fstat(descriptor).st_nlink == 0:  # taken for unfinished before it was locked
        os.close(descriptor)
        return _temporary(path, mode)
    if mode not in (ASKED_FOR, PRIVATE):
        os.fchmod(descriptor, mode)
    return descriptor, temporary


def remove_unfinished(folder: Path, *names: str) -> None:
    """Remove files that were not whole when the process that wrote them was killed; who still writes keeps theirs.

    Args:
        folder: of this user's.
        names: of the files that they would have become; any when absent.

    """
    for name in names or ("*",):
        for leftover in folder.glob(f".{name}.{'[0-9a-f]' * _TOKEN}"):
            with suppress(OSError):  # finished by now, or somebody writes it
                _remove_unlocked(leftover)


def _remove_unlocked(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
    finally:
        os.close(descriptor)


def hand_over(source: Path, target: Path) -> None:
    """Move a finished file to the name that a user asked for, with the permissions that their umask gives.

    Raises:
        OSError: it cannot be written; `source` is still there.

    """
    descriptor, empty = _temporary(target, ASKED_FOR)
    try:
        source.chmod(os.fstat(descriptor).st_mode & 0o777)
        source.replace(target)
    except OSError:  # on another disk: copied there under another name first
        write_bytes(target, source.read_bytes(), mode=ASKED_FOR)
        source.unlink()
    finally:
        os.close(descriptor)
        empty.unlink(missing_ok=True)


def storage_error(error: OSError, path: Path, *, needed: int | None = None) -> StorageError:
    """Say which file could not be written and, on a full disk, how many bytes it needed and how many are free."""
    made = StorageError(error.errno, error.strerror or str(error), str(path))
    if needed is not None and error.errno in FULL:
        made.add_note(f"{needed} bytes are needed, {shutil.disk_usage(existing(path.parent)).free} are free")
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


def existing(folder: Path) -> Path:
    """Return a folder, or the first above it that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


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


def write_text(path: Path, content: str, *, mode: int | None = PRIVATE) -> None:
    """Replace `path` by UTF-8 `content`, as `write_bytes`."""
    write_bytes(path, content.encode(), mode=mode)


def write_json(path: Path, content: Any, *, mode: int | None = PRIVATE) -> None:
    """Replace `path` by `content` as indented JSON, as `write_bytes`."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n", mode=mode)


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
