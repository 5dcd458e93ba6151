"""Privacy-loss distributions of Poisson-sampled Gaussians, composed without ever falling below the truth.

The privacy loss of an output x is l(x) = log P(x)/Q(x), P with the unit and Q without it (or the other way round). The
distribution of l under P says everything: delta(eps) = E_P[(1 - exp(eps - l))+], and independent losses add up.

**One step, rounded up.** Losses are put on a grid of width h by "connect the dots" (Doroshenko, Ghazi, Kamath, Kumar,
Manurangsi 2022, arXiv 2207.04380, algorithm 1): what lies between grid points a and b = a + h goes to both, so that
its mass under P *and* under Q stays what it was. The result's delta(eps) equals the true one on the grid and is the
chord (in exp(eps)) between, so it is nowhere smaller, and a composition of such is nowhere smaller than the true one.
A grid of twice the width holds only chords of these chords: coarser is never smaller.

**Composition where it counts.** Convolving by Fourier transforms has an absolute error of about 1e-16 times the
number of steps: as much as delta itself when delta is 1e-12 (there dp-accounting 0.6 reports up to 2.4 % less than
the truth). So every distribution is tilted by exp(k l), which moves the mass to the losses that decide epsilon,
convolved there, and tilted back: the error becomes relative. What the circular transform folds in from outside its
window only adds mass; what lies above it is bounded by Chernoff's inequality and added to delta; and a margin covers
rounding.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import ndtr

Adjacency = Literal["add-remove", "replace-one"]
Floats = NDArray[np.float64]

REACH = 10.6
"""Standard deviations of noise that a step's grid covers; beyond them lies a mass of 2e-26."""

_ULP = 2.3e-16
_UNSEEN = 1e-9  # share of delta that the largest losses of single steps may have in all, to be called infinite
_TRANSFORM, _POWER = 1e-14, 4e-15  # bounds on a transform's relative error, and on what a factor adds to it
_TILTED_AWAY = 30.0  # minus log of the tilted mass that may lie above the window
_SMALL = 4096  # points of a step that is remembered among many


@dataclass(frozen=True, eq=False)
class StepLoss:
    """Privacy loss of one step in one direction, on a grid.

    Attributes:
        first: grid index of the first loss; loss i is `(first + i) * interval`.
        probs: (n,) mass of each loss under P.
        infinite: mass of losses without bound.
        interval: width of the grid.

    """

    first: int
    probs: Floats
    infinite: float
    interval: float

    @property
    def last(self) -> int:
        """Grid index of the last loss."""
        return self.first + len(self.probs) - 1

    def rough_moment(self, tilt: float) -> tuple[float, float]:
        """Log E exp(tilt l) and its derivative, from block averages: good enough to choose a tilt by."""
        centres, log_masses = self._blocks
        exponents = tilt * centres + log_masses
        top = float(exponents.max())
        weights = np.exp(exponents - top)
        total = float(weights.sum())
        return top + math.log(total), float(weights @ centres) / total

    def tilted(self, tilt: float) -> tuple[Floats, float]:
        """Masses reweighted by exp(tilt l), adding up to 1, and the log of what they added up to before."""
        exponents = tilt * self._losses + self._log_probs
        top = float(exponents.max())
        weights = np.exp(exponents - top)
        total = float(weights.sum())
        return weights / total, top + math.log(total)

    def without_tail(self, mass: float) -> "StepLoss":
        """Call the largest losses, of at most so much mass, infinite."""
        tail = np.cumsum(self.probs[::-1])
        cut = min(int(np.searchsorted(tail, mass, side="right")), len(tail) - 1)
        if cut == 0:
            return self
        kept = len(tail) - cut
        return StepLoss(self.first, self.probs[:kept], self.infinite + float(tail[cut - 1]), self.interval)

    @cached_property
    def _blocks(self) -> tuple[Floats, Floats]:
        """Mean loss and log mass of blocks of losses, each small in mass, in breadth and in share of the tail."""
        size = len(self.probs)
        tail = np.clip(np.cumsum(self.probs[::-1])[::-1], 1e-30, 1.0)
        place = 128 * (1 - tail) + 128 * np.arange(size) / size - 4 * np.log(tail)
        starts = np.flatnonzero(np.diff(np.floor(place), prepend=-1.0))
        masses = np.add.reduceat(self.probs, starts)
        losses = np.add.reduceat(self.probs * self._losses, starts)
        full = masses > 0
        return losses[full] / masses[full], np.log(masses[full])

    @property
    def _losses(self) -> Floats:
        losses: Floats = np.arange(self.first, self.last + 1, dtype=np.float64) * self.interval
        return losses

    @cached_property
    def _log_probs(self) -> Floats:
        with np.errstate(divide="ignore"):
            logarithms: Floats = np.log(self.probs)
        return logarithms


def step_losses(
    sample_rate: float, noise_multiplier: float, adjacency: Adjacency, interval: float
) -> tuple[StepLoss, ...]:
    """Losses of one step on a grid: one for each direction that differs. Few large ones are remembered, many small."""
    size = loss_span(sample_rate, noise_multiplier, adjacency) / interval
    remembered = _small_step if size < _SMALL else _large_step
    return remembered(sample_rate, noise_multiplier, adjacency, interval)


def loss_span(sample_rate: float, noise_multiplier: float, adjacency: Adjacency) -> float:
    """Largest loss less smallest loss of one step whose noise stays within `REACH` standard deviations."""
    low, high = _ends(sample_rate, noise_multiplier, adjacency)
    return high - low


def composed_epsilon(steps: Sequence[tuple[StepLoss, int]], delta: float, points: int) -> float:
    """Smallest epsilon at `delta` of steps that are all on one grid, each so many times; an upper bound.

    Args:
        steps: losses in one direction and how often they are incurred.
        delta: in (0, 1).
        points: of the Fourier transform, a power of two.

    """
    interval = steps[0][0].interval
    count = sum(times for _, times in steps)
    steps = [(step.without_tail(_UNSEEN * delta / count), times) for step, times in steps]
    tilt, steeper, reach = _choose_tilt(steps, delta, points * interval)
    highest = sum(times * step.last for step, times in steps)
    end = min(max(math.ceil(reach / interval), points - 2), highest)
    start = end - points + 1
    masses, moment = _convolved(steps, tilt, points)
    above = 0.0  # mass of losses above the window, by Chernoff's inequality
    if end < highest:
        steeper_moment = sum(times * step.tilted(steeper)[1] for step, times in steps)
        above = math.exp(min(steeper_moment - steeper * (end + 1) * interval, 0.0))
    # The transforms' error has a norm relative to that of the masses, and grows with the power that they are raised to.
    error = (_TRANSFORM + _POWER * count) * float(np.linalg.norm(masses))
    masses = np.maximum(np.roll(masses, -(start % points)), 0.0)
    losses = (start + np.arange(points)) * interval
    first = int(np.searchsorted(losses, -interval))
    losses, masses = losses[first:], masses[first:]
    if not len(losses):
        return 0.0
    # Tilted back, over delta; summed from above, as they are and discounted: delta(l) = sum of m' (1 - exp(l - l')).
    factors = np.exp(np.minimum(moment - math.log(delta) - tilt * losses, 700.0))
    summed = np.cumsum((masses * factors)[::-1])[::-1]
    discounted = lfilter([1.0], [1.0, -math.exp(-interval)], (masses * factors)[::-1])[::-1]
    infinite = sum(times * step.infinite for step, times in steps)
    # With x = l' - l, errors e add up to at most |e| |exp(-k x) min(1, x)| <= |e| min(1, 0.74 / k) |exp(-k x / 2)|.
    error *= min(1.0, 0.74 / tilt) / math.sqrt(-math.expm1(-tilt * interval))
    rounding = 1e-10 + _POWER * (count + abs(moment))
    allowed = 1 - rounding - (infinite + above) / delta - error * factors - 3e-13 * summed
    exceeds = np.flatnonzero(summed - discounted > allowed)  # epsilon is above these losses
    index = int(exceeds[-1]) + 1 if len(exceeds) else 0
    if index == len(losses):
        return math.inf if end < highest else max(0.0, end * interval)
    if index == 0:
        return max(0.0, float(losses[0]))
    crossing = float((summed[index] - allowed[index - 1]) / discounted[index])
    return max(0.0, float(losses[index]) + math.log(crossing))


def _choose_tilt(steps: Sequence[tuple[StepLoss, int]], delta: float, width: float) -> tuple[float, float, float]:
    """Choose what to tilt by; any choice is as sound, but rounding or folding would cost more.

    Best is the tilt k at which the Rényi bound on epsilon, (K(k) - log delta - log(k + 1) - k log(1 + 1/k)) / k
    (Canonne, Kamath, Steinke 2020, proposition 12), is smallest: the tilted losses have their peak there. Where losses
    are rare and large it also lifts what lies far above, and a smaller one is taken, with which a window from 0 holds
    them all.

    Returns:
        The tilt; a steeper one, for a bound on what lies above the window; and how far the tilted losses reach.

    """
    best, _ = _chernoff(steps, -math.log(delta), gain=lambda k: math.log1p(k) + k * math.log1p(1 / k))
    for tilt in best * 2.0 ** -np.arange(0, 8, 0.5):
        extra, reach = _chernoff(steps, _TILTED_AWAY, float(tilt))
        if reach <= width:
            return float(tilt), float(tilt) + extra, reach
    extra, reach = _chernoff(steps, _TILTED_AWAY, best)
    return best, best + extra, reach


def _chernoff(
    steps: Sequence[tuple[StepLoss, int]],
    surprise: float,
    tilt: float = 0.0,
    gain: Callable[[float], float] = lambda k: 0.0,
) -> tuple[float, float]:
    """Minimise over k the bound on what tilted losses exceed with probability exp(-surprise).

    It is (K(tilt + k) - K(tilt) + surprise - gain(k)) / k, with K the log of the moment E exp(k l).

    Returns:
        The k, roughly, and the bound.

    """

    def moments(at: float) -> tuple[float, float]:
        pairs = np.array([step.rough_moment(at) for step, _ in steps])
        moment, slope = np.array([times for _, times in steps], dtype=np.float64) @ pairs
        return float(moment), float(slope)

    before = moments(tilt)[0] if tilt else 0.0
    # A tilt of more than 1 / h would tell neighbours on the grid apart, and lift rounding errors by as much.
    high = -math.log(steps[0][0].interval)
    low = high - 40
    while high - low > 0.05:
        k = math.exp((low + high) / 2)
        moment, slope = moments(tilt + k)
        if k * slope - (moment - before) + gain(k) < surprise:
            low = math.log(k)
        else:
            high = math.log(k)
    k = math.exp(low)
    return k, (moments(tilt + k)[0] - before + surprise - gain(k)) / k


def _convolved(steps: Sequence[tuple[StepLoss, int]], tilt: float, points: int) -> tuple[Floats, float]:
    """Tilted masses of the sum of losses by grid index modulo `points`, and the log of what tilting divided by."""
    product = np.ones(points // 2 + 1, dtype=np.complex128)
    moment = 0.0
    for step, times in steps:
        masses, log_total = step.tilted(tilt)
        moment += times * log_total
        folded = np.pad(masses, (0, -len(masses) % points)).reshape(-1, points).sum(axis=0)
        product *= _power(np.fft.rfft(np.roll(folded, step.first % points)), times)
    return np.fft.irfft(product, points), moment


def _power(values: NDArray[np.complex128], exponent: int) -> NDArray[np.complex128]:
    """Integer power by squaring: its relative error is that of `values` times the exponent."""
    result: NDArray[np.complex128] | None = None
    while True:
        if exponent & 1:
            result = values if result is None else result * values
        exponent >>= 1
        if not exponent:
            return values if result is None else result
        values = values * values


def _make_step(
    sample_rate: float, noise_multiplier: float, adjacency: Adjacency, interval: float
) -> tuple[StepLoss, ...]:
    """Connect the dots for one step.

    Noise is measured in its own standard deviations, z; a unit's contribution moves it by 1 / sigma. Under add-remove,
    P = (1-q) N(0) + q N(1/sigma) and Q = N(0) for removing a unit; the reverse, with negated losses, for adding one.
    """
    low, high = _ends(sample_rate, noise_multiplier, adjacency)
    first = math.floor(low / interval)
    last = max(math.ceil(high / interval), first + 1)
    losses: Floats = np.arange(first, last + 1, dtype=np.float64) * interval
    shift, q = 1 / noise_multiplier, sample_rate
    if adjacency == "replace-one":
        return (_replaced(first, losses, q, noise_multiplier, interval),)
    odds, places = _odds_and_places(losses, q, noise_multiplier)
    without, without_error = _masses(places)
    moved, moved_error = _masses(places - shift)
    under, over = ndtr(places[0]), ndtr(-places[-1])
    with np.errstate(over="ignore", invalid="ignore"):
        removed = _rounded_up(
            first,
            mass=(1 - q) * without + q * moved,
            gap=q * (moved - odds[:-1] * without + moved_error + odds[:-1] * without_error),
            below=(1 - q) * under + q * ndtr(places[0] - shift),
            infinite=(1 - q) * over + q * ndtr(shift - places[-1]),
            interval=interval,
        )
        if q == 1:
            return (removed,)  # adding is the mirror image
        gap = q * np.exp(-losses[1:]) * (odds[1:] * without - moved + moved_error + odds[1:] * without_error)
    added = _rounded_up(-last, mass=without[::-1], gap=gap[::-1], below=over, infinite=under, interval=interval)
    return removed, added


def _replaced(first: int, losses: Floats, sample_rate: float, noise_multiplier: float, interval: float) -> StepLoss:
    """`_make_step` under replace-one, where both directions are one by symmetry: Q = (1-q) N(0) + q N(-1/sigma)."""
    shift, q = 1 / noise_multiplier, sample_rate
    places = _place_of_replacement(losses, q, noise_multiplier)
    centre, error = _masses(places)
    up, up_error = _masses(places - shift)
    down, down_error = _masses(places + shift)
    with np.errstate(over="ignore", invalid="ignore"):
        odds, excess = np.exp(losses[:-1]), np.expm1(losses[:-1])
        gap = q * up - odds * q * down - (1 - q) * excess * centre
        gap += q * up_error + odds * q * down_error + (1 - q) * np.abs(excess) * error
    return _rounded_up(
        first,
        mass=(1 - q) * centre + q * up,
        gap=gap,
        below=(1 - q) * ndtr(places[0]) + q * ndtr(places[0] - shift),
        infinite=(1 - q) * ndtr(-places[-1]) + q * ndtr(shift - places[-1]),
        interval=interval,
    )


_small_step = lru_cache(maxsize=1024)(_make_step)
_large_step = lru_cache(maxsize=8)(_make_step)


def _rounded_up(first: int, *, mass: Floats, gap: Floats, below: float, infinite: float, interval: float) -> StepLoss:
    """Share the mass of each cell out to its two ends.

    A cell from a to b holds A under P and B under Q; A (1 - w) at a and A w at b hold the same where w A (1 -
    exp(a-b)) = A - exp(a) B, the `gap`. Where rounding hides it, all goes up.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = gap / (mass * -math.expm1(-interval))
    share = np.where(np.isnan(share), 1.0, np.clip(share, 0.0, 1.0))
    probs = np.zeros(len(mass) + 1)
    probs[1:] += mass * share
    probs[:-1] += mass * (1 - share)
    probs[0] += below
    return StepLoss(first=first, probs=probs, infinite=float(infinite), interval=interval)


def _masses(edges: Floats) -> tuple[Floats, Floats]:
    """Return the standard normal mass between consecutive edges, and its rounding error."""
    left, right = edges[:-1], edges[1:]
    mirrored = left > 0
    larger = ndtr(np.where(mirrored, -left, right))
    smaller = ndtr(np.where(mirrored, -right, left))
    return np.maximum(larger - smaller, 0.0), 4 * _ULP * larger


def _ends(sample_rate: float, noise_multiplier: float, adjacency: Adjacency) -> tuple[float, float]:
    """Smallest and largest loss within the reach of the noise."""
    shift = 1 / noise_multiplier
    if adjacency == "replace-one":
        high = _removal_loss(REACH + shift, sample_rate, shift) - _removal_loss(-REACH - shift, sample_rate, shift)
        return -high, high
    return _removal_loss(-REACH, sample_rate, shift), _removal_loss(REACH + shift, sample_rate, shift)


def _removal_loss(place: float, sample_rate: float, shift: float) -> float:
    """log((1-q) + q exp(shift z - shift²/2)) at z = `place`."""
    exponent = shift * place - shift * shift / 2
    if sample_rate == 1:
        return exponent
    if exponent < 30:
        return math.log1p(sample_rate * math.expm1(exponent))
    return math.log(sample_rate) + exponent + math.log1p((1 - sample_rate) / sample_rate * math.exp(-exponent))


def _odds_and_places(losses: Floats, sample_rate: float, noise_multiplier: float) -> tuple[Floats, Floats]:
    """Return likelihood ratio N(1/sigma) to N(0), and z, at which removing a unit has these losses."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if sample_rate == 1:
            return np.exp(losses), 0.5 / noise_multiplier + noise_multiplier * losses
        odds = 1 + np.expm1(losses) / sample_rate  # below 0 at losses below log(1-q), which no output has
        small = np.log1p(np.expm1(np.minimum(losses, 1.0)) / sample_rate)
        large = losses - math.log(sample_rate) + np.log1p((sample_rate - 1) * np.exp(-np.maximum(losses, 1.0)))
        logarithm = np.where(losses < 1, small, large)
        logarithm = np.where(np.isnan(logarithm), -np.inf, logarithm)
        return odds, 0.5 / noise_multiplier + noise_multiplier * logarithm


def _place_of_replacement(losses: Floats, sample_rate: float, noise_multiplier: float) -> Floats:
    """Return z at which replacing a unit has these losses.

    With y = z / sigma and a = exp(1 / 2 sigma²) (1-q) / q, exp(l) = (a + exp(y)) / (a + exp(-y)), so a sinh(l/2) =
    sinh(y - l/2).
    """
    half = np.abs(losses) / 2
    if sample_rate == 1:
        return noise_multiplier * losses / 2
    log_a = 0.5 / noise_multiplier**2 + math.log1p(-sample_rate) - math.log(sample_rate)
    with np.errstate(divide="ignore"):
        log_sinh = half + np.log(-np.expm1(-2 * half)) - math.log(2)
        u = log_a + log_sinh
        asinh = np.where(
            u < 1, np.arcsinh(np.exp(np.minimum(u, 1))), u + np.log1p(np.sqrt(1 + np.exp(-2 * np.maximum(u, 0))))
        )
    return np.sign(losses) * noise_multiplier * (asinh + half)
