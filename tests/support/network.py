"""Hosts with addresses of their own on this machine: network namespaces on one bridge, a coordinator and hospitals.

Nothing outside the namespaces is touched: the bridge is in a namespace, too, and everything goes with `close`. Names
are known by `/etc/netns/HOST/hosts`, which `ip netns exec` lays over `/etc/hosts`.
"""

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ETC = Path("/etc/netns")
_MOUNTS = Path("/proc/self/mounts")


def unavailable() -> str:
    """Say why there can be no such network here; nothing where there can."""
    if os.geteuid() != 0:
        return "network namespaces are made by root"
    for name in ("ip", "setpriv"):
        if shutil.which(name) is None:
            return f"{name} is not installed"
    name = f"wp-try-{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespaces: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


@dataclass(frozen=True)
class Host:
    """A machine of the network.

    Attributes:
        name: by which the other hosts know it.
        address: its IPv4 address.
        namespace: in which its processes run.

    """

    name: str
    address: str
    namespace: str
    hub: str

    def command(self, *words: str) -> list[str]:
        """Return the command that runs another on this host."""
        return ["ip", "netns", "exec", self.namespace, *words]

    def run(
        self, *words: str, environment: Mapping[str, str] | None = None, timeout: float = 120, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end, and return what it printed."""
        return subprocess.run(
            self.command(*words),
            env=None if environment is None else dict(environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            **more,
        )

    def start(
        self, *words: str, log: Path, environment: Mapping[str, str] | None = None, **more: Any
    ) -> subprocess.Popen[bytes]:
        """Start a command on this host, in a process group of its own, that writes to a log."""
        with log.open("ab") as output:
            return subprocess.Popen(
                self.command(*words),
                env=None if environment is None else dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **more,
            )

    def processes(self, containing: str = "") -> list[int]:
        """Return the process ids on this host whose command line contains a text."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True
        ).stdout.split()
        return [int(number) for number in listed if containing in _command_line(int(number))]

    def kill(self, containing: str, how: int = signal.SIGKILL) -> list[int]:
        """Signal the processes on this host whose command line contains a text; return their ids."""
        found = self.processes(containing)
        for number in found:
            with suppress(ProcessLookupError):
                os.kill(number, how)
        return found

    def cut(self) -> None:
        """Pull the cable: packets vanish, and nobody is told."""
        _ip("-n", self.hub, "link", "set", self.name, "down")

    def mend(self) -> None:
        """Plug the cable in again."""
        _ip("-n", self.hub, "link", "set", self.name, "up")


class Network:
    """Hosts on a bridge, 10.77.0.1 the first.

    Args:
        names: of the hosts.
        aliases: more names by which a host is known, by its name.

    """

    def __init__(self, names: Sequence[str], aliases: Mapping[str, str] | None = None) -> None:
        self._tag = f"wp{secrets.token_hex(3)}"
        self._hub = f"{self._tag}-hub"
        self._folders: list[Path] = []
        self.hosts: dict[str, Host] = {}
        try:
            _ip("netns", "add", self._hub)
            _ip("-n", self._hub, "link", "add", "bridge", "type", "bridge")
            _ip("-n", self._hub, "link", "set", "bridge", "up")
            known = ["127.0.0.1 localhost\n"]
            for number, name in enumerate(names, start=1):
                self.hosts[name] = self._add(name, f"10.77.0.{number}")
                known.append(f"10.77.0.{number} {name} {(aliases or {}).get(name, '')}\n")
            for host in self.hosts.values():
                folder = _ETC / host.namespace
                folder.mkdir(parents=True)
                self._folders.append(folder)
                (folder / "hosts").write_text("".join(known))
                (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        except BaseException:
            self.close()
            raise

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __enter__(self) -> "Network":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process on every host, and the hosts."""
        for host in self.hosts.values():
            host.kill("")
            subprocess.run(["ip", "netns", "del", host.namespace], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", self._hub], capture_output=True, check=False)
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def _add(self, name: str, address: str) -> Host:
        host = Host(name, address, f"{self._tag}-{name}", self._hub)
        _ip("netns", "add", host.namespace)
        self.hosts[name] = host
        _ip("-n", host.namespace, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", self._hub)
        _ip("-n", self._hub, "link", "set", name, "master", "bridge", "up")
        _ip("-n", host.namespace, "address", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", host.namespace, "link", "set", "eth0", "up")
        _ip("-n", host.namespace, "link", "set", "lo", "up")
        return host


class SmallDisk:
    """A folder on a disk of its own, which can be filled.

    Args:
        folder: made if missing.
        size: in bytes.

    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)], check=True)

    def fill(self) -> None:
        """Leave not one byte free."""
        with (self.folder / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            for size in (1 << 20, 1 << 12, 1):
                with suppress(OSError):
                    while filler.write(b"\0" * size):
                        pass

    def free(self) -> None:
        """Give the room back."""
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it."""
        if str(self.folder) in _MOUNTS.read_text():
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _command_line(number: int) -> str:
    try:
        return Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
