"""How the files of an archive come into a home: checked as a whole first, keys and what people wrote left alone.

A new home appears whole or not at all. In one that is there, each file is replaced by itself, and the file by which a
home is known goes last: whatever ends an installation half-way, the same command again completes it.
"""

import datetime
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from wardpose.shared.errors import StorageError
from wardpose.shared.files import storage_error, write_bytes
from wardpose.shared.kits.archive import PRIVATE_FOLDER, KitError, KitFile
from wardpose.shared.kits.seal import SERVER_FILE, SIGNER, SITE_FILE, Kit, Role, fingerprint_of
from wardpose.shared.signing import load_signer, read_public_key

HOMES: dict[Role, str] = {"server": "/var/lib/wardpose-server", "site": "/var/lib/wardpose-site"}
"""Where a home is unless somebody says so; archives have their paths filled in for it."""
BINARIES = "/opt/wardpose/bin"
"""Where Wardpose is installed unless somebody says so."""

WRITTEN_BY_PEOPLE: dict[Role, tuple[str, ...]] = {
    "server": ("federation.yaml", "coordinator.yaml"),
    "site": ("site.yaml",),
}
_FILLED_IN = ("nginx.conf", "operator/", "prometheus/", "grafana/", "systemd/", "compose/", "READ-ME-FIRST.md")
_KEYS: dict[Role, dict[str, str]] = {
    "server": {"keys/server.key": "keys/server.crt", "coordinator/coordinator.key": "coordinator/coordinator.pub"},
    "site": {"keys/node.key": "keys/node.pub", "keys/budget.key": "keys/budget.crt"},
}
_SECRET = "keys/superexec.secret"  # noqa: S105 (a file's name)
_SECRET_BYTES = 48
_PLACE = re.compile(r"/[A-Za-z0-9_./@+-]*")
_WHO: dict[Role, tuple[str, ...]] = {"server": ("name",), "site": ("site", "federation")}
_FOLDERS: dict[Role, tuple[str, ...]] = {"server": ("superlink", "runs", "log"), "site": ("state", "log")}


@dataclass(frozen=True, kw_only=True)
class Placed:
    """What an installation did.

    Attributes:
        home: the folder.
        new: whether no archive had been installed there before.
        kept: files that people wrote and that stay as they are; what the archive has is beside each as `.new`.

    """

    home: Path
    new: bool
    kept: tuple[str, ...]


def place(kit: Kit, home: Path, *, binaries: Path = Path(BINARIES)) -> Placed:
    """Put an archive into a home.

    Args:
        kit: as `open_kit` checked it.
        home: new, empty, or one that the same machine's archive was put in before.
        binaries: folder of the installed programs, for units.

    Raises:
        KitError: another machine's or federation's archive is there; a key would be overwritten, is missing, or does
            not belong to its certificate; a certificate has ended; a path holds what units cannot name.
        StorageError: it cannot be written.

    """
    home = home.expanduser().resolve()
    for path in (home, binaries):
        if _PLACE.fullmatch(str(path)) is None:
            raise KitError(f"{path}: cannot stand in units (allowed: letters, digits and _./@+- alone)")
    if kit.where.resolve() == home:
        raise KitError(f"{home}: is the unpacked archive itself (allowed: another folder as home)")
    try:
        empty = not home.exists() or not any(home.iterdir())
        new = empty or not (home / _known(kit.role)).exists()
        if not empty:
            _check_same(kit, home)
        _check_keys(kit, home)
        _check_dates(kit)
        files = dict(_filled_in(kit, home, binaries))
        if _SECRET not in files and not (home / _SECRET).exists():
            files[_SECRET] = KitFile(content=secrets.token_bytes(_SECRET_BYTES))
        kept = () if empty else _kept(kit, home, files)
        if empty:
            _place_new(kit.role, home, files)
        else:
            _write(kit.role, home, files)
            _remove_old_wheels(kit, home)
    except PermissionError as error:
        raise storage_error(error, home) from error
    return Placed(home=home, new=new, kept=kept)


def _check_same(kit: Kit, home: Path) -> None:
    """See that a home is this machine's, and was made by the same signing key."""
    known = _known(kit.role)
    if not (home / known).exists():
        prepared = {"keys", "log"} | {path.name for path in home.glob("*.request")} | {"venv"}
        others = sorted({path.name for path in home.iterdir()} - prepared)
        if others:
            raise KitError(f"{home}: holds {others[0]} (allowed: a new folder, or the home of this archive)")
        return
    before, after = _who(kit.role, (home / known).read_bytes()), _who(kit.role, kit.files[known].content)
    if before != after:
        raise KitError(f"{home}: is the home of {before}, not of {after} (allowed: a home for each)")
    signer = home / SIGNER
    if signer.exists() and fingerprint_of(signer.read_bytes()) != kit.fingerprint:
        raise KitError(
            f"{home}: was installed from archives of the key {fingerprint_of(signer.read_bytes())}, and this one is "
            f"of {kit.fingerprint}; ask the coordinator by another way (if it is right, remove {signer})"
        )


def _known(role: Role) -> str:
    return SERVER_FILE if role == "server" else SITE_FILE


def _who(role: Role, content: bytes) -> str:
    found: Any = yaml.safe_load(content)
    return ", ".join(str(found.get(key)) for key in _WHO[role]) if isinstance(found, dict) else "nobody"


def _check_keys(kit: Kit, home: Path) -> None:
    for private, public in _KEYS[kit.role].items():
        there, comes = home / private, kit.files.get(private)
        if there.exists():
            load_signer(there)  # readable by its owner alone
            if comes is not None and comes.content != there.read_bytes():
                raise KitError(f"{there}: is another key than the archive's (allowed: keep one; move it away by hand)")
        elif comes is None:
            raise KitError(
                f"{there}: is missing, and the archive brings none: it was made for a key that stays where it was made "
                "(allowed: the home in which that key lies)"
            )
        content = there.read_bytes() if there.exists() else kit.files[private].content
        if _public_of_private(content) != _public_text(kit.files[public].content, public):
            raise KitError(f"{there}: is not the key that {public} of the archive belongs to (ask for a new archive)")


def _public_of_private(content: bytes) -> str:
    openssh = b"OPENSSH" in content.partition(b"\n")[0]
    load = serialization.load_ssh_private_key if openssh else serialization.load_pem_private_key
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return load(content, password=None).public_key().public_bytes(*form).decode()


def _public_text(content: bytes, name: str) -> str:
    if name.endswith(".crt"):
        form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        return x509.load_pem_x509_certificate(content).public_key().public_bytes(*form).decode()
    return read_public_key(content.decode("ascii", "replace"), name).text


def _check_dates(kit: Kit) -> None:
    now = datetime.datetime.now(datetime.UTC)
    for name, file in sorted(kit.files.items()):
        if not name.endswith(".crt"):
            continue
        certificate = x509.load_pem_x509_certificate(file.content)
        if now > certificate.not_valid_after_utc:
            raise KitError(
                f"{kit.where}: {name} ended at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; ask the "
                "coordinator for a new archive (wardpose provision --renew)"
            )
        if now < certificate.not_valid_before_utc:
            raise KitError(
                f"{kit.where}: {name} begins at {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC and it is "
                f"{now:%Y-%m-%d %H:%M} here; set this machine's clock"
            )


def _filled_in(kit: Kit, home: Path, binaries: Path) -> Iterator[tuple[str, KitFile]]:
    """Yield the files, with this home's paths in place of those that the archive was made for."""
    paths = {HOMES[kit.role]: str(home), BINARIES: str(binaries)}
    for name, file in kit.files.items():
        content = file.content
        if name.startswith(_FILLED_IN):
            for old, new in paths.items():
                content = content.replace(old.encode(), new.encode())
        yield name, KitFile(content=content, mode=file.mode)


def _kept(kit: Kit, home: Path, files: dict[str, KitFile]) -> tuple[str, ...]:
    """Put what people may have changed beside it instead; returns which files that were."""
    kept = []
    for name in WRITTEN_BY_PEOPLE[kit.role]:
        if name in files and (home / name).exists():
            file = files.pop(name)
            if (home / name).read_bytes() != file.content:
                files[f"{name}.new"] = file
                kept.append(name)
    for name in _KEYS[kit.role]:
        if (home / name).exists():
            files.pop(name, None)
    if (home / _SECRET).exists():
        files.pop(_SECRET, None)
    return tuple(kept)


def _place_new(role: Role, home: Path, files: dict[str, KitFile]) -> None:
    staged = home.with_name(f".{home.name}.{secrets.token_hex(6)}")
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        _write(role, staged, files)
        if home.exists():
            home.rmdir()
        staged.rename(home)
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(error, home) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _write(role: Role, home: Path, files: dict[str, KitFile]) -> None:
    last = _known(role)
    for folder in {home, *(home / name for name in _FOLDERS[role]), *((home / name).parent for name in files)}:
        for missing in reversed([folder, *folder.parents]):
            if missing == home or home in missing.parents:
                missing.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
                missing.chmod(PRIVATE_FOLDER)
    for name in sorted(files, key=lambda name: (name == last, name)):
        write_bytes(home / name, files[name].content, mode=files[name].mode & PRIVATE_FOLDER)  # nobody else's business


def _remove_old_wheels(kit: Kit, home: Path) -> None:
    for path in (home / "wheel").glob("*.whl"):
        if f"wheel/{path.name}" not in kit.files:
            with suppress(OSError):
                os.unlink(path)
