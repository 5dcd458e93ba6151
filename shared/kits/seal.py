"""What an archive is signed with, and how it is opened: every file as its maker left it, or not at all."""

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cryptography.hazmat.primitives import serialization

from wardpose.shared.errors import ConfigError, one_line
from wardpose.shared.kits.archive import Files, KitError, KitFile, read_archive, read_folder
from wardpose.shared.signing import PublicKey, SignatureError, Signer, read_public_key

SUMS, SIGNATURE, SIGNER = "SHA256SUMS", "SHA256SUMS.sig", "signer.pem"
SERVER_FILE, SITE_FILE = "server.yaml", "kit.yaml"
_PURPOSE = "kit"
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")

Role = Literal["server", "site"]


@dataclass(frozen=True, kw_only=True)
class Kit:
    """An archive whose every file is the one that was signed.

    Attributes:
        where: it was read from, for messages.
        role: whose machine it is for.
        files: all of it.
        fingerprint: hexadecimal SHA-256 of `signer.pem`.

    """

    where: Path
    role: Role
    files: Files
    fingerprint: str


def public_pem(key: PublicKey) -> bytes:
    """Return a public key as PEM, which OpenSSL reads."""
    loaded = serialization.load_ssh_public_key(key.text.encode())
    return loaded.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint_of(pem: bytes) -> str:
    """Return what people compare of a signing key: the SHA-256 of its `signer.pem`."""
    return hashlib.sha256(pem).hexdigest()


def checksums(contents: Mapping[str, bytes]) -> bytes:
    """Return the list that `sha256sum --check` reads, sorted by name."""
    return "".join(f"{hashlib.sha256(contents[name]).hexdigest()}  {name}\n" for name in sorted(contents)).encode()


def signature_of(listed: bytes, signer: Signer) -> bytes:
    """Return the signature of a list of checksums, base64 and a line end."""
    return f"{signer.sign(_PURPOSE, listed)}\n".encode()


def sealed(files: Files, signer: Signer) -> dict[str, KitFile]:
    """Return the files with the signing key, their checksums and the signature beside them."""
    whole = {**files, SIGNER: KitFile(content=public_pem(signer.public))}
    listed = checksums({name: file.content for name, file in whole.items()})
    return {**whole, SUMS: KitFile(content=listed), SIGNATURE: KitFile(content=signature_of(listed, signer))}


def open_kit(path: Path, *, fingerprint: str | None = None, role: Role | None = None) -> Kit:
    """Read an archive, or the folder that it was unpacked in, and check all of it.

    Args:
        path: `NAME.tar.gz`, or the folder.
        fingerprint: that the signing key must have; any when absent, and the caller shows it.
        role: that it must be for; any when absent.

    Raises:
        KitError: it is damaged, a file was changed, added or left out, or the signature is not its key's; the key has
            another fingerprint; it is for another role.

    """
    files = read_folder(path) if path.is_dir() else read_archive(path)
    for needed in (SUMS, SIGNATURE, SIGNER):
        if needed not in files:
            raise KitError(f"{path}: holds no {needed} (allowed: an archive of wardpose provision)")
    found = fingerprint_of(files[SIGNER].content)
    if fingerprint is not None and not hmac.compare_digest(_plain(fingerprint), found):
        raise KitError(
            f"{path}: is signed by the key {found}, not {one_line(fingerprint)}; do not install it, and ask the "
            "coordinator by another way"
        )
    _check_sums(path, files)
    _check_signature(path, files)
    if (SERVER_FILE in files) == (SITE_FILE in files):
        raise KitError(f"{path}: is neither a server's archive nor a site's")
    is_for: Role = "server" if SERVER_FILE in files else "site"
    if role not in (None, is_for):
        raise KitError(f"{path}: is for a {is_for} (allowed here: the archive of a {role})")
    return Kit(where=path, role=is_for, files=files, fingerprint=found)


def _plain(fingerprint: str) -> str:
    """Return a fingerprint as it was perhaps typed or pasted: spaces, colons and capitals mean nothing."""
    return re.sub(r"[\s:]", "", fingerprint).lower().encode("ascii", "replace").decode()


def _check_sums(path: Path, files: Files) -> None:
    listed: dict[str, str] = {}
    for line in files[SUMS].content.decode("ascii", "replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None or match[2] in listed:
            raise KitError(f"{path}: {SUMS} is damaged; fetch the archive again")
        listed[match[2]] = match[1]
    there = set(files) - {SUMS, SIGNATURE}
    for name in sorted(there ^ set(listed)):
        what = "was added to" if name in there else "is missing from"
        raise KitError(f"{path}: {one_line(name)} {what} what was signed; fetch the archive again")
    for name, digest in sorted(listed.items()):
        if hashlib.sha256(files[name].content).hexdigest() != digest:
            raise KitError(f"{path}: {one_line(name)} is not what was signed; fetch the archive again")


def _check_signature(path: Path, files: Files) -> None:
    try:
        key = read_public_key(files[SIGNER].content.decode("ascii", "replace"), f"{path}: {SIGNER}")
        key.verify(_PURPOSE, files[SUMS].content, files[SIGNATURE].content.decode("ascii", "replace").strip())
    except (ConfigError, SignatureError) as error:
        raise KitError(f"{path}: {SIGNATURE} is not a signature of {SIGNER}; do not install it ({error})") from error
