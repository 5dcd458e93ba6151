"""What an experiment leaves behind: one JSON file that grows run by run, and says on what it was measured.

A run that is in the file is not run again, so that an experiment that was stopped goes on where it was.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

from wardpose.shared.errors import DataError
from wardpose.shared.files import write_json
from wardpose.shared.version import code_hash
from wardpose.simulation.benchmarks.step import hardware

COMMITTED = Path(__file__).parent / "results"
"""Results that come with the package."""


class Results:
    """One experiment's file.

    Attributes:
        path: of the file; read where it is there.
        content: what it holds: `facts`, `setting`, and `runs`, each with its `key`.

    Raises:
        DataError: the file is no such file, or of another setting.

    """

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        self.path = path
        self.content: dict[str, Any] = {"facts": facts(), "setting": setting, "runs": []}
        if path.exists():
            found = read_results(path)
            if found["setting"] != setting:
                raise DataError(f"{path}: holds results of another setting (allowed: --out with another path)")
            self.content = found

    def done(self, **key: Any) -> bool:
        """Return whether a run is in the file."""
        return any(run["key"] == key for run in self.content["runs"])

    def add(self, result: dict[str, Any], **key: Any) -> None:
        """Keep what a run found, durably."""
        self.content["runs"].append({"key": key, **result})
        write_json(self.path, self.content)

    def note(self, name: str, value: Any) -> None:
        """Keep a fact of the whole experiment."""
        self.content[name] = value
        write_json(self.path, self.content)


def read_results(path: Path) -> dict[str, Any]:
    """Read a file that `Results` wrote.

    Raises:
        DataError: it is missing or no such file.

    """
    try:
        content = json.loads(path.read_text())
        if not {"facts", "setting", "runs"} <= set(content):
            raise ValueError("facts, setting or runs are missing")
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: holds no results of an experiment ({error})") from error
    return dict(content)


def facts() -> dict[str, Any]:
    """Return on what and with which code something is measured."""
    return {"hardware": hardware("cpu"), "code_hash": code_hash(), "commit": _commit()}


def _commit() -> str:
    """Name the commit that is checked out, `-dirty` where files differ from it; empty outside a repository."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
