"""Signed certificates of a public view: what attackers got from it, and whether a site's policy accepts that.

Each figure stands beside its floor: what the same attacker gets from the true skeleton and box (`figures`). A
certificate is JSON, signed with Ed25519 over its canonical form. It names the view by its identity (a hash over
parameters and weights), so it cannot be used for another one.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field

from wardpose.shared import files
from wardpose.shared.anonymize import figures as figures_of
from wardpose.shared.anonymize.figures import Figure
from wardpose.shared.errors import ConfigError, DataError, PolicyViolation

RELINK = "relink_rank1"
"""Name of the relinking attacker's figure."""


class Thresholds(BaseModel):
    """The most that an attacker may get; `None` does not ask for the measure.

    Attributes:
        linkage_rank1: the fixed re-identification model, on the view itself.
        linkage_rank1_after_attack: the same on a trained attacker's reconstruction.
        linkage_rank1_trained: a re-identification network trained for this view.
        face_match: accepted pairs of view and original at a false-match rate of 1e-3.
        identity_rank1_over_chance: the built-in identity attacker's rank-1 minus that of guessing.
        relink_rank1_over_floor: the relinking attacker's rank-1 minus what it gets from skeleton and box alone. Over
            200 people each of the two is uncertain by up to 0.07, their difference by 0.1.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    linkage_rank1: float | None = Field(default=0.02, ge=0, le=1)
    linkage_rank1_after_attack: float | None = Field(default=0.10, ge=0, le=1)
    linkage_rank1_trained: float | None = Field(default=None, ge=0, le=1)
    face_match: float | None = Field(default=0.02, ge=0, le=1)
    identity_rank1_over_chance: float | None = Field(default=0.25, ge=0, le=1)
    relink_rank1_over_floor: float | None = Field(default=0.15, ge=0, le=1)


class CertificatePolicy(BaseModel):
    """What a site demands of its public view.

    Attributes:
        trusted_signers: Ed25519 public keys (64 hexadecimal digits) whose certificates count.
        thresholds: the most that an attacker may get.
        least_pairs: from how many pairs the relinking attacker must have learned: a weak attacker certifies nothing.

    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trusted_signers: tuple[str, ...] = ()
    thresholds: Thresholds = Thresholds()
    least_pairs: int = Field(default=4000, ge=0)


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A signed statement about one view.

    Attributes:
        view_name: of the certified view.
        view_identity: its hash.
        created: UTC, ISO 8601.
        measures: name -> value of the certified view; `None` was not measured.
        rows: the whole table, with the other methods for comparison.
        figures: name -> value with its interval, floor and attacker; `None` in certificates that were made before
            attackers were measured against a floor.
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
    figures: dict[str, Figure] | None = None
    signer: str = ""
    signature: str = ""

    def body(self) -> bytes:
        """Return what is signed: everything except the signature, canonical."""
        content = _content(self)
        del content["signature"]
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sign(certificate: Certificate, private_key: bytes) -> Certificate:
    """Sign with an Ed25519 private key of 32 bytes."""
    key = Ed25519PrivateKey.from_private_bytes(private_key)
    named = replace(certificate, signer=key.public_key().public_bytes_raw().hex())
    return replace(named, signature=key.sign(named.body()).hex())


def write(certificate: Certificate, path: Path) -> None:
    """Store as JSON, atomically."""
    files.write_json(path, _content(certificate), mode=files.ASKED_FOR)


def read(path: Path) -> Certificate:
    """Read and check the signature, without saying anything about who signed.

    Raises:
        DataError: missing, not a certificate, or changed since it was signed.

    """
    if not path.is_file():
        raise DataError(f"{path}: no such certificate")
    try:
        certificate = _parsed(json.loads(path.read_bytes()))
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
    failed = failures(certificate.measures, policy.thresholds) + _too_weak(certificate, policy)
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


def _too_weak(certificate: Certificate, policy: CertificatePolicy) -> list[str]:
    """Say why its attackers do not count, where the policy asks for relinking at all."""
    if policy.thresholds.relink_rank1_over_floor is None:
        return []
    if certificate.figures is None:
        return ["it is an old certificate without floors and intervals; certify the view again"]
    relinked = certificate.figures.get(RELINK)
    if relinked is None or relinked.pairs >= policy.least_pairs:
        return []
    return [f"its relinking attacker learned from {relinked.pairs} pairs only (least_pairs = {policy.least_pairs})"]


def _content(certificate: Certificate) -> dict[str, Any]:
    """Return the fields as JSON has them; the signature of a certificate from before floors knows of none."""
    content = asdict(certificate)
    if certificate.figures is None:
        del content["figures"]
    return content


def _parsed(content: Any) -> Certificate:
    if isinstance(content, dict) and "figures" in content:
        content = content | {"figures": figures_of.parse(content["figures"])}
    return Certificate(**content)


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
        ConfigError: missing, not a key, or readable by others; its content is not shown.

    """
    try:
        key = bytes.fromhex(path.read_text().strip())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable key file") from error
    if len(key) != 32:
        raise ConfigError(f"{path}: a key has 64 hexadecimal digits")
    files.refuse_readable(path)
    return key
