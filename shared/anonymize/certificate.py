"""Signed certificates of a public view: what attackers got from it, and whether a site's policy accepts that.

A certificate is JSON, signed with Ed25519 over its canonical form. It names the view by its identity (a hash over
parameters and weights), so it cannot be used for another one.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field

from wardpose.shared import files
from wardpose.shared.errors import ConfigError, DataError, PolicyViolation


class Thresholds(BaseModel):
    """The most that an attacker may get; `None` does not ask for the measure.

    Attributes:
        linkage_rank1: the fixed re-identification model, on the view itself.
        linkage_rank1_after_attack: the same on a trained attacker's reconstruction.
        linkage_rank1_trained: a re-identification network trained for this view.
        face_match: accepted pairs of view and original at a false-match rate of 1e-3.
        identity_rank1_over_chance: the built-in identity attacker's rank-1 minus that of guessing.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    linkage_rank1: float | None = Field(default=0.02, ge=0, le=1)
    linkage_rank1_after_attack: float | None = Field(default=0.10, ge=0, le=1)
    linkage_rank1_trained: float | None = Field(default=None, ge=0, le=1)
    face_match: float | None = Field(default=0.02, ge=0, le=1)
    identity_rank1_over_chance: float | None = Field(default=0.25, ge=0, le=1)


class CertificatePolicy(BaseModel):
    """What a site demands of its public view.

    Attributes:
        trusted_signers: Ed25519 public keys (64 hexadecimal digits) whose certificates count.
        thresholds: the most that an attacker may get.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trusted_signers: tuple[str, ...] = ()
    thresholds: Thresholds = Thresholds()


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A signed statement about one view.

    Attributes:
        view_name: of the certified view.
        view_identity: its hash.
        created: UTC, ISO 8601.
        measures: name -> value of the certified view; `None` was not measured.
        rows: the whole table, with the other methods for comparison.
        setting: data identities, model hashes, attackers' steps: what the numbers depend on.
        signer: Ed25519 public key, hexadecimal.
        signature: hexadecimal.

    """

    view_name: str
    view_identity: str
    created: str
    measures: dict[str, float | None]
    rows: list[dict[str, Any]]
    setting: dict[str, Any]
    signer: str = ""
    signature: str = ""

    def body(self) -> bytes:
        """Return what is signed: everything except the signature, canonical."""
        content = asdict(self)
        del content["signature"]
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sign(certificate: Certificate, private_key: bytes) -> Certificate:
    """Sign with an Ed25519 private key of 32 bytes."""
    key = Ed25519PrivateKey.from_private_bytes(private_key)
    named = Certificate(**(asdict(certificate) | {"signer": key.public_key().public_bytes_raw().hex()}))
    return Certificate(**(asdict(named) | {"signature": key.sign(named.body()).hex()}))


def write(certificate: Certificate, path: Path) -> None:
    """Store as JSON, atomically."""
    files.write_json(path, asdict(certificate))


def read(path: Path) -> Certificate:
    """Read and check the signature, without saying anything about who signed.

    Raises:
        DataError: missing, not a certificate, or changed since it was signed.

    """
    if not path.is_file():
        raise DataError(f"{path}: no such certificate")
    try:
        certificate = Certificate(**json.loads(path.read_bytes()))
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(certificate.signer)).verify(
            bytes.fromhex(certificate.signature), certificate.body()
        )
    except InvalidSignature as error:
        raise DataError(f"{path}: the certificate was tampered with: its signature does not fit its content") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a certificate of the anonymiser") from error
    return certificate


def require_certificate(
    *, view_name: str, view_identity: str, path: Path | None, policy: CertificatePolicy
) -> Certificate:
    """Refuse a public view that has no certificate which the site accepts.

    Raises:
        PolicyViolation: no certificate, another view's, an unknown signer, a measure that is missing or too high.
        DataError: the certificate cannot be read or was tampered with.

    """
    if path is None:
        raise PolicyViolation(f"public view {view_name}: it has no certificate (wardpose anonymizer certify makes one)")
    certificate = read(path)
    if certificate.signer not in policy.trusted_signers:
        raise PolicyViolation(f"{path}: signed by {certificate.signer}, whom the site's policy does not trust")
    if certificate.view_identity != view_identity:
        raise PolicyViolation(f"{path}: certifies {certificate.view_name}, another view than {view_name}")
    failed = failures(certificate.measures, policy.thresholds)
    if failed:
        raise PolicyViolation(f"{path}: public view {view_name} does not pass the site's policy: {'; '.join(failed)}")
    return certificate


def failures(measures: dict[str, float | None], thresholds: Thresholds) -> list[str]:
    """Say which demands the measures do not meet."""
    out = []
    for name, most in thresholds.model_dump().items():
        value = measures.get(name)
        if most is None:
            continue
        if value is None:
            out.append(f"{name} was not measured")
        elif not value <= most:
            out.append(f"{name} {value:.3f} is above {most:g}")
    return out


def new_signing_key(path: Path) -> str:
    """Make a private key file (readable by its owner only); returns the public key, hexadecimal.

    Raises:
        ConfigError: the file exists.

    """
    if path.exists():
        raise ConfigError(f"{path}: exists already; a signing key is never overwritten")
    key = Ed25519PrivateKey.generate()
    files.write_bytes(path, key.private_bytes_raw().hex().encode() + b"\n", mode=0o600)
    return key.public_key().public_bytes_raw().hex()


def read_signing_key(path: Path) -> bytes:
    """Read a private key file.

    Raises:
        ConfigError: missing or not a key; its content is not shown.

    """
    try:
        key = bytes.fromhex(path.read_text().strip())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable key file") from error
    if len(key) != 32:
        raise ConfigError(f"{path}: a key has 64 hexadecimal digits")
    return key
