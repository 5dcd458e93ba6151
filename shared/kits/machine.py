"""An archive becomes a machine's own: below one folder as whoever asks, or, as root, for the whole machine.

For the whole machine means: a user `wardpose` who owns the home, and systemd units that are in place and not yet
enabled. Nothing is started.
"""

import os
import pwd
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from wardpose.shared.files import write_bytes
from wardpose.shared.kits.archive import KitError
from wardpose.shared.kits.placing import HOMES, Placed, place
from wardpose.shared.kits.seal import Kit
from wardpose.shared.kits.wheels import code_hash_of
from wardpose.shared.version import code_hash

USER = "wardpose"
_UNITS = Path("/etc/systemd/system")
_UNIT_MODE = 0o644  # anybody may ask systemd for them anyway


@dataclass(frozen=True, kw_only=True)
class Installed:
    """What an installation did.

    Attributes:
        placed: the home.
        units: names of the systemd units that were put in place; none below one folder.

    """

    placed: Placed
    units: tuple[str, ...] = ()


def install(kit: Kit, *, home: Path | None = None) -> Installed:
    """Install an archive.

    Args:
        kit: as `open_kit` checked it.
        home: below which everything goes; for the whole machine, as root, when absent.

    Raises:
        KitError: another wardpose than the archive's is running here; nobody may install for the whole machine but
            root; `place` refuses.
        StorageError: something cannot be written.

    """
    _refuse_other_code(kit)
    binaries = Path(sys.executable).parent
    if home is not None:
        return Installed(placed=place(kit, home, binaries=binaries))
    if os.geteuid() != 0:
        raise KitError("--home: is needed without root (allowed: a folder, below which everything goes)")
    placed = place(kit, Path(HOMES[kit.role]), binaries=binaries)
    _own(placed.home)
    names = sorted(name for name in kit.files if name.startswith("systemd/"))
    for name in names:
        write_bytes(_UNITS / Path(name).name, (placed.home / name).read_bytes(), mode=_UNIT_MODE)
    if shutil.which("systemctl") is not None and Path("/run/systemd/system").is_dir():
        subprocess.run(["systemctl", "daemon-reload"], check=False)  # noqa: S607 (root's own)
    return Installed(placed=placed, units=tuple(Path(name).stem for name in names))


def _refuse_other_code(kit: Kit) -> None:
    (wheel,) = (name for name in kit.files if name.startswith("wheel/") and name.endswith(".whl"))
    wanted = code_hash_of(kit.files[wheel].content)
    if wanted != code_hash():
        raise KitError(
            f"{kit.where}: brings wardpose with code {wanted[:12]}, and this one has {code_hash()[:12]} (allowed: the "
            f"same, as sh install.sh of the archive brings it, or pip install --force-reinstall --no-deps {wheel})"
        )


def _own(home: Path) -> None:
    """Give a home to the user of the units, who is made when missing."""
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        done = subprocess.run(  # noqa: S603
            ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", USER],  # noqa: S607 (root's own)
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise KitError(f"user {USER}: cannot be made ({done.stderr.strip()})") from None
        user = pwd.getpwnam(USER)
    for path in (home, *home.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
