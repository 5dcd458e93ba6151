"""Keys for the holder of a private key alone: whoever writes needs no secret.

X25519 with a fresh ephemeral pair for each message, HKDF-SHA256. A workstation that anonymises holds the vault's
public key and cannot recover what it wrote.
"""

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wardpose.shared.errors import RecoveryError

KEY_BYTES = 32


def generate() -> bytes:
    """Make a fresh private key, 32 bytes."""
    return X25519PrivateKey.generate().private_bytes_raw()


def public_of(private: bytes) -> bytes:
    """Return the public key, 32 bytes, of a private one."""
    return _private(private).public_key().public_bytes_raw()


def fingerprint(public: bytes) -> bytes:
    """Eight bytes that name a key pair."""
    digest = Hash(SHA256())
    digest.update(b"wardpose key fingerprint" + public)
    return digest.finalize()[:8]


def encapsulate(public: bytes, purpose: bytes) -> tuple[bytes, bytes, bytes]:
    """Make a fresh AES-256-GCM key for the holder of the private key.

    Returns:
        What to send along (32 bytes), the key (32 bytes), the nonce (12 bytes).

    """
    ephemeral = X25519PrivateKey.generate()
    sent = ephemeral.public_key().public_bytes_raw()
    return (sent, *_derive(ephemeral.exchange(_public(public)), sent, public, purpose))


def decapsulate(private: bytes, sent: bytes, purpose: bytes) -> tuple[bytes, bytes]:
    """Return the key and the nonce of `encapsulate`."""
    own = _private(private)
    public = own.public_key().public_bytes_raw()
    return _derive(own.exchange(_public(sent)), sent, public, purpose)


def _derive(shared: bytes, sent: bytes, public: bytes, purpose: bytes) -> tuple[bytes, bytes]:
    material = HKDF(algorithm=SHA256(), length=44, salt=sent + public, info=purpose).derive(shared)
    return material[:32], material[32:]


def _private(key: bytes) -> X25519PrivateKey:
    if len(key) != KEY_BYTES:
        raise RecoveryError(f"a private key has {KEY_BYTES} bytes, this one has {len(key)}")
    return X25519PrivateKey.from_private_bytes(key)


def _public(key: bytes) -> X25519PublicKey:
    if len(key) != KEY_BYTES:
        raise RecoveryError(f"a public key has {KEY_BYTES} bytes, this one has {len(key)}")
    return X25519PublicKey.from_public_bytes(key)
