"""Public-key sealing of what a vault keeps: only the holder of the private key reads it (AES-256-GCM)."""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from wardpose.shared.anonymize.key_exchange import KEY_BYTES, decapsulate, encapsulate
from wardpose.shared.errors import RecoveryError


def seal(public: bytes, content: bytes, purpose: bytes) -> bytes:
    """Encrypt and authenticate; 48 bytes longer than the content."""
    sent, key, nonce = encapsulate(public, purpose)
    return sent + AESGCM(key).encrypt(nonce, content, purpose)


def unseal(private: bytes, sealed: bytes, purpose: bytes) -> bytes:
    """Undo `seal`.

    Raises:
        RecoveryError: another key, another purpose, or the content was changed.

    """
    if len(sealed) < KEY_BYTES + 16:
        raise RecoveryError("the sealed content is cut off")
    key, nonce = decapsulate(private, sealed[:KEY_BYTES], purpose)
    try:
        return AESGCM(key).decrypt(nonce, sealed[KEY_BYTES:], purpose)
    except InvalidTag as error:
        raise RecoveryError("wrong key, or the sealed content was changed") from error
