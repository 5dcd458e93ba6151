"""A machine with systemd as its first process, in namespaces of its own: `/etc`, `/opt` and `/var` are copies on write.

What it writes lies below one folder, so that it can be cut off from its power and started again. It has a loopback
network and nothing else, and a `/tmp` of its own, which systemd empties. Its programs are this machine's.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

_BOOT = """
set -e
base=$1
for folder in etc opt var; do
    mkdir -p "$base/upper/$folder" "$base/work/$folder"
    mount -t overlay overlay -o "lowerdir=/$folder,upperdir=$base/upper/$folder,workdir=$base/work/$folder" "/$folder"
done
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp  # which systemd empties
mkdir -p /run/lock
ip link set lo up
mount -t cgroup2 cgroup2 /sys/fs/cgroup
container=docker exec /lib/systemd/systemd --system --unit=multi-user.target --show-status=no
"""
_UNSHARE = ("unshare", "--fork", "--pid", "--mount", "--net", "--cgroup", "--uts", "--ipc", "--mount-proc")
_HIDDEN = ("/root", "/home", "/run/user")  # from units: ProtectHome=


def system_python() -> str:
    """Return a Python of this version that units can see; "" where there is none."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = shutil.which(f"python{version}", path="/usr/bin:/usr/local/bin")
    for path in (Path(getattr(sys, "_base_executable", sys.executable)), *([Path(found)] if found else [])):
        if not any(path.resolve().is_relative_to(hidden) for hidden in _HIDDEN):
            return str(path)
    return ""


def impossible() -> str:
    """Say why there can be no such machine here; nothing where there can."""
    if os.geteuid() != 0:
        return "namespaces of a machine are made by root"
    if not Path("/lib/systemd/systemd").is_file() or not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return "systemd, unshare, nsenter or ip is not installed"
    if not system_python():
        return "units see no Python of this version"
    tried = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True, check=False)
    return f"no namespaces: {tried.stderr.strip()}" if tried.returncode else ""


class Machine:
    """One machine.

    Attributes:
        folder: of everything that it writes.

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._first = 0
        self._holder: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """Switch it on, and wait until its first units are up."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / "boot.sh").write_text(_BOOT)
        words = [*_UNSHARE, "--propagation", "private", "bash", self.folder / "boot.sh", self.folder]
        with (self.folder / "boot.log").open("ab") as log:
            self._holder = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._first = self._find_first()
        until = time.monotonic() + 60
        while self.run("systemctl", "is-active", "multi-user.target").stdout.strip() != "active":
            if time.monotonic() > until:
                pytest.fail(f"it does not come up: {(self.folder / 'boot.log').read_text()[-2000:]}")
            time.sleep(0.5)

    def bring(self, file: Path, folder: str) -> None:
        """Put a file into a folder below /var, before it is switched on for the first time."""
        place = self.folder / "upper" / folder.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place / file.name)

    def cut(self) -> None:
        """Take its power away: every process is gone at once."""
        if self._holder is None:
            return
        with suppress(ProcessLookupError):
            os.kill(self._first, signal.SIGKILL)
        self._holder.wait(timeout=60)
        self._holder = None

    def run(
        self, *words: str | Path, timeout: float = 200, cwd: str = "/", check: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as its root to the end."""
        inside = ("nsenter", "-t", str(self._first), "-m", "-p", "-n", "-u", "-i", "-C", "--")
        there = ("sh", "-c", 'cd "$0" && exec "$@"', cwd)
        environment = {"PATH": "/opt/wardpose/bin:/usr/sbin:/usr/bin:/sbin:/bin", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*inside, *there, *map(str, words)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def state(self, unit: str) -> str:
        """Return a unit's state in systemd's word."""
        return self.run("systemctl", "is-active", unit).stdout.strip()

    def main_process(self, unit: str) -> int:
        """Return the number that a unit's main process has inside."""
        return int(self.run("systemctl", "show", "--property=MainPID", "--value", unit).stdout)

    def journal(self, unit: str) -> str:
        """Return the last lines of a unit."""
        return self.run("journalctl", "--no-pager", "-o", "cat", "-n", "60", "-u", unit).stdout

    def _find_first(self) -> int:
        """Return the number outside of the process that is the first one inside."""
        assert self._holder is not None
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        until = time.monotonic() + 20
        while time.monotonic() < until:
            if self._holder.poll() is not None:
                break
            for child in children.read_text().split():
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return int(child)
            time.sleep(0.1)
        pytest.skip(f"no systemd in a namespace: {(self.folder / 'boot.log').read_text()[-500:]}")
