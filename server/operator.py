"""The operator's side of Flower: sites are registered and runs submitted by `flwr`, whose connection a home brings."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wardpose.shared.children import QUIET
from wardpose.shared.errors import ConfigError
from wardpose.shared.files import write_text

_UNREACHABLE = "Connection to the SuperLink is unavailable"
_AGAIN_SECONDS = 1.0
_POLL = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3"}


def program(name: str) -> str:
    """Return the path of one of Flower's programs, of this environment before any other.

    Raises:
        ConfigError: it is not installed.

    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise ConfigError(f"{name}: not found beside {sys.executable} (allowed: an environment with flwr installed)")
    return found


def environment(home: Path) -> dict[str, str]:
    """Return the variables of a Flower process with its own home; no telemetry, no update check, no installing."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**inherited, **QUIET, **_POLL, "PATH": binaries, "FLWR_HOME": str(home)}


def ask(
    home: Path, *arguments: str, variables: Mapping[str, str] | None = None, patience: float = 0.0
) -> dict[str, Any]:
    """Call `flwr` as the operator whose connections are in `home`, and return its JSON answer.

    Args:
        home: Flower's home of the operator.
        arguments: of `flwr`, without the format.
        variables: further environment variables.
        patience: seconds in which a SuperLink that cannot be reached, because it is still starting, is asked again.

    Raises:
        ConfigError: Flower did not succeed; says what it printed.

    """
    until = time.monotonic() + patience
    while True:
        try:
            return _ask(home, arguments, variables or {})
        except ConfigError as error:
            if _UNREACHABLE not in str(error) or time.monotonic() > until:
                raise
        time.sleep(_AGAIN_SECONDS)


def _ask(home: Path, arguments: Sequence[str], variables: Mapping[str, str]) -> dict[str, Any]:
    finished = subprocess.run(  # noqa: S603 (our own arguments)
        [program("flwr"), *arguments, "--format", "json"],
        env={**environment(home), **variables},
        cwd=home if home.is_dir() else None,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        answer: dict[str, Any] = json.loads(finished.stdout[finished.stdout.index("{") :])
    except ValueError:
        answer = {}
    if finished.returncode or not answer.get("success"):
        said = answer.get("error-message") or f"{finished.stdout} {finished.stderr}"
        raise ConfigError(f"flwr {' '.join(arguments[:2])}: {' '.join(str(said).split())[:600]}")
    return answer


def write_connection(home: Path, *, name: str, address: str, authority: Path) -> None:
    """Write the operator's connection to a SuperLink."""
    settings = {"address": address, "root-certificates": str(authority)}
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    write_text(home / "config.toml", f'[superlink]\ndefault = "{name}"\n[superlink.{name}]\n{lines}')
