"""Noise that comes off again: a hash chain of keys, of which one link opens all parts that are superfluous.

Link T is secret and random, drawn anew in every session, each link before it is a hash of it, and link 0 is public.
Link i gives the links below it, hence the parts 1 .. i of a site's noise, and nothing about those above it.
`privacy.distributed` says which parts are superfluous when, and why what stays is enough.
"""

import hashlib
from collections.abc import Iterable

from wardpose.shared.privacy.noise import KeyedStream
from wardpose.shared.secure_aggregation import masks

LINK_BYTES = 32


def chain(link: bytes, place: int) -> tuple[bytes, ...]:
    """Return the links 0 to `place` of a chain, of which the last is given.

    Examples:
        >>> links = chain(bytes(32), 3)
        >>> chain(links[2], 2) == links[:3]
        True

    """
    links = [link]
    for _ in range(place):
        links.append(_hash("link", links[-1]))
    return tuple(reversed(links))


def add_parts(words: masks.Words, bits: int, parts: Iterable[tuple[bytes, int]], *, sign: int) -> None:
    """Add parts of noise to (d,) words, in place, or take them off.

    Args:
        words: modulo 2^bits.
        bits: of the modulus.
        parts: of each, the link that is its key and its scale in grid steps; 0 is no noise.
        sign: 1 adds, -1 takes off exactly what was added.

    """
    for link, scale in parts:
        if scale:
            drawn = KeyedStream(_hash("noise", link)).discrete_gaussian(len(words), scale)
            words += masks.as_words(sign * drawn, bits)


def _hash(purpose: str, link: bytes) -> bytes:
    return hashlib.sha256(f"wardpose secure aggregation {purpose}\0".encode() + link).digest()
