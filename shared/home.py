"""A home: the one folder that an archive of `wardpose provision` is installed in, a server's or a site's.

Everything of its machine but a hospital's frames lies below it, so that it may be anywhere, belong to anybody, and be
backed up as a whole.
"""

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from wardpose.shared.errors import ConfigError, one_line

LOOPBACK = "127.0.0.1"

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Home(Generic[Settings]):
    """What both kinds of homes have.

    Attributes:
        folder: absolute.
        settings: of the file by which the home is known.

    """

    folder: Path
    settings: Settings

    @property
    def keys(self) -> Path:
        """Folder of certificates and keys."""
        return self.folder / "keys"

    @property
    def authority(self) -> Path:
        """Certificate of the federation's authority, which signed the server's."""
        return self.keys / "ca.crt"

    @property
    def secret(self) -> Path:
        """What Flower's process and the executor on this machine prove themselves to each other with."""
        return self.keys / "superexec.secret"

    @property
    def log(self) -> Path:
        """Folder of logs."""
        return self.folder / "log"


def find_home(folder: Path | None, *, variable: str, file: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of an installed archive: the one given, else the environment's, else the working directory.

    Args:
        folder: what `--home` says.
        variable: of the environment.
        file: by which such a folder is known.
        environment: its variables.

    Raises:
        ConfigError: it holds no such file.

    """
    named = environment.get(variable)
    where = folder or (Path(named) if named else Path.cwd())
    home = where.expanduser().resolve()
    if not (home / file).is_file():
        raise ConfigError(
            f"{one_line(home)}: holds no {file} (allowed: a folder that an archive of wardpose provision was installed "
            f"in, named by --home, by {variable}, or as the working directory)"
        )
    become_owner(home)
    return home


def become_owner(folder: Path) -> None:
    """As root, go on as the user whose a home is; nothing happens to anybody else, and in root's own folders.

    What root made in it (a journal, a ledger's witness) would be closed to the units that run as that user, and files
    that another user may change are no place for root to write to.

    Args:
        folder: the home.

    Raises:
        ConfigError: this root cannot become that user.
        OSError: the folder cannot be looked at.

    """
    owner = folder.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        return
    try:
        _become(owner.st_uid, owner.st_gid)
    except OSError as error:  # a root of a container, say, that may not
        raise ConfigError(
            f"{one_line(folder)}: belongs to user {owner.st_uid}, who root cannot become here ({error.strerror}; "
            "allowed: to run this as that user)"
        ) from error
    os.umask(0o077)


def _become(user: int, group: int) -> None:
    try:
        known = pwd.getpwuid(user)
    except KeyError:
        os.setgroups([])
    else:
        os.initgroups(known.pw_name, group)
        os.environ["HOME"] = known.pw_dir
    os.setgid(group)
    os.setuid(user)
