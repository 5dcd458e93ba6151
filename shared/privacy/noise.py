"""Randomness that privacy rests on: AES-256 in counter mode, and the two Gaussians made from it.

Production streams are keyed by the operating system and cannot be seeded; `SeededStream` is the same
machine under a key derived from a seed, for simulation only, and says so (`secure` is `False`). Coins,
noise and public draws come from separate keys (`Streams`), so that no published draw can tell anything
about a private one.

`gaussian` is float64 Box-Muller on 53-bit uniforms: fast, and as every floating-point Gaussian it can
betray something through its lowest bits (Mironov 2012; Jin et al. 2107.10138). `discrete_gaussian` lives on
the integers and is exact; with `quantise_to_grid` it is the sound choice. Both Rényi bounds are the same,
see `accounting`.
"""

import hashlib
import math
import os
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from scipy.special import ndtr

from wardpose.shared.errors import WardposeError

LARGEST_SIGMA = 2**28
"""Largest scale of the discrete Gaussian: the exponents' integers then fit 63 bits."""

_CHUNK = 1 << 16  # draws made at a time: the working set stays in the cache
_EXTRA_BITS = 256  # by which an undecided comparison is extended
_MARGIN = 2.0**20  # in units of 2^-64; many times the error of the float comparison, see _bernoulli_exp
_CONTEXT = Context(prec=140)


class NoiseTestError(WardposeError):
    """The noise source is broken; nothing private may be computed with it."""


class RandomStream(Protocol):
    """A source of independent draws."""

    @property
    def secure(self) -> bool:
        """Whether nobody can predict or repeat the draws."""
        ...

    def uint64(self, n: int) -> NDArray[np.uint64]:
        """Draw (n,) uniform 64-bit words."""
        ...

    def gaussian(self, n: int, sigma: float) -> NDArray[np.float64]:
        """Draw (n,) normal values of standard deviation `sigma`."""
        ...

    def discrete_gaussian(self, n: int, sigma: float) -> NDArray[np.int64]:
        """Draw (n,) integers x with probability proportional to exp(-x² / 2 s²), s = `sigma` rounded up."""
        ...


class _AesStream:
    """AES-256 in counter mode over zeros, and the distributions made from its words."""

    secure = False

    def __init__(self, key: bytes) -> None:
        self._start(key)

    def _start(self, key: bytes) -> None:
        self._encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def uint64(self, n: int) -> NDArray[np.uint64]:
        """Draw (n,) uniform 64-bit words; read-only."""
        return np.frombuffer(self._encryptor.update(bytes(8 * n)), dtype="<u8")

    def gaussian(self, n: int, sigma: float) -> NDArray[np.float64]:
        """Draw (n,) normal values of standard deviation `sigma` (Box-Muller; reaches 8.57 sigma).

        Examples:
            >>> SeededStream(7).gaussian(3, sigma=2.0).round(2).tolist()
            [2.67, -0.89, 2.2]

        Raises:
            ValueError: sigma is negative or not finite.

        """
        if not 0 <= sigma < math.inf:
            raise ValueError(f"sigma is {sigma}; it must be finite and at least 0")
        out = np.empty(n + n % 2)
        for start in range(0, len(out), _CHUNK):
            part = out[start : start + _CHUNK]
            half = len(part) // 2
            uniform = (self.uint64(2 * half) >> np.uint64(11)).astype(np.int64).astype(np.float64)
            radius = np.log((uniform[:half] + 1.0) * 2.0**-53)  # of 1 to 2^53: the logarithm never sees 0
            radius *= -2.0
            np.sqrt(radius, out=radius)
            radius *= sigma
            angle = torch.from_numpy(uniform[half:]).mul_(2.0**-53 * 2.0 * math.pi)  # torch's sine is the faster one
            np.multiply(radius, torch.cos(angle).numpy(), out=part[:half])
            np.multiply(radius, torch.sin(angle).numpy(), out=part[half:])
        return out[:n]

    def discrete_gaussian(self, n: int, sigma: float) -> NDArray[np.int64]:
        """Draw (n,) integers x with probability proportional to exp(-x² / 2 s²), s = `sigma` rounded up.

        Rejection as in Karney (2016, algorithm D for the discrete normal), a relative of Canonne, Kamath
        and Steinke (2020): level k with probability proportional to exp(-k²/2), offset j uniform in 0..s-1,
        kept with probability exp(-j (2ks + j) / 2s²), so that x = ks + j has weight exp(-x² / 2s²); then a
        sign, 0 being kept for one of them. Every comparison is of a uniform number with an exact one: a
        64-bit word decides all but about 2^-43 of them, those are extended by 256 bits and decided in
        140-digit arithmetic. What remains is below 2^-250 a draw.

        Examples:
            >>> SeededStream(7).discrete_gaussian(3, sigma=2.0).tolist()
            [2, 1, -2]

        Raises:
            ValueError: sigma is not in (0, 2^28].

        """
        if not 0 < sigma <= LARGEST_SIGMA:
            raise ValueError(f"sigma is {sigma}; it must be greater than 0 and at most {LARGEST_SIGMA}")
        scale = math.ceil(sigma)
        out = np.empty(n, np.int64)
        filled = 0
        while filled < n:
            drawn = self._propose(min(_CHUNK, int((n - filled) * 1.45) + 16), scale)[: n - filled]
            out[filled : filled + len(drawn)] = drawn
            filled += len(drawn)
        return out

    def _propose(self, n: int, scale: int) -> NDArray[np.int64]:
        words = self.uint64(3 * n)
        level = self._levels(words[:n])
        negative = (words[n : 2 * n] & np.uint64(1)).astype(bool)
        half = words[n : 2 * n] >> np.uint64(1)  # uniform below 2^63; the incomplete last run is rejected
        complete = half < np.uint64(2**63 // scale * scale)
        offset = (half % np.uint64(scale)).astype(np.int64)
        size = level * scale + offset
        kept = self._bernoulli_exp(offset * (size + level * scale), 2 * scale * scale, words[2 * n :])
        kept &= complete & ~(negative & (size == 0))
        np.negative(size, out=size, where=negative)
        return size[kept]

    def _levels(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Levels k with probability proportional to exp(-k²/2), by inversion."""
        exact, table = _level_thresholds()
        level = np.zeros(len(words), np.int64)
        for threshold in table:
            above = words > threshold
            if not above.any():
                break
            level += above
        for tie in np.flatnonzero(table[level] == words):
            number = int(words[tie]) << _EXTRA_BITS | self._extra_bits()
            level[tie] = sum(number >= threshold for threshold in exact)
        return level

    def _bernoulli_exp(
        self, numerators: NDArray[np.int64], denominator: int, words: NDArray[np.uint64]
    ) -> NDArray[np.bool_]:
        """Decide events of probability exp(-numerator / denominator) each, by one uniform word each.

        The float64 exponent is wrong by less than 2^-47 of the result (three roundings of a number below
        22, and the exponential's own few units in the last place), so its comparison with the word by less
        than 2^18 units of 2^-64. Words closer than `_MARGIN` are decided exactly.
        """
        distance = words - np.exp(numerators / -float(denominator)) * 2.0**64
        decision = distance < 0
        for near in np.flatnonzero(np.abs(distance) <= _MARGIN):
            number = int(words[near]) << _EXTRA_BITS | self._extra_bits()
            exponent = _CONTEXT.divide(Decimal(-int(numerators[near])), Decimal(denominator))
            decision[near] = number < _CONTEXT.multiply(_CONTEXT.exp(exponent), Decimal(2 ** (64 + _EXTRA_BITS)))
        return decision

    def _extra_bits(self) -> int:
        return int.from_bytes(self.uint64(_EXTRA_BITS // 64).tobytes())


class SecureStream(_AesStream):
    """Keyed by the operating system; cannot be seeded, repeated or shared: a forked process gets a new key."""

    secure = True

    def __init__(self) -> None:
        super().__init__(os.urandom(32))
        self._process = os.getpid()

    def uint64(self, n: int) -> NDArray[np.uint64]:
        """Draw (n,) uniform 64-bit words; read-only."""
        if os.getpid() != self._process:
            self._process = os.getpid()
            self._start(os.urandom(32))
        return super().uint64(n)


class KeyedStream(_AesStream):
    """Keyed by a secret of 32 bytes: whoever is told it draws the same numbers, on any machine, and nobody else.

    For noise that comes off again (`wardpose.shared.secure_aggregation`): discrete Gaussians are drawn exactly.

    Examples:
        >>> one, other = (KeyedStream(bytes(32)).discrete_gaussian(3, 2.0).tolist() for _ in range(2))
        >>> one == other
        True

    """


class SeededStream(_AesStream):
    """Keyed by a seed and a name: repeatable, hence **not private**. For simulation and tests only.

    Examples:
        >>> SeededStream(7).uint64(2).tolist() == SeededStream(7).uint64(2).tolist()
        True
        >>> SeededStream(7).secure, SecureStream().secure
        (False, True)

    """

    def __init__(self, seed: int, name: str = "") -> None:
        super().__init__(hashlib.sha256(f"wardpose stream {name!r} {seed}".encode()).digest())


@dataclass(frozen=True)
class Streams:
    """Independent sources of one site's run.

    Attributes:
        sampling: which units take part, and which of their frames: private coins.
        noise: the noise of releases.
        public: draws over public data; may be known to anybody.

    """

    sampling: RandomStream
    noise: RandomStream
    public: RandomStream

    @property
    def secure(self) -> bool:
        """Whether every private draw is unpredictable; a run with `False` is not private."""
        return self.sampling.secure and self.noise.secure


def secure_streams() -> Streams:
    """Three streams with fresh keys from the operating system.

    Examples:
        >>> secure_streams().secure
        True

    """
    return Streams(SecureStream(), SecureStream(), SecureStream())


def seeded_streams(seed: int) -> Streams:
    """Three repeatable streams with independent keys; not private.

    Examples:
        >>> streams = seeded_streams(0)
        >>> streams.secure, streams.noise.uint64(2).tolist() == streams.sampling.uint64(2).tolist()
        (False, False)

    """
    return Streams(*(SeededStream(seed, name) for name in ("sampling", "noise", "public")))


def quantise_to_grid(vector: NDArray[np.floating], clip: float, grid: float) -> NDArray[np.int64]:
    """Round one unit's clipped contribution to whole multiples of `grid` without raising its norm.

    Coordinates are rounded toward zero, which lowers each of them; a vector longer than `clip` (by the
    float error of its clipping) is shortened first; and the integers' norm is checked exactly, so `grid *
    result` has norm at most `clip` in exact arithmetic. Sums of results are exact in int64.

    Examples:
        >>> quantise_to_grid(np.array([0.6, -0.8]), clip=1.0, grid=1 / 16).tolist()
        [9, -12]

    Args:
        vector: (D,) of norm at most `clip`, up to float error.
        clip: C.
        grid: spacing, at most `clip` and at least `clip / 2^30`.

    Raises:
        ValueError: the grid is too coarse or too fine, or a coordinate is not finite.

    """
    bound = clip / grid
    if not 1 <= bound <= 2**30:
        raise ValueError(f"grid is {grid} for clip {clip}; clip / grid must be between 1 and 2^30")
    scaled = np.asarray(vector, np.float64) / grid
    norm = float(np.linalg.norm(scaled))
    if not math.isfinite(norm):
        raise ValueError("the vector has coordinates that are not finite")
    limit = math.floor((Fraction(clip) / Fraction(grid)) ** 2)
    if norm > bound:
        scaled *= bound / norm
    integers = np.trunc(scaled).astype(np.int64)
    while int(np.dot(integers, integers)) > limit:
        scaled *= 1 - 2**-40
        integers = np.trunc(scaled).astype(np.int64)
    return integers


def self_test(streams: Streams) -> None:
    """Check the coins and both Gaussians; to be called before anything private is computed (a few milliseconds).

    Moments and a Kolmogorov-Smirnov test at a false-alarm rate of about 1e-9 each, and that no two streams
    are alike.

    Examples:
        >>> self_test(secure_streams())

    Raises:
        NoiseTestError: names the stream and the test.

    """
    n = 8192
    first = []
    for name in ("sampling", "noise", "public"):
        stream: RandomStream = getattr(streams, name)
        words = stream.uint64(n)
        first.append(words.tobytes())
        normal = stream.gaussian(n, 2.0) / 2.0
        integers = stream.discrete_gaussian(n, 1 << 20) / float(1 << 20)
        for test, uniforms in {
            "uniform": words * 2.0**-64,
            "low bits": (words & np.uint64(0xFFFFFFFF)) * 2.0**-32,
            "gaussian": ndtr(normal),
            "discrete gaussian": ndtr(integers),
        }.items():
            ordered = np.sort(uniforms)
            gap = np.max(np.abs(ordered - (np.arange(n) + 0.5) / n)) + 0.5 / n
            if gap > math.sqrt(math.log(2e9) / (2 * n)):
                raise NoiseTestError(f"{name} stream: {test} draws fail the Kolmogorov-Smirnov test ({gap:.4f})")
        for test, values in {"gaussian": normal, "discrete gaussian": integers}.items():
            mean, variance = float(values.mean()), float(values.var())
            if abs(mean) > 6.5 / math.sqrt(n) or abs(variance - 1) > 6.5 * math.sqrt(2 / n):
                raise NoiseTestError(f"{name} stream: {test} draws have mean {mean:.4f} and variance {variance:.4f}")
    if len(set(first)) < len(first):
        raise NoiseTestError("two of the streams give the same draws")


@lru_cache(maxsize=1)
def _level_thresholds() -> tuple[tuple[int, ...], NDArray[np.uint64]]:
    """Cumulative probabilities of the levels in units of 2^-320, and their leading 64 bits."""
    running, cumulative = Decimal(0), []
    for k in range(40):
        running = _CONTEXT.add(running, _CONTEXT.exp(Decimal(-k * k) / 2))
        cumulative.append(running)
    exact = []
    for part in cumulative[:21]:
        share = _CONTEXT.divide(part, running)
        exact.append(int(_CONTEXT.multiply(share, Decimal(2 ** (64 + _EXTRA_BITS)))))
    return tuple(exact), np.array([threshold >> _EXTRA_BITS for threshold in exact], np.uint64)
