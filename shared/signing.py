"""Signatures of a federation: who said something, in what role, and that no byte of it was changed.

A site signs with its node key, the elliptic-curve key by which Flower's SuperNode proves itself (OpenSSH form, P-384);
the coordinator with a key of the same kind. The *purpose* of a signature is signed along, so that a signature made for
one kind of message can never stand under another.
"""

import base64
import binascii
import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wardpose.shared.errors import ConfigError, WardposeError
from wardpose.shared.files import refuse_readable, write_bytes

_PREFIX = b"wardpose signature v1\0"
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_LARGEST_KEY_FILE = 1 << 14


class SignatureError(WardposeError):
    """What somebody is said to have signed is not signed by their key, or was changed since."""


class PublicKey:
    """The public half of a key: checks signatures.

    Attributes:
        text: OpenSSH's one line, without a comment; equal keys have equal texts.
        fingerprint: hexadecimal SHA-256 of the text.

    """

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        self._key = key
        form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        self.text = key.public_bytes(*form).decode()
        self.fingerprint = hashlib.sha256(self.text.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        """Tell whether it is the same key."""
        return isinstance(other, PublicKey) and self.text == other.text

    def __hash__(self) -> int:
        """Return a number that equal keys share."""
        return hash(self.text)

    def verify(self, purpose: str, content: bytes, signature: str) -> None:
        """Check a signature.

        Args:
            purpose: what kind of message it must have been made for.
            content: the bytes that were signed.
            signature: as `Signer.sign` returned it; of any sender, so anything may be in it.

        Raises:
            SignatureError: it is not one of this key over this purpose and content.

        """
        try:
            raw = base64.b64decode(signature.encode("ascii"), validate=True)
            self._key.verify(raw, _signed(purpose, content), ec.ECDSA(hashes.SHA384()))
        except (InvalidSignature, binascii.Error, ValueError) as error:
            raise SignatureError(
                f"the signature of a {purpose} is not one of the key {self.fingerprint[:16]}..."
            ) from error


class Signer:
    """A private key: signs.

    Attributes:
        key: for protocols that sign in their own way, as Flower's does.
        public: its public half.

    """

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self.key = key
        self.public = PublicKey(key.public_key())

    def sign(self, purpose: str, content: bytes) -> str:
        """Sign bytes for a purpose; returns base64 text."""
        return base64.b64encode(self.key.sign(_signed(purpose, content), ec.ECDSA(hashes.SHA384()))).decode()


def _signed(purpose: str, content: bytes) -> bytes:
    return _PREFIX + purpose.encode() + b"\0" + content


def read_public_key(text: str, where: object) -> PublicKey:
    """Read a public key: OpenSSH's line, or PEM.

    Args:
        text: what stands in the file.
        where: names the source in an error.

    Raises:
        ConfigError: it is no elliptic-curve key of a known kind.

    """
    data = text.strip().encode()
    try:
        load = serialization.load_pem_public_key if data.startswith(b"-----") else serialization.load_ssh_public_key
        key = load(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{where}: is no public key (allowed: OpenSSH or PEM; {error})") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise ConfigError(f"{where}: is another kind of key (allowed: ECDSA on P-256 or P-384)")
    return PublicKey(key)


def load_public_key(path: Path) -> PublicKey:
    """Read a public key file.

    Raises:
        ConfigError: it is missing, or no key of a known kind.

    """
    return read_public_key(_content(path).decode(errors="replace"), path)


def load_signer(path: Path) -> Signer:
    """Read a private key file (OpenSSH or PEM, without a passphrase) that only its owner may read.

    Raises:
        ConfigError: it is missing, readable by others, or no key of a known kind.

    """
    data = _content(path)
    refuse_readable(path)
    try:
        openssh = b"OPENSSH" in data.partition(b"\n")[0]
        load = serialization.load_ssh_private_key if openssh else serialization.load_pem_private_key
        key = load(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: is no private key (allowed: OpenSSH or PEM, no passphrase)") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, _CURVES):
        raise ConfigError(f"{path}: is another kind of key (allowed: ECDSA on P-256 or P-384)")
    return Signer(key)


def create_key_pair(private: Path, public: Path) -> Signer:
    """Write a new key pair on P-384 in OpenSSH form, the private half for its owner alone.

    Raises:
        ConfigError: there is one; a new one would make everything that it signed look forged.
        StorageError: they cannot be written.

    """
    if private.exists():
        raise ConfigError(f"{private}: exists already (allowed: a new name)")
    public.unlink(missing_ok=True)
    return ensure_key_pair(private, public)


def ensure_key_pair(private: Path, public: Path) -> Signer:
    """Read a key pair, or write a new one where there is none yet; of several processes at once the first one's counts.

    Raises:
        ConfigError: what is there is no key, or readable by others.
        StorageError: they cannot be written.

    """
    if not private.exists():
        key = ec.generate_private_key(ec.SECP384R1())
        form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        whole = private.with_name(f".{private.name}.{secrets.token_hex(8)}")
        write_bytes(whole, key.private_bytes(*form), mode=0o600)
        try:
            with suppress(FileExistsError):
                os.link(whole, private)
        finally:
            whole.unlink()
    signer = load_signer(private)
    if not public.exists():
        write_bytes(public, f"{signer.public.text}\n".encode())
    return signer


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > _LARGEST_KEY_FILE:
                raise ConfigError(f"{path}: is too large for a key")
            return file.read()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
