"""The people of a vault: how each holds a key, and how the recovery key is shared among them.

A person holds an X25519 key pair. The private half is either their own file, or lies in the vault encrypted under a
passphrase (scrypt n=2**16, AES-256-GCM). Where it takes two persons the recovery key is split for every pair (one-time
pad), so that one person alone holds nothing.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import BaseModel, ConfigDict, Field

from wardpose.client.recovery import sealing
from wardpose.shared.anonymize import key_exchange
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


class Person(BaseModel):
    """A person as `vault.json` holds them; `locked_private_key` and `salt` where they have a passphrase."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1)
    public_key: str
    locked_private_key: str | None = None
    salt: str | None = None


def enrol(person: NewPerson) -> Person:
    """Make what the vault holds of a person.

    Raises:
        ConfigError: not exactly one of passphrase and public key, a name or a passphrase that will not do.

    """
    if (person.passphrase is None) == (person.public_key is None):
        raise ConfigError(f"{person.name}: give a passphrase or a public key, one of them")
    if "+" in person.name or not person.name.strip():
        raise ConfigError(f'"{person.name}" cannot be a name (not empty, no "+")')
    if person.public_key is not None:
        if len(person.public_key) != key_exchange.KEY_BYTES:
            raise ConfigError(f"{person.name}: a public key has {2 * key_exchange.KEY_BYTES} hexadecimal digits")
        return Person(name=person.name, public_key=person.public_key.hex())
    if person.passphrase is None or len(person.passphrase) < _MIN_PASSPHRASE:
        raise ConfigError(f"{person.name}: a passphrase has at least {_MIN_PASSPHRASE} characters")
    private, salt = key_exchange.generate(), os.urandom(16)
    locked = AESGCM(_stretch(person.passphrase, salt)).encrypt(salt[:12], private, person.name.encode())
    return Person(
        name=person.name,
        public_key=key_exchange.public_of(private).hex(),
        locked_private_key=locked.hex(),
        salt=salt.hex(),
    )


def split(private: bytes, people: Sequence[Person], two_persons: bool) -> dict[str, list[str]]:
    """Seal the key to each person, or a one-time-pad half to each of every pair; "ada" or "ada+ben" -> shares."""
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


def personal_key(person: Person, credential: Credential) -> bytes:
    """Return the person's private key.

    Raises:
        RecoveryError: wrong passphrase or key.

    """
    if person.locked_private_key is None or person.salt is None:
        if credential.private_key is None:
            raise RecoveryError(f"{credential.name} has a key pair: show the private key")
        if key_exchange.public_of(credential.private_key).hex() != person.public_key:
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


def _stretch(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=_SCRYPT_N, r=8, p=1).derive(passphrase.encode())
