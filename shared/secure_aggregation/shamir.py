"""Shamir's secret sharing (1979) of 32 bytes over the integers modulo the Mersenne prime 2^521 - 1.

Any `threshold` shares give the secret back; fewer are independent of it.
"""

import secrets
from collections.abc import Iterable, Mapping
from functools import lru_cache

PRIME = 2**521 - 1
SECRET_BYTES = 32
SHARE_BYTES = 66


def split(secret: bytes, threshold: int, places: Iterable[int]) -> dict[int, int]:
    """Return one share for each place: a random polynomial with p(0) = secret, of degree `threshold` - 1, at it.

    Examples:
        >>> shares = split(bytes(31) + b"w", 2, [1, 2, 3])
        >>> combine({place: shares[place] for place in (1, 3)})[-1:]
        b'w'

    Args:
        secret: 32 bytes.
        threshold: shares that give it back, at least 1.
        places: distinct positive numbers below the prime.

    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret of {len(secret)} bytes; allowed: {SECRET_BYTES}")
    coefficients = [int.from_bytes(secret), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return {place: _value(coefficients, place) for place in places}


def combine(shares: Mapping[int, int]) -> bytes:
    """Interpolate at 0.

    Args:
        shares: as many as the threshold; more do no harm.

    Raises:
        ValueError: what they give is no secret of 32 bytes; they are not of one polynomial.

    """
    total = sum(shares[place] * weight for place, weight in zip(shares, _weights(tuple(shares)), strict=True))
    try:
        return (total % PRIME).to_bytes(SECRET_BYTES)
    except OverflowError as error:
        raise ValueError("the shares are not of one secret") from error


@lru_cache(maxsize=8)
def _weights(places: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights at 0; a round combines every secret from the same places."""
    weights = []
    for place in places:
        above = below = 1
        for other in places:
            if other != place:
                above, below = above * other % PRIME, below * (other - place) % PRIME
        weights.append(above * pow(below, -1, PRIME))
    return tuple(weights)


def _value(coefficients: list[int], place: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * place + coefficient) % PRIME
    return value
