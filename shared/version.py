"""Which code runs: its version and a hash of it, so that server and sites can refuse another one."""

import hashlib
from functools import cache
from importlib.metadata import version as distribution_version
from pathlib import Path

_SHARED = Path(__file__).resolve().parent
_PACKAGES = ("client", "server", "shared")


def version() -> str:
    """Version of the installed distribution."""
    return distribution_version("wardpose")


@cache
def code_hash() -> str:
    """SHA-256 over names and bytes of all Python files of `client`, `server` and `shared`."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        folder = _SHARED.parent / package
        for path in sorted(folder.rglob("*.py")):
            digest.update(f"{package}/{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def installed_files() -> dict[str, tuple[int, int]]:
    """Return size and time of change of each file that `code_hash` covers: other values mean that code has changed."""
    found = {}
    for package in _PACKAGES:
        for path in (_SHARED.parent / package).rglob("*.py"):
            status = path.stat()
            found[str(path)] = (status.st_size, status.st_mtime_ns)
    return found


def versions() -> dict[str, str]:
    """Versions of what decides a result, for reports."""
    names = ("wardpose", "flwr", "torch", "timm", "dp-accounting", "numpy")
    return {name: distribution_version(name) for name in names} | {"code": code_hash()[:12]}
