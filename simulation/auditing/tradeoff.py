"""What one step may betray at most: the trade-off functions of sampled Gaussian steps, ordered by their noise.

A mechanism is f-DP (Dong, Roth and Su 2022) if no test tells its two outputs apart better than f allows: for every
event S, P[S] <= F(Q[S]) and Q[S] <= F(P[S]) with F(x) = 1 - f(x), concave and rising. F is held by its tangents: for
every slope w >= 0

    F(x) <= w x + H_w,    H_w = max over events S of P[S] - w Q[S], and the same with P and Q exchanged,

the *hockey-stick divergence*; H at w = e^epsilon is the delta of (epsilon, delta)-DP. Finitely many tangents give a
larger F, hence a weaker hypothesis that is refuted less often: every bound here errs towards showing less.

One step of the engine is dominated by a pair of densities on the line, distances in standard deviations of the noise
and q the sampling rate, as in `accounting`:

* `add-remove`: (1-q) N(0) + q N(1/sigma) against N(0);
* `replace-one`: (1-q) N(0) + q N(1/sigma) against (1-q) N(0) + q N(-1/sigma).

More noise is a post-processing of less, so these pairs are ordered: whatever refutes one sigma refutes all larger ones.
Noise on the engine's grid, of 2^20 steps to a clip norm, is taken for the continuous one: its tests differ from those
of a rounded Gaussian by a relative 1 / (2^20 sigma)^2 at most, ten orders below what an audit resolves.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from wardpose.shared.errors import ConfigError
from wardpose.shared.privacy.composition import Adjacency

_TANGENTS = 1001
_FARTHEST = 8.5  # standard deviations: events beyond are rarer than 1e-16
_STEEPEST = 60.0  # logarithm of the largest slope


class TradeOff:
    """F(x) = 1 - f(x) by its tangents.

    Args:
        slopes: (J,) w, positive and rising.
        divergences: (J,) H_w.

    Raises:
        ConfigError: the arrays do not fit.

    """

    def __init__(self, slopes: ArrayLike, divergences: ArrayLike) -> None:
        w, h = np.asarray(slopes, np.float64), np.asarray(divergences, np.float64)
        if w.ndim != 1 or w.shape != h.shape or not len(w) or w[0] <= 0 or not (np.diff(w) > 0).all():
            raise ConfigError(f"audit: {w.shape} slopes and {h.shape} divergences; slopes must be positive and rise")
        self._slopes: list[float] = w.tolist()
        self._divergences: list[float] = h.tolist()
        # Two neighbouring tangents have one height where they cross; below it the steeper one is the lower.
        self._crossings: list[float] = ((h[:-1] * w[1:] - h[1:] * w[:-1]) / np.diff(w))[::-1].tolist()

    def at_least(self, probability: float) -> float:
        """Least probability of an event under one coin, if it is `probability` under the other: the inverse of F.

        That of one tangent, the best one up to rounding; any tangent's is a valid bound.
        """
        index = len(self._slopes) - 1 - bisect_left(self._crossings, probability)
        return max(0.0, (probability - self._divergences[index]) / self._slopes[index])


@dataclass(frozen=True, kw_only=True)
class Family:
    """Steps that differ in their noise alone.

    Attributes:
        sample_rate: q.
        adjacency: what a coin decides.

    """

    sample_rate: float
    adjacency: Adjacency

    def divergences(self, noise_multiplier: float, slopes: ArrayLike) -> NDArray[np.float64]:
        """H_w of one step at each of the `slopes` (J,), positive, as (J,)."""
        w = np.asarray(slopes, np.float64)
        q, shift = self.sample_rate, 1 / noise_multiplier
        if self.adjacency == "replace-one":
            return _clip(w, _replaced(w, q, shift))  # its own mirror image, so one direction is both
        return _clip(w, np.maximum(_added(w, q, shift), _removed(w, q, shift)))

    def trade_off(self, noise_multiplier: float) -> TradeOff:
        """Tangents of one step's trade-off function."""
        q, shift = self.sample_rate, 1 / noise_multiplier
        apart = 2 * shift if self.adjacency == "replace-one" else shift
        farthest = np.logaddexp(math.log1p(-q) if q < 1 else -math.inf, math.log(q) + _FARTHEST * apart + apart**2 / 2)
        most = min(_STEEPEST, max(float(farthest), 1e-3))
        slopes = np.exp(np.linspace(-most, most, _TANGENTS))
        return TradeOff(slopes, self.divergences(noise_multiplier, slopes))


def approximate_dp(epsilon: float, delta: float) -> TradeOff:
    """(epsilon, delta)-DP as a trade-off function (Wasserman and Zhou 2010)."""
    if epsilon == 0:
        return TradeOff([1.0], [delta])
    return TradeOff([math.exp(-epsilon), math.exp(epsilon)], [1 - math.exp(-epsilon) * (1 - delta), delta])


def _replaced(w: NDArray[np.float64], q: float, shift: float) -> NDArray[np.float64]:
    """Event x > log(y) / shift where the densities' ratio is w: a y^2 + b y - a w = 0."""
    a, b = q * math.exp(-(shift**2) / 2), (1 - q) * (1 - w)
    root = np.hypot(b, 2 * a * np.sqrt(w))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        y = np.where(b > 0, 2 * a * w / (b + root), (root - b) / (2 * a))
    x = np.log(y) / shift
    return np.asarray((1 - q) * (1 - w) * ndtr(-x) + q * (ndtr(shift - x) - w * ndtr(-shift - x)))


def _added(w: NDArray[np.float64], q: float, shift: float) -> NDArray[np.float64]:
    """P the mixture, Q the single Gaussian."""
    x = _likely_from(w, q, shift)
    return np.asarray((1 - q - w) * ndtr(-x) + q * ndtr(shift - x))


def _removed(w: NDArray[np.float64], q: float, shift: float) -> NDArray[np.float64]:
    """P the single Gaussian, Q the mixture: the event lies on the other side."""
    x = _likely_from(1 / w, q, shift)
    return np.asarray((1 - w * (1 - q)) * ndtr(x) - w * q * ndtr(x - shift))


def _likely_from(ratio: NDArray[np.float64], q: float, shift: float) -> NDArray[np.float64]:
    """Where the mixture's density becomes `ratio` times the single Gaussian's; -inf if it is so everywhere."""
    with np.errstate(divide="ignore"):
        return np.asarray((np.log(np.maximum(ratio - (1 - q), 0) / q) + shift**2 / 2) / shift)


def _clip(w: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divergences are between max(0, 1 - w) and 1; rounding may leave that by 1e-16."""
    return np.asarray(np.clip(found, np.maximum(0.0, 1 - w), 1.0))
