"""Which files of a folder are done or begun: one JSON line each time something is written.

One job at a time works in a folder: two at once, with two vaults, would both believe that it is theirs.
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wardpose.client.anonymize import disk
from wardpose.client.anonymize.job import Job
from wardpose.client.anonymize.sources import MANIFEST
from wardpose.shared import files
from wardpose.shared.errors import ConfigError


@dataclass(frozen=True)
class Done:
    """What became of a source.

    Attributes:
        frames: how many it gave.
        skipped: sentences on those of them that are black.
        left_out: in a phrase each, what of it is not there.
        cut: whether its end is missing.

    """

    frames: int = 1
    skipped: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    cut: bool = False


class Manifest:
    """What earlier runs wrote into a destination folder, and what this one writes; a context manager that holds it."""

    def __init__(self, job: Job) -> None:
        self._folder = job.destination
        self._path = job.destination / MANIFEST
        self._job = job
        self._entries: dict[str, dict[int, dict[str, Any]]] = {}  # source -> page -> line

    def __enter__(self) -> Self:
        """Hold the folder and read its manifest, where there is one.

        Raises:
            ConfigError: another job is at work there, or wrote it, and nothing is to be overwritten.
            OSError: it cannot be read or made.

        """
        self._made = not self._folder.exists()
        files.private_folder(self._folder)
        self._file = _held(self._path)
        try:
            for entry in _lines(self._path):
                if entry["identity"] != self._job.identity and not self._job.force:
                    raise ConfigError(
                        f"{self._folder}: was begun with other weights, key or strength; use another folder or --force"
                    )
                self._note(entry)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        """Let the folder go; where nothing was written there is nothing left behind."""
        with self._file, suppress(OSError):
            if os.fstat(self._file.fileno()).st_size == 0:
                self._path.unlink()
                if self._made:
                    self._folder.rmdir()

    def done(self, name: str, digest: str) -> tuple[list[Path], Done] | None:
        """Return what became of a source, file by file and in all; `None` when it is not all there and whole.

        Args:
            name: of the source.
            digest: of its content.

        """
        pages = self._entries.get(name, {})
        if not pages or len(pages) != next(iter(pages.values())).get("pages", 1):
            return None
        targets = []
        for _, entry in sorted(pages.items()):
            target = self._target(entry)
            if entry["identity"] != self._job.identity or entry["source"] != digest or not target.is_file():
                return None
            if files.sha256_file(target) != entry["target"]:
                return None
            targets.append(target)
        first = next(iter(pages.values()))
        frames = sum(entry.get("frames", 1) for entry in pages.values())
        skipped, left_out = (tuple(first.get(key, ())) for key in ("skipped", "left_out"))
        return targets, Done(frames, skipped, left_out, cut=first.get("cut", False))

    def ours(self, name: str, target: Path) -> bool:
        """Whether what lies there was written for this source by an earlier run."""
        return any(self._target(entry) == target for entry in self._entries.get(name, {}).values())

    def add(
        self,
        name: str,
        digest: str,
        target: Path,
        target_digest: str,
        *,
        page: int = 0,
        pages: int = 1,
        done: Done = Done(),
    ) -> None:
        """Note, durably, what is about to be given its name.

        It comes first: what then lies under that name is known to be ours, whenever the power fails.

        Raises:
            OSError: there is no room.

        """
        entry: dict[str, Any] = {
            "name": name,
            "source": digest,
            "target": target_digest,
            "identity": self._job.identity,
        }
        if self._job.log is not None:
            entry["log"] = self._job.log()
        entry |= {"file": str(target.relative_to(self._folder)), "page": page, "pages": pages, **asdict(done)}
        self._note(entry)
        # The line break comes first: a line that a crash cut off spoils itself alone.
        line = ("\n" + json.dumps(entry)).encode()
        with disk.needing(self._path, len(line)):
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())

    def _note(self, entry: dict[str, Any]) -> None:
        pages = self._entries.setdefault(entry["name"], {})
        others = [other for other in pages.values() if other["source"] == entry["source"]]
        if len(others) != len(pages) or any(other.get("pages", 1) != entry.get("pages", 1) for other in others):
            pages.clear()  # of another content under the same name
        pages[entry.get("page", 0)] = entry

    def _target(self, entry: dict[str, Any]) -> Path:
        name = entry.get("file") or str(Path(entry["name"]).with_suffix(".png"))
        return self._folder / name


def log_entries(folder: Path) -> dict[str, dict[str, Path]]:
    """Return what the manifest of a folder knows of vaults' logs: a vault's fingerprint -> entry -> the manifest."""
    seen: dict[str, dict[str, Path]] = {}
    for entry in _lines(folder / MANIFEST):
        log = entry.get("log")
        if isinstance(log, dict) and isinstance(log.get("vault"), str) and isinstance(log.get("entry"), str):
            seen.setdefault(log["vault"], {})[log["entry"]] = folder / MANIFEST
    return seen


def _held(path: Path) -> FileIO:
    """Open a manifest, made when new, for this process alone."""
    while True:
        file = FileIO(path, "a+", opener=files.private_opener)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise ConfigError(
                f"{path.parent}: another job is anonymising or recovering into it (allowed: one at a time)"
            ) from error
        except OSError:
            return file  # a file system without locks
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        file.close()  # whoever held it found nothing to keep, and removed it meanwhile


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries; a line that a crash cut off, or that somebody else wrote, is passed over: it does no harm."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    for line in content.split(b"\n"):
        try:
            entry = json.loads(line)
            if _is_entry(entry):
                yield entry
        except (ValueError, RecursionError):
            continue  # its file is done again


def _is_entry(entry: Any) -> bool:
    """Tell whether it has what is asked of an entry, and names no file outside the folder."""
    if not isinstance(entry, dict):
        return False
    texts = [entry.get(key) for key in ("name", "source", "target", "identity")]
    counts = [entry.get(key, 1) for key in ("page", "pages", "frames")]
    lists = [entry.get(key, []) for key in ("skipped", "left_out")]
    file = entry.get("file", "-")
    return (
        all(isinstance(text, str) for text in (*texts, file))
        and all(type(count) is int for count in counts)
        and all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in lists)
        and not any(Path(name).is_absolute() or ".." in Path(name).parts for name in (file, str(entry["name"])))
    )
