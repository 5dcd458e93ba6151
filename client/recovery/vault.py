"""Authorised recovery: G_Y and the key under lock, and a log of everybody who used them.

A vault is a folder:

    vault.json      public: the recovery public key, the people, and the private key sealed to each of them
    recovery.sealed the weights of G_X and G_Y, encrypted
    originals/      exact originals, encrypted, where they are kept
    access.log      who recovered what, and why; `access.head` beside it is its last entry

`keyholders` says how people hold the key, and how two of them share it. Anonymising needs only the public key of
`vault.json`.
"""

import hashlib
import hmac
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from wardpose.client.recovery import sealing
from wardpose.client.recovery.access_log import AccessLog, Entry
from wardpose.client.recovery.keyholders import Credential, NewPerson, Person, enrol, personal_key, split
from wardpose.client.recovery.log_witness import LogWitness
from wardpose.shared import files
from wardpose.shared.anonymize import key_exchange, weights_file
from wardpose.shared.errors import ConfigError, RecoveryError

_VERSION = 1


class _Header(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int
    public_key: str
    weights_sha256: str
    two_persons: bool
    people: list[Person]
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
    keys = [person.public_key for person in people if person.public_key is not None]
    if len(set(keys)) != len(keys):
        raise ConfigError("two people have the same public key, so they would be one person")
    if weights_file.read_info(weights_path).kind != "recoverable":
        raise ConfigError(f"{weights_path}: only weights of kind recoverable belong into a vault")
    private = key_exchange.generate()
    public = key_exchange.public_of(private)
    persons = [enrol(person) for person in people]
    header = _Header(
        version=_VERSION,
        public_key=public.hex(),
        weights_sha256=files.sha256_file(weights_path),
        two_persons=two_persons,
        people=persons,
        shares=split(private, persons, two_persons),
    )
    with files.storing(folder, "no vault was made"):
        files.private_folder(folder.parent)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            made = Path(temporary) / "vault"
            made.mkdir(mode=0o700)
            sealed = sealing.seal(public, weights_path.read_bytes(), b"wardpose weights")
            files.write_bytes(made / "recovery.sealed", sealed, mode=0o600)
            log = AccessLog(made / "access.log", public, LogWitness(public))
            log.begin(who=[person.name for person in people], key=_log_key(private))
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
            if len(self.public_key) != key_exchange.KEY_BYTES:
                raise ValueError(self._header.public_key)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RecoveryError(f"{folder}: there is no vault (no vault.json)") from error
        except OSError as error:
            raise RecoveryError(f"{path}: cannot be read ({error.strerror})") from error
        except (ValidationError, ValueError) as error:
            raise RecoveryError(f"{path}: the vault's header is broken") from error
        if self._header.version != _VERSION:
            raise RecoveryError(f"{path}: is a vault of version {self._header.version} (allowed: {_VERSION})")
        self.log = AccessLog(folder / "access.log", self.public_key, LogWitness(self.public_key))

    @property
    def two_persons(self) -> bool:
        """Whether it takes two people."""
        return self._header.two_persons

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digits that name the vault in manifests."""
        return key_exchange.fingerprint(self.public_key).hex()

    def noted(self) -> dict[str, str]:
        """Return what a manifest keeps of the log: whose it is, and its last entry.

        Raises:
            RecoveryError: the log was tampered with.

        """
        return {"vault": self.fingerprint, "entry": self.log.entries()[-1].hash()}

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
            private = self._read_key(credentials)
        except RecoveryError:
            self.log.append(action="denied", who=names, why=why, what="unlock", key=None)
            raise
        self.log.entries(_log_key(private))
        return OpenVault(self, private, names, why)

    def _read_key(self, credentials: Sequence[Credential]) -> bytes:
        try:
            return self._private_key(credentials)
        except (ValueError, KeyError, TypeError) as error:  # digits that are none, a share that is gone
            raise RecoveryError(f"{self.folder / 'vault.json'}: the vault's header is broken") from error

    def _private_key(self, credentials: Sequence[Credential]) -> bytes:
        needed = 2 if self.two_persons else 1
        by_name = {credential.name: credential for credential in credentials}
        if len(by_name) < needed:
            raise RecoveryError(f"this vault needs {needed} different people, {len(by_name)} came")
        chosen = sorted(by_name)[:needed]
        label = "+".join(chosen)
        keys = [personal_key(self._person(name), by_name[name]) for name in chosen]
        shares = [
            sealing.unseal(key, bytes.fromhex(share), b"share " + label.encode())
            for key, share in zip(keys, self._header.shares[label], strict=True)
        ]
        private = shares[0] if needed == 1 else bytes(a ^ b for a, b in zip(*shares, strict=True))
        if key_exchange.public_of(private) != self.public_key:
            raise RecoveryError(f"{self.folder / 'vault.json'}: the shares do not fit the vault's public key")
        return private

    def _person(self, name: str) -> Person:
        for person in self._header.people:
            if person.name == name:
                return person
        raise RecoveryError(f'"{name}" is not among the people of this vault')


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
        weights = sealing.unseal(self._private_key, _content(path), b"wardpose weights")
        if hashlib.sha256(weights).hexdigest() != self._vault.weights_sha256:  # whoever has the public key can seal
            raise RecoveryError(f"{path}: these are not the weights that the vault was made with")
        return weights

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
        head, _, content = sealing.unseal(key, _content(path), b"wardpose original").partition(b"\n")
        try:
            about = json.loads(head)
            name, sealed_for = str(about["name"]), about["sha256"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:  # whoever has the public key can seal
            raise RecoveryError(f"{path}: what was sealed is no original") from error
        if sealed_for != sha256:
            raise RecoveryError(f"{path}: the original was exchanged for another one")
        return name, content

    def entries(self) -> list[Entry]:
        """Read the access log, fully checked."""
        return self._vault.log.entries(_log_key(self._private_key))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RecoveryError(f"{path}: cannot be read ({error.strerror})") from error


def _log_key(private: bytes) -> bytes:
    return hmac.new(private, b"wardpose access log", hashlib.sha256).digest()
