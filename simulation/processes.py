"""Start long-lived processes and stop exactly those, whoever asks, also after a crash of who started them.

Every process is the leader of a session of its own and carries a random token and its role in its
environment, which its children inherit. The token is written to a file before the first start. Stopping finds
processes by the token, pins each with a pidfd, looks at the token once more and only then signals: a recycled
process number is never hit. Linux only (`/proc`, pidfd).
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wardpose.shared.errors import WardposeError
from wardpose.shared.files import OTHERS, private_folder, private_opener, write_json

_TOKEN = "WARDPOSE_PROCESSES"  # noqa: S105 (a name, not a password)
_ROLE = "WARDPOSE_ROLE"
_LOG_LINES = 15


class ProcessError(WardposeError):
    """A process did not do what it was started for; the message ends with what it last wrote."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """A process that is alive.

    Attributes:
        role: of the process that was started; its children have the same.
        pid: number of the process.
        started: clock ticks after boot at which it started; with `pid` it names one process.

    """

    role: str
    pid: int
    started: int


class Processes:
    """Processes that belong together, remembered in a state file.

    Attributes:
        state: the file; JSON with the token and what was started.
        logs: folder of one log file a role.

    """

    def __init__(self, state: Path, logs: Path) -> None:
        if not sys.platform.startswith("linux"):
            raise ProcessError(f"processes are kept by Linux's /proc and pidfd; this is {sys.platform}")
        self.state = state
        self.logs = logs

    def start(
        self,
        role: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        restart_seconds: int | None = None,
    ) -> None:
        """Start a command in a session of its own.

        Args:
            role: its name here and its log's.
            command: program and arguments.
            environment: all of its variables; token and role are added.
            folder: working folder.
            restart_seconds: start it again this long after it ended, as systemd would; never when absent.

        Raises:
            ProcessError: the program cannot be started.

        """
        content = self._read() or {"token": secrets.token_hex(16), "started": []}
        write_json(self.state, content)
        private_folder(self.logs)
        if restart_seconds is not None:
            command = [
                "sh",
                "-c",
                f'while :; do "$@"; echo "$0 ended ($?)"; sleep {restart_seconds}; done',
                role,
                *command,
            ]
        variables = {**environment, _TOKEN: content["token"], _ROLE: role}
        with open(self.log(role), "ab", opener=private_opener) as log:
            try:
                process = subprocess.Popen(  # noqa: S603 (callers name the program)
                    command,
                    env=variables,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    umask=OTHERS,
                )
            except OSError as error:
                raise ProcessError(f"{command[0]}: cannot be started ({error.strerror})") from error
        content["started"].append({"role": role, "pid": process.pid, "started": _started(process.pid)})
        write_json(self.state, content)

    def alive(self) -> list[Running]:
        """Return all living processes, children included."""
        content = self._read()
        return [] if content is None else list(_find(content["token"]))

    def roles(self) -> list[str]:
        """Return the roles that were started, in order."""
        content = self._read() or {"started": []}
        return [entry["role"] for entry in content["started"]]

    def dead(self) -> list[str]:
        """Return the roles that were started and whose process is gone."""
        content = self._read() or {"started": []}
        alive = {(process.pid, process.started) for process in self.alive()}
        return [entry["role"] for entry in content["started"] if (entry["pid"], entry["started"]) not in alive]

    def send(self, role: str, number: signal.Signals) -> None:
        """Signal all processes of a role, children included."""
        content = self._read()
        for process in self.alive():
            if content is not None and process.role == role:
                _signal(process, content["token"], number)

    def stop(self, *roles: str, grace: float = 15.0) -> None:
        """Ask the processes of these roles to end, and end those that have not after `grace` seconds."""
        asked = False
        until = time.monotonic() + grace
        while any(process.role in roles for process in self.alive()):
            late = time.monotonic() > until
            if late or not asked:
                for role in roles:
                    self.send(role, signal.SIGKILL if late else signal.SIGTERM)
            asked = True
            time.sleep(0.1)

    def forget(self) -> None:
        """Remove the state file.

        Raises:
            ProcessError: a process is still alive.

        """
        if self.alive():
            raise ProcessError(
                f"{self.state}: processes are still alive: {sorted({item.role for item in self.alive()})}"
            )
        self.state.unlink(missing_ok=True)

    def log(self, role: str) -> Path:
        """Return the log file of a role."""
        return self.logs / f"{role}.log"

    def tail(self, role: str) -> str:
        """Return the last lines of a role's log."""
        try:
            lines = self.log(role).read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return "\n".join(lines[-_LOG_LINES:])

    def _read(self) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = json.loads(self.state.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ProcessError(f"{self.state}: is not a state file ({error})") from error
        return content


def _find(token: str) -> Iterator[Running]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            pid = int(entry.name)
            role = _role(pid, token)
            if role is not None:
                yield Running(role=role, pid=pid, started=_started(pid))


def _role(pid: int, token: str) -> str | None:
    """Role of a living process that carries the token; `None` for any other."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    if f"{_TOKEN}={token}".encode() not in variables:
        return None
    prefix = f"{_ROLE}=".encode()
    return next((item.removeprefix(prefix).decode() for item in variables if item.startswith(prefix)), "")


def _started(pid: int) -> int:
    """Field 22 of /proc/PID/stat; 0 when the process is gone."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return 0
    return int(after_name.split()[19])


def _signal(process: Running, token: str, number: signal.Signals) -> None:
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        if _role(process.pid, token) == process.role:
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)
