"""Which files of a folder are done or begun: one JSON line each time something is written."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
    """What earlier runs wrote into a destination folder, and what this one writes."""

    def __init__(self, job: Job) -> None:
        """Read it, where there is one.

        Raises:
            ConfigError: another job wrote it, and nothing is to be overwritten.

        """
        self._folder = job.destination
        self._path = job.destination / MANIFEST
        self._identity = job.identity
        self._entries: dict[str, dict[int, dict[str, Any]]] = {}  # source -> page -> line
        for line in self._path.read_text().splitlines() if self._path.exists() else []:
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # a line cut off by a crash: its file is done again
            if entry["identity"] != job.identity and not job.force:
                raise ConfigError(
                    f"{job.destination}: was begun with other weights, key or strength; use another folder or --force"
                )
            self._note(entry)

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
            if entry["identity"] != self._identity or entry["source"] != digest or not target.is_file():
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
        entry: dict[str, Any] = {"name": name, "source": digest, "target": target_digest, "identity": self._identity}
        entry |= {"file": str(target.relative_to(self._folder)), "page": page, "pages": pages, **asdict(done)}
        self._note(entry)
        # The line break comes first: a line that a crash cut off spoils itself alone.
        line = ("\n" + json.dumps(entry)).encode()
        with disk.needing(self._path, len(line)):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())

    def _note(self, entry: dict[str, Any]) -> None:
        pages = self._entries.setdefault(entry["name"], {})
        others = [other for other in pages.values() if other["source"] == entry["source"]]
        if len(others) != len(pages) or any(other.get("pages", 1) != entry.get("pages", 1) for other in others):
            pages.clear()  # of another content under the same name
        pages[entry.get("page", 0)] = entry

    def _target(self, entry: dict[str, Any]) -> Path:
        name = entry.get("file") or str(Path(entry["name"]).with_suffix(".png"))
        return self._folder / name
