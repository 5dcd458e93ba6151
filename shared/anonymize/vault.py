"""Authorised recovery: G_Y and the key under lock, and a log of everybody who used them.

A vault is a folder:

    vault.json      public: the recovery public key, the people, and the private key sealed to each of them
    recovery.sealed the weights of G_X and G_Y, encrypted
    originals/      exact originals, encrypted, where they are kept
    access.log      who recovered what, and why

A person holds an X25519 key pair. The private half is either their own file, or lies in `vault.json`
encrypted under a passphrase (scrypt n=2**16, AES-256-GCM). With `two_persons` the recovery key is split for
every pair of people (one-time pad), so that one person alone holds nothing. Anonymising needs only the public
key of `vault.json`.
"""

import hashlib
import hmac
import itertools
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardpose.shared import files
from wardpose.shared.anonymize import sealing, weights_file
from wardpose.shared.anonymize.access_log import AccessLog, Entry
from wardpose.shared.errors import ConfigError, RecoveryError

_SCRYPT_N = 2**16
_MIN_PASSPHRASE = 12


@dataclass(frozen=True, kw_only=True)
class NewPerson:
    """Somebody who will be able to recover: by a passphrase or by a public key of theirs (exactly one)."""

    name: str
    passphrase: str | None = None
    public_key: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Credential:
    """What a person shows: their passphrase or their private key (exactly one). Never logged."""

    name: str
    passphrase: str | None = None
    private_key: bytes | None = None

    def __repr__(self) -> str:
        return f"Credential(name={self.name!r}, ...)"


class _Person(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    public_key: str
    locked_private_key: str | None = None
    salt: str | None = None


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int
    public_key: str
    weights_sha256: str
    two_persons: bool
    people: list[_Person]
    shares: dict[str, list[str]]


def create_vault(
    folder: Path, people: Sequence[NewPerson], *, weights_path: Path, two_persons: bool = False
) -> "Vault":
    """Make a vault with a fresh recovery key that only `people` can use.

    Raises:
        ConfigError: the folder exists, too few people, a name twice, a short passphrase, weights of the wrong
            kind.
        DataError: it cannot be written; nothing is left behind then.

    """
    if (folder / "vault.json").exists():
        raise ConfigError(f"{folder}: there is a vault already")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: a vault needs a new or an empty folder")
    if len(people) < (2 if two_persons else 1):
        raise ConfigError(f"a vault needs {2 if two_persons else 1} people or more, {len(people)} were named")
    if len({person.name for person in people}) != len(people):
        raise ConfigError("a person is named twice")
    if weights_file.read_info(weights_path).kind != "recoverable":
        raise ConfigError(f"{weights_path}: only weights of kind recoverable belong into a vault")
    private = sealing.generate()
    public = sealing.public_of(private)
    persons = [_enrol(person) for person in people]
    header = _Header(
        version=1,
        public_key=public.hex(),
        weights_sha256=files.sha256_file(weights_path),
        two_persons=two_persons,
        people=persons,
        shares=_split(private, persons, two_persons),
    )
    with files.storing(folder, "no vault was made"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            made = Path(temporary) / "vault"
            made.mkdir(mode=0o700)
            sealed = sealing.seal(public, weights_path.read_bytes(), b"wardpose weights")
            files.write_bytes(made / "recovery.sealed", sealed, mode=0o600)
            log = AccessLog(made / "access.log")
            names = [person.name for person in people]
            log.append(action="create", who=names, why="vault created", what=public.hex(), key=_log_key(private))
            files.write_bytes(made / "vault.json", header.model_dump_json(indent=2).encode(), mode=0o600)
            made.rename(folder)
    return Vault(folder)


class Vault:
    """A vault as everybody sees it: locked."""

    def __init__(self, folder: Path) -> None:
        """Open it.

        Raises:
            RecoveryError: there is none, or `vault.json` is broken.

        """
        self.folder = folder
        path = folder / "vault.json"
        try:
            self._header = _Header.model_validate_json(path.read_bytes())
            self.public_key = bytes.fromhex(self._header.public_key)
        except FileNotFoundError as error:
            raise RecoveryError(f"{folder}: there is no vault (no vault.json)") from error
        except (ValidationError, ValueError) as error:
            raise RecoveryError(f"{path}: the vault's header is broken") from error
        self.log = AccessLog(folder / "access.log")

    @property
    def two_persons(self) -> bool:
        """Whether it takes two people."""
        return self._header.two_persons

    @property
    def weights_sha256(self) -> str:
        """The weights that frames must be written with so that this vault's G_Y can read them."""
        return self._header.weights_sha256

    @property
    def people(self) -> tuple[str, ...]:
        """Names of those who may recover."""
        return tuple(person.name for person in self._header.people)

    def seal_original(self, anonymised_sha256: str, name: str, content: bytes) -> Path:
        """Keep the exact bytes of an original, encrypted, under the hash of its anonymised file; needs no secret.

        Raises:
            DataError: it cannot be written.

        """
        path = self.original_path(anonymised_sha256)
        head = json.dumps({"name": name, "sha256": anonymised_sha256}).encode() + b"\n"
        with files.storing(path, "the anonymised file is there, the same command seals its original"):
            files.write_bytes(path, sealing.seal(self.public_key, head + content, b"wardpose original"), mode=0o600)
        return path

    def original_path(self, anonymised_sha256: str) -> Path:
        """Say where the original of an anonymised file lies, if it was sealed."""
        return self.folder / "originals" / f"{anonymised_sha256}.sealed"

    def unlock(self, credentials: Sequence[Credential], *, why: str) -> "OpenVault":
        """Show the credentials; a refused attempt is logged.

        Raises:
            RecoveryError: unknown person, wrong passphrase or key, too few people, no reason, a tampered log.

        """
        if not why.strip():
            raise RecoveryError("a recovery needs a reason")
        self.log.entries()
        names = [credential.name for credential in credentials]
        try:
            private = self._private_key(credentials)
        except RecoveryError:
            self.log.append(action="denied", who=names, why=why, what="unlock", key=None)
            raise
        self.log.entries(_log_key(private))
        return OpenVault(self, private, names, why)

    def _private_key(self, credentials: Sequence[Credential]) -> bytes:
        needed = 2 if self.two_persons else 1
        by_name = {credential.name: credential for credential in credentials}
        if len(by_name) < needed:
            raise RecoveryError(f"this vault needs {needed} different people, {len(by_name)} came")
        chosen = sorted(by_name)[:needed]
        label = "+".join(chosen)
        keys = [self._personal_key(by_name[name]) for name in chosen]
        shares = [
            sealing.unseal(key, bytes.fromhex(share), b"share " + label.encode())
            for key, share in zip(keys, self._header.shares[label], strict=True)
        ]
        private = shares[0] if needed == 1 else bytes(a ^ b for a, b in zip(*shares, strict=True))
        if sealing.public_of(private) != self.public_key:
            raise RecoveryError(f"{self.folder / 'vault.json'}: the shares do not fit the vault's public key")
        return private

    def _personal_key(self, credential: Credential) -> bytes:
        person = next((person for person in self._header.people if person.name == credential.name), None)
        if person is None:
            raise RecoveryError(f'"{credential.name}" is not among the people of this vault')
        if person.locked_private_key is None or person.salt is None:
            if credential.private_key is None:
                raise RecoveryError(f"{credential.name} has a key pair: show the private key")
            if sealing.public_of(credential.private_key).hex() != person.public_key:
                raise RecoveryError(f"wrong private key for {credential.name}")
            return credential.private_key
        if credential.passphrase is None:
            raise RecoveryError(f"{credential.name} has a passphrase")
        salt, locked = bytes.fromhex(person.salt), bytes.fromhex(person.locked_private_key)
        try:
            key = _stretch(credential.passphrase, salt)
            return AESGCM(key).decrypt(salt[:12], locked, person.name.encode())
        except InvalidTag:
            raise RecoveryError(f"wrong passphrase for {credential.name}") from None


class OpenVault:
    """A vault in the hands of authorised people; every use of the key goes through it and is logged."""

    def __init__(self, vault: Vault, private_key: bytes, who: Sequence[str], why: str) -> None:
        self._vault, self._private_key, self._who, self._why = vault, private_key, tuple(who), why

    def __repr__(self) -> str:
        return f"OpenVault(folder={str(self._vault.folder)!r}, who={self._who!r})"

    def weights(self) -> bytes:
        """Decrypt the weights file of G_X and G_Y.

        Raises:
            RecoveryError: it is missing or was changed.

        """
        path = self._vault.folder / "recovery.sealed"
        if not path.exists():
            raise RecoveryError(f"{path}: the vault's weights are missing")
        return sealing.unseal(self._private_key, path.read_bytes(), b"wardpose weights")

    def authorise(self, what: str, action: str = "recover") -> bytes:
        """Log that `what` is being recovered and only then hand out the private key.

        Raises:
            RecoveryError: the log cannot be written or was tampered with.

        """
        self._vault.log.append(action=action, who=self._who, why=self._why, what=what, key=_log_key(self._private_key))
        return self._private_key

    def original(self, anonymised: Path) -> tuple[str, bytes]:
        """Name and exact content of the original that was sealed with an anonymised file.

        Raises:
            RecoveryError: none was sealed with it, or it was changed or exchanged.

        """
        sha256 = files.sha256_file(anonymised)
        path = self._vault.original_path(sha256)
        if not path.is_file():
            raise RecoveryError(f"{anonymised}: no original was sealed with this file")
        key = self.authorise(f"original of {anonymised.name} {sha256}", "open-original")
        head, _, content = sealing.unseal(key, path.read_bytes(), b"wardpose original").partition(b"\n")
        if json.loads(head)["sha256"] != sha256:
            raise RecoveryError(f"{path}: the original was exchanged for another one")
        return str(json.loads(head)["name"]), content

    def entries(self) -> list[Entry]:
        """Read the access log, fully checked."""
        return self._vault.log.entries(_log_key(self._private_key))


def _enrol(person: NewPerson) -> _Person:
    if (person.passphrase is None) == (person.public_key is None):
        raise ConfigError(f"{person.name}: give a passphrase or a public key, one of them")
    if "+" in person.name or not person.name.strip():
        raise ConfigError(f'"{person.name}" cannot be a name (not empty, no "+")')
    if person.public_key is not None:
        sealing.fingerprint(person.public_key)
        return _Person(name=person.name, public_key=person.public_key.hex())
    if person.passphrase is None or len(person.passphrase) < _MIN_PASSPHRASE:
        raise ConfigError(f"{person.name}: a passphrase has at least {_MIN_PASSPHRASE} characters")
    private, salt = sealing.generate(), os.urandom(16)
    locked = AESGCM(_stretch(person.passphrase, salt)).encrypt(salt[:12], private, person.name.encode())
    return _Person(
        name=person.name,
        public_key=sealing.public_of(private).hex(),
        locked_private_key=locked.hex(),
        salt=salt.hex(),
    )


def _split(private: bytes, people: Sequence[_Person], two_persons: bool) -> dict[str, list[str]]:
    """Seal the key to each person, or a one-time-pad half to each of every pair."""
    shares = {}
    ordered = sorted(people, key=lambda person: person.name)
    groups = itertools.combinations(ordered, 2) if two_persons else ((person,) for person in ordered)
    for group in groups:
        label = "+".join(person.name for person in group)
        pad = os.urandom(len(private))
        parts = [pad, bytes(a ^ b for a, b in zip(private, pad, strict=True))] if two_persons else [private]
        shares[label] = [
            sealing.seal(bytes.fromhex(person.public_key), part, b"share " + label.encode()).hex()
            for person, part in zip(group, parts, strict=True)
        ]
    return shares


def _stretch(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=_SCRYPT_N, r=8, p=1).derive(passphrase.encode())


def _log_key(private: bytes) -> bytes:
    return hmac.new(private, b"wardpose access log", hashlib.sha256).digest()
