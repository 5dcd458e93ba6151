"""Tar files that are the same for the same content, and are read with nothing believed about them.

Nothing is unpacked by being read: files come into memory, and only as many and as large as an archive may have.
"""

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from wardpose.shared.errors import WardposeError, one_line
from wardpose.shared.files import write_bytes

PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
_LARGEST = 1 << 30  # bytes of all files
_MOST_FILES = 10_000
_PART = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.@+-]{1,200}")
_MODES = (0o600, 0o700)


class KitError(WardposeError):
    """An archive is damaged, was changed, is not signed by the expected key, or is of another federation."""


@dataclass(frozen=True, kw_only=True)
class KitFile:
    """A file of an archive.

    Attributes:
        content: its bytes.
        mode: its rights.

    """

    content: bytes
    mode: int = PRIVATE_FILE


Files = Mapping[str, KitFile]
"""Files by their path in the archive's folder, with `/`."""


def pack(folder: str, files: Files) -> bytes:
    """Return a compressed tar file: sorted, without times, owners or anything else of where it was made.

    Args:
        folder: the one folder in which all files are.
        files: what goes in.

    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        folders = {str(parent) for name in files for parent in PurePosixPath(folder, name).parents} - {"."}
        for name in sorted(folders):
            archive.addfile(_entry(name, PRIVATE_FOLDER, kind=tarfile.DIRTYPE))
        for name, file in sorted(files.items()):
            entry = _entry(f"{folder}/{name}", file.mode)
            entry.size = len(file.content)
            archive.addfile(entry, io.BytesIO(file.content))
    return gzip.compress(buffer.getvalue(), compresslevel=6, mtime=0)


def write_archive(path: Path, folder: str, files: Files) -> None:
    """Write a tar file for its owner alone, whole or not at all.

    Raises:
        StorageError: it cannot be written.

    """
    write_bytes(path, pack(folder, files), mode=PRIVATE_FILE)


def read_archive(path: Path) -> dict[str, KitFile]:
    """Return the files of a tar file.

    Raises:
        KitError: it cannot be read, is cut or damaged, or holds what no archive of a federation holds.

    """
    try:
        with gzip.open(path, "rb") as stream:
            content = stream.read(_LARGEST + 1)
    except FileNotFoundError as error:
        raise KitError(f"{path}: no such file (allowed: an archive of wardpose provision, or its folder)") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise KitError(f"{path}: is cut, damaged or no .tar.gz ({one_line(error)}); fetch it again") from error
    except OSError as error:
        raise KitError(f"{path}: cannot be read ({error.strerror})") from error
    if len(content) > _LARGEST:
        raise KitError(f"{path}: is larger than an archive may be (allowed: {_LARGEST} bytes)")
    files: dict[str, KitFile] = {}
    tops: set[str] = set()
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for entry in archive:
                top, _, name = entry.name.partition("/")
                tops.add(top)
                if entry.isdir() and _is_path(entry.name):
                    continue
                _check_entry(path, entry, name, files)
                taken = archive.extractfile(entry)
                files[name] = KitFile(content=taken.read() if taken else b"", mode=entry.mode)
    except (tarfile.TarError, EOFError) as error:
        raise KitError(f"{path}: is cut, damaged or no tar file ({one_line(error)}); fetch it again") from error
    if len(tops) != 1:
        raise KitError(f"{path}: has {len(tops)} folders at its top (allowed: one)")
    return files


def read_folder(folder: Path) -> dict[str, KitFile]:
    """Return the files of an archive that was unpacked.

    Raises:
        KitError: one of them is no plain file, or is too large.

    """
    files: dict[str, KitFile] = {}
    left = _LARGEST
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        if path.is_symlink() or not path.is_file():
            raise KitError(f"{path}: is a link or no plain file (allowed: what came in the archive)")
        left -= path.stat().st_size
        if left < 0 or len(files) >= _MOST_FILES:
            raise KitError(f"{folder}: holds more than an archive may (allowed: {_MOST_FILES} files, {_LARGEST} bytes)")
        try:
            files[name] = KitFile(content=path.read_bytes(), mode=path.stat().st_mode & 0o777)
        except OSError as error:
            raise KitError(f"{path}: cannot be read ({error.strerror})") from error
    return files


def _check_entry(path: Path, entry: tarfile.TarInfo, name: str, files: Files) -> None:
    shown = one_line(entry.name)
    if not entry.isreg():
        raise KitError(f"{path}: {shown}: is a link, a device or the like (allowed: plain files and folders)")
    if not name or not _is_path(entry.name):
        raise KitError(f"{path}: {shown}: is no path of an archive (allowed: names below its one folder)")
    if name in files:
        raise KitError(f"{path}: {shown}: stands twice (allowed: every name once)")
    if entry.mode not in _MODES:
        raise KitError(f"{path}: {shown}: has mode {entry.mode:o} (allowed: {', '.join(f'{m:o}' for m in _MODES)})")
    if len(files) >= _MOST_FILES:
        raise KitError(f"{path}: holds more files than an archive may (allowed: {_MOST_FILES})")


def _is_path(name: str) -> bool:
    return all(_PART.fullmatch(part) is not None for part in name.split("/"))


def _entry(name: str, mode: int, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.type, entry.mtime = mode, kind, 0
    return entry
