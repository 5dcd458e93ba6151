"""The key in G_X and G_Y: symbols are encrypted and carried in the two lowest bits of the cover's pixels.

What the frame holds, in the raster order of its bytes:

    magic 4 | key fingerprint 8 | ephemeral key 32 | tag 16 | encrypted symbols | random filling

Each frame has its own X25519 exchange (`sealing`), so no keystream is ever used twice, G_X needs only the
public key, and G_Y needs the private one. The tag also covers the upper six bits of every pixel: a frame that
was altered, compressed with loss or resized is refused and not turned into a wrong picture. To anybody
without the private key the two low bits are indistinguishable from noise (AES-CTR), so whatever can be
learned from the frame is learned from the cover alone.
"""

import os

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, Hash
from numpy.typing import NDArray

from wardpose.shared.anonymize import key_exchange
from wardpose.shared.anonymize.generators import BITS
from wardpose.shared.data.records import Frame
from wardpose.shared.errors import DataError, RecoveryError

Symbols = NDArray[np.uint8]
"""(S, rows, columns) of 4x4 blocks, symbol s in 0 .. 2**BITS[s] - 1."""

_MAGIC = b"WPR1"
_HEADER_BYTES = 60
_PURPOSE = b"wardpose frame"


def conceal(cover: Frame, symbols: Symbols, public_key: bytes) -> Frame:
    """Encrypt `symbols` for the holder of the private key and write them into the low bits of `cover`.

    Raises:
        DataError: the frame is too small to carry even half of each block's bits.

    """
    count = _fitting(cover.shape[0], cover.shape[1])
    cover = cover & np.uint8(0xFC)
    sent, key, nonce = key_exchange.encapsulate(public_key, _PURPOSE)
    sealed = AESGCM(key).encrypt(nonce, _pack(symbols[:count]), _digest(cover))
    payload = _MAGIC + key_exchange.fingerprint(public_key) + sent + sealed[-16:] + sealed[:-16]
    payload += os.urandom(cover.size // 4 - len(payload))
    low = np.zeros(cover.size, np.uint8)
    low[: len(payload) * 4] = _to_pairs(payload)
    return np.asarray(cover | low.reshape(cover.shape), np.uint8)


def carries_code(frame: Frame) -> bool:
    """Whether the frame was written by `conceal`."""
    return frame.size >= 4 * _HEADER_BYTES and _low_bytes(frame, len(_MAGIC)) == _MAGIC


def reveal(frame: Frame, private_key: bytes) -> Symbols:
    """Read the symbols back; those that did not fit come back in the middle of their range.

    Raises:
        RecoveryError: no code, another key, or the frame was changed after it was written.

    """
    if not carries_code(frame):
        raise RecoveryError(
            "the frame carries no recoverable code: it was not written by a recoverable anonymiser, "
            "or it was re-encoded with loss or resized since"
        )
    count = _fitting(frame.shape[0], frame.shape[1])
    length = _packed_bytes(frame.shape[0], frame.shape[1], count)
    raw = _low_bytes(frame, _HEADER_BYTES + length)
    written_for, sent, tag, sealed = raw[4:12], raw[12:44], raw[44:60], raw[60:]
    own = key_exchange.fingerprint(key_exchange.public_of(private_key))
    if written_for != own:
        raise RecoveryError(f"wrong key: the frame is for key {written_for.hex()}, this is {own.hex()}")
    key, nonce = key_exchange.decapsulate(private_key, sent, _PURPOSE)
    try:
        packed = AESGCM(key).decrypt(nonce, sealed + tag, _digest(frame & np.uint8(0xFC)))
    except InvalidTag as error:
        raise RecoveryError("the frame was changed after it was anonymised; nothing is recovered") from error
    return _unpack(packed, frame.shape[0], frame.shape[1], count)


def reveal_unverified(frame: Frame, private_key: bytes | None) -> Symbols:
    """Read what an attacker reads who tries a key (or none) and ignores the tag; only for certificates and attacks."""
    count = _fitting(frame.shape[0], frame.shape[1])
    length = _packed_bytes(frame.shape[0], frame.shape[1], count)
    raw = _low_bytes(frame, _HEADER_BYTES + length)
    if private_key is None:
        return _unpack(raw[60:], frame.shape[0], frame.shape[1], count)
    key, nonce = key_exchange.decapsulate(private_key, raw[12:44], _PURPOSE)
    # GCM encrypts with AES-CTR from counter 2 on.
    stream = Cipher(algorithms.AES(key), modes.CTR(nonce + (2).to_bytes(4, "big"))).decryptor()
    return _unpack(stream.update(raw[60:]), frame.shape[0], frame.shape[1], count)


def _digest(cover: Frame) -> bytes:
    digest = Hash(SHA256())
    digest.update(repr(cover.shape).encode())
    digest.update(np.ascontiguousarray(cover).tobytes())
    return digest.finalize()


def _packed_bytes(height: int, width: int, count: int) -> int:
    return (-(-height // 4) * -(-width // 4) * sum(BITS[:count]) + 7) // 8


def _fitting(height: int, width: int) -> int:
    """How many of a block's symbols the frame can carry; the least important ones are at the end."""
    capacity = height * width * 3 // 4 - _HEADER_BYTES
    for count in range(len(BITS), 0, -1):
        if _packed_bytes(height, width, count) <= capacity:
            if sum(BITS[:count]) * 2 < sum(BITS):
                break
            return count
    raise DataError(f"a frame of {width} x {height} pixels is too small to carry a recoverable code")


def _pack(symbols: Symbols) -> bytes:
    columns = [
        (symbols[s].reshape(-1, 1) >> np.arange(bits - 1, -1, -1, dtype=np.uint8)) & 1
        for s, bits in enumerate(BITS[: len(symbols)])
    ]
    return np.packbits(np.concatenate(columns, axis=1)).tobytes()


def _unpack(packed: bytes, height: int, width: int, count: int) -> Symbols:
    rows, columns = -(-height // 4), -(-width // 4)
    per_block = sum(BITS[:count])
    flat = np.unpackbits(np.frombuffer(packed, np.uint8), count=rows * columns * per_block)
    bits = flat.reshape(-1, per_block)
    symbols = np.empty((len(BITS), rows, columns), np.uint8)
    start = 0
    for s, width_of in enumerate(BITS):
        if s >= count:
            symbols[s] = 2 ** (width_of - 1)
            continue
        powers = (1 << np.arange(width_of - 1, -1, -1)).astype(np.uint8)
        values = (bits[:, start : start + width_of] * powers).sum(axis=1, dtype=np.uint8)
        symbols[s] = values.reshape(rows, columns)
        start += width_of
    return symbols


def _to_pairs(content: bytes) -> NDArray[np.uint8]:
    values = np.frombuffer(content, np.uint8)[:, None]
    pairs = (values >> np.array([6, 4, 2, 0], np.uint8)) & np.uint8(3)
    return np.asarray(pairs, np.uint8).reshape(-1)


def _low_bytes(frame: Frame, count: int) -> bytes:
    pairs = (frame.reshape(-1)[: 4 * count] & 3).reshape(-1, 4)
    return np.asarray((pairs << np.array([6, 4, 2, 0], np.uint8)).sum(axis=1), np.uint8).tobytes()
