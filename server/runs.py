"""Run folders: one a run, never used again, so that no run's model is ever overwritten by another's.

`runs/ID/` holds the plan as it was submitted (`federation.yaml`, with absolute paths), Flower's numbers of the run
(`submission.json`; a resume is a further one), and what the ServerApp writes: journal, checkpoint, model, card, report.
`runs/latest` is the one that was submitted last.
"""

import fcntl
import json
import os
import time
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from wardpose.server.folder import LOCK
from wardpose.server.journal import RunJournal
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import private_folder, storing, write_json, write_text

if TYPE_CHECKING:  # torch comes with it, which looking at runs does without
    from wardpose.shared.config import FederationConfig

LATEST = "latest"
_SUBMISSION = "submission.json"


@dataclass(frozen=True)
class Run:
    """One run's folder.

    Attributes:
        folder: absolute.

    """

    folder: Path

    @property
    def name(self) -> str:
        """The run's ID."""
        return self.folder.name

    @property
    def plan(self) -> Path:
        """The plan as it was submitted."""
        return self.folder / "federation.yaml"

    @property
    def model(self) -> Path:
        """The final model."""
        return self.folder / "model.safetensors"

    @property
    def report(self) -> Path:
        """The report, once it was made."""
        return self.folder / "report.html"

    @property
    def journal(self) -> RunJournal:
        """The run's journal."""
        return RunJournal(self.folder / "journal.sqlite")

    @property
    def flower_runs(self) -> list[int]:
        """Flower's numbers of the run, oldest first; empty for one that Flower never took."""
        try:
            return [int(number) for number in json.loads((self.folder / _SUBMISSION).read_text())["flower_runs"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def submitted(self, flower_run: int) -> None:
        """Note that Flower took the run, or its resume, under a number."""
        numbers = [*self.flower_runs, flower_run]
        write_json(self.folder / _SUBMISSION, {"flower_runs": [str(number) for number in numbers]})

    def at_work(self) -> bool:
        """Tell whether a coordinator's process holds the folder now."""
        try:
            with FileIO(self.folder / LOCK, "r") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False


def new_run(runs: Path, config: "FederationConfig", *, now: float | None = None) -> Run:
    """Make the folder of a new run, with its plan in it.

    Raises:
        DataError: the disk is full or the folder is not writable.

    """
    from wardpose.shared.yaml_config import to_yaml

    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    with storing(runs):
        private_folder(runs)
        for number in range(1, 10_000):
            folder = runs / (f"{config.name}-{stamp}" if number == 1 else f"{config.name}-{stamp}-{number}")
            try:
                folder.mkdir(mode=0o700)
            except FileExistsError:
                continue
            run = Run(folder.resolve())
            write_text(run.plan, to_yaml(config))
            return run
    raise ConfigError(f"{runs}: has ten thousand runs of this second")


def make_latest(run: Run) -> None:
    """Let `latest` be this run.

    Raises:
        DataError: the folder is not writable.

    """
    place = run.folder.parent / LATEST
    temporary = place.with_name(f".{LATEST}.{os.getpid()}")
    with storing(place):
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(run.name)
        temporary.replace(place)


def find_run(runs: Path, name: str | None = None) -> Run:
    """Return a run by its ID; the latest when absent.

    Raises:
        ConfigError: there is none, or none of that ID.

    """
    folder = runs / (name or LATEST)
    if name is not None and (name in ("", ".", "..") or Path(name).name != name):
        raise ConfigError(f"run {name!r}: is no ID (allowed: the name of a folder in {runs})")
    if not folder.is_dir():
        known = sorted(path.name for path in runs.glob("*") if path.is_dir() and path.name != LATEST)
        shown = ", ".join(known[-5:]) or "none yet; wardpose server submit"
        raise ConfigError(f"{runs}: has no {'run' if name is None else f'run {name!r}'} (allowed: {shown})")
    return Run(folder.resolve())
