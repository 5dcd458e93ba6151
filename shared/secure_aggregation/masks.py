"""Masks: integers modulo 2^bits from AES-256 in counter mode, under keys that two sites agree on or one keeps."""

import hashlib
from collections.abc import Iterable

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from wardpose.shared.errors import WireError

Words = NDArray[np.uint32] | NDArray[np.uint64]
"""(d,) integers modulo 2^bits, in the narrowest type of 32 or 64 bits; bits above are not significant."""

_CHUNK = 1 << 18  # coordinates masked at a time: the working set stays in the cache
_ONCE = bytes(12)  # every sealing key seals one message


def agree(private: bytes, public: str, *context: str) -> bytes:
    """Return the 32 bytes that two sites, or one and the server, get from one's private and the other's public key.

    X25519 (RFC 7748) and HKDF with SHA-256 (RFC 5869); `context` says what for.

    Raises:
        WireError: the public key is one with which everybody would agree on zeros.

    """
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(_raw(public)))
    except ValueError as error:
        raise WireError("a public key of secure aggregation is no point that can be agreed with") from error
    info = "\0".join(("wardpose secure aggregation v1", *context)).encode()
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(shared)


def mask_key(private: bytes, public: str, session: str, one: str, other: str) -> bytes:
    """Return the key of the mask that two sites share, whichever of them asks."""
    return agree(private, public, session, "mask", *sorted((one, other)))


def seed_key(session: str, seed: bytes) -> bytes:
    """Return the key of a site's own mask."""
    return hashlib.sha256(b"wardpose secure aggregation seed\0" + session.encode() + seed).digest()


def commitment(session: str, seed: bytes) -> str:
    """Hexadecimal SHA-256 that binds a site to its seed and tells nothing about it."""
    return hashlib.sha256(b"wardpose secure aggregation commitment\0" + session.encode() + seed).hexdigest()


def seal(private: bytes, public: str, session: str, sender: str, receiver: str, content: bytes) -> str:
    """Encrypt for one peer and one session (ChaCha20-Poly1305); hexadecimal."""
    key = agree(private, public, session, "seal", sender, receiver)
    return ChaCha20Poly1305(key).encrypt(_ONCE, content, None).hex()


def unseal(private: bytes, public: str, session: str, sender: str, receiver: str, sealed: str) -> bytes:
    """Decrypt what a peer sealed.

    Raises:
        WireError: it is not what that peer sealed for this site in this session.

    """
    key = agree(private, public, session, "seal", sender, receiver)
    try:
        return ChaCha20Poly1305(key).decrypt(_ONCE, _raw(sealed), None)
    except (InvalidTag, ValueError) as error:
        raise WireError(f"shares of site {sender} were not sealed by it for this session") from error


def public_of(private: bytes) -> str:
    """Public half of an X25519 key, hexadecimal."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw().hex()


def as_words(vector: NDArray[np.int64], bits: int) -> Words:
    """Reduce (d,) integers modulo 2^bits."""
    return vector.astype(np.uint64).astype(_type(bits))


def add_masks(words: Words, keys: Iterable[tuple[bytes, int]]) -> None:
    """Add masks to (d,) words, in place.

    Args:
        words: modulo 2^bits.
        keys: of each mask, with its sign, 1 or -1.

    """
    streams = [
        (Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor(), np.add if sign > 0 else np.subtract)
        for key, sign in keys
    ]
    zeros = bytes(_CHUNK * words.itemsize)
    for start in range(0, len(words), _CHUNK):
        part = words[start : start + _CHUNK]
        for stream, change in streams:
            drawn = stream.update(zeros[: part.nbytes])
            change(part, np.frombuffer(drawn, part.dtype.newbyteorder("<")), out=part)


def pack(words: Words, bits: int) -> NDArray[np.uint8]:
    """Write (d,) words as (d, bits / 8) bytes, the lowest first."""
    little = words.astype(words.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little.view(np.uint8).reshape(len(words), -1)[:, : bits // 8])


def unpack(packed: NDArray[np.uint8], bits: int) -> Words:
    """Inverse of `pack`, in a new array."""
    kind = _type(bits)
    wide = np.zeros((len(packed), kind.itemsize), np.uint8)
    wide[:, : bits // 8] = packed
    return wide.reshape(-1).view(kind.newbyteorder("<")).astype(kind)


def centred(words: Words, bits: int) -> NDArray[np.int64]:
    """Return the representatives in [-2^(bits-1), 2^(bits-1)) of (d,) words."""
    shift = np.uint64(64 - bits)
    return (words.astype(np.uint64) << shift).view(np.int64) >> np.int64(64 - bits)


def _type(bits: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype(np.uint32 if bits <= 32 else np.uint64)


def _raw(text: str) -> bytes:
    return bytes.fromhex(text)
