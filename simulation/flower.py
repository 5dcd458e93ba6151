"""Flower's programs as separate processes: where they are, what environment they get, how they are asked."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wardpose.shared.children import QUIET
from wardpose.shared.files import write_text
from wardpose.simulation.processes import ProcessError

LOOPBACK = "127.0.0.1"

_POLL = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.3"}


def program(name: str) -> str:
    """Return the path of one of Flower's programs, of this environment before any other.

    Raises:
        ProcessError: it is not installed.

    """
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise ProcessError(f"{name}: not found beside {sys.executable} (allowed: an environment with flwr installed)")
    return found


def environment(home: Path) -> dict[str, str]:
    """Return the variables of a Flower process with its own home; no telemetry, no update check, no installing."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**inherited, **QUIET, **_POLL, "PATH": binaries, "FLWR_HOME": str(home)}


def ask(home: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Call `flwr` as the operator whose connections are in `home`, and return its JSON answer.

    Args:
        home: Flower's home of the operator.
        arguments: of `flwr`, without the format.
        variables: further environment variables.

    Raises:
        ProcessError: Flower did not succeed; says what it printed.

    """
    finished = subprocess.run(  # noqa: S603 (our own arguments)
        [program("flwr"), *arguments, "--format", "json"],
        env={**environment(home), **(variables or {})},
        cwd=home,
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
        raise ProcessError(f"flwr {arguments[0]}: {finished.stdout.strip()} {finished.stderr.strip()}")
    return answer


def write_connection(home: Path, *, name: str, address: str, authority: Path) -> None:
    """Write the operator's connection to a SuperLink."""
    settings = {"address": address, "root-certificates": str(authority)}
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    write_text(home / "config.toml", f'[superlink]\ndefault = "{name}"\n[superlink.{name}]\n{lines}')


def free_ports(count: int) -> list[int]:
    """Return loopback ports that nobody listens on now."""
    listeners = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
