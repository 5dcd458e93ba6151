"""What is installed against what the kit came with: the wheel by its SHA-256, and every file of it on this disk."""

import hashlib
import importlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from wardpose.client.findings import Finding, Status, finding
from wardpose.client.home import SiteHome
from wardpose.shared.errors import one_line
from wardpose.shared.files import OTHERS, sha256_file
from wardpose.shared.version import code_hash, version

_PACKAGE = "wardpose"
_ROOMS = ("client", "server", "shared", "simulation")


def check_installed(home: SiteHome) -> Finding:
    """See that the code that runs here is the wheel that the kit names.

    Installed files are compared with the wheel's own, byte by byte: a copy that was changed after it was installed is
    found, too.
    """
    wheels = sorted(home.wheels.glob("wardpose-*.whl"))
    if len(wheels) != 1:
        return finding(
            "installed",
            "warning",
            f"{home.wheels}: {len(wheels)} wheels (allowed: the kit's one); the code here (version {version()}, "
            f"{code_hash()[:12]}) cannot be held against the kit",
        )
    wheel = wheels[0]
    found = sha256_file(wheel)
    if found != home.settings.wheel:
        return finding(
            "installed",
            "failure",
            f"{wheel}: SHA-256 {found[:16]}, but kit.yaml says {home.settings.wheel[:16]}: it was changed or replaced; "
            "unpack the kit again, and do not install this one",
        )
    try:
        differ = list(_differences(wheel))
    except (OSError, zipfile.BadZipFile) as error:
        return finding("installed", "failure", f"{wheel}: cannot be read ({one_line(error)}); unpack the kit again")
    if differ:
        return finding(
            "installed",
            "failure",
            f"{len(differ)} files are not those of {wheel.name}: the server would refuse this site's code (1003). "
            f"Install it: pip install --force-reinstall --no-deps {wheel}",
            differ,
        )
    return finding("installed", "ok", f"{wheel.name}, every file as in the kit; code {code_hash()[:12]}")


def _differences(wheel: Path) -> Iterator[str]:
    """Yield the Python files of a wheel that are missing here, or others."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            package, _, rest = name.partition("/")
            room, _, file = rest.partition("/")
            if package != _PACKAGE or room not in _ROOMS or not file.endswith(".py"):
                continue
            here = _folder(room) / file
            if not here.is_file():
                yield f"{name}: is missing here"
            elif hashlib.sha256(here.read_bytes()).digest() != hashlib.sha256(archive.read(name)).digest():
                yield f"{name}: is another one here"


def _folder(room: str) -> Path:
    """Return where a room is imported from, an installation or a checkout."""
    return Path(str(importlib.import_module(f"{_PACKAGE}.{room}").__file__)).parent


def check_modes(home: SiteHome) -> Finding:
    """See that nothing in the site's home may be read by anybody else, but for the environment installed in it."""
    environment = home.folder / "venv"
    paths = [home.folder, *(path for path in sorted(home.folder.rglob("*")) if environment not in path.parents)]
    shown = [path for path in paths if not path.is_symlink() and path.stat().st_mode & OTHERS]
    if not shown:
        return finding("rights", "ok", f"{home.folder}: its owner's alone")
    secret = [path for path in shown if home.keys in (path, path.parent)]
    status: Status = "failure" if secret else "warning"
    return finding(
        "rights",
        status,
        f"{len(shown)} files or folders may be read by others: chmod -R go= {home.folder}",
        [f"{path} ({path.stat().st_mode & 0o777:o})" for path in secret or shown],
    )
